"""Compiled functions use nothing of other files.

Numba keeps machine code as long as the function's own file is unchanged: a function that called one of another file, or
used a constant from there, would go on with the old one.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numba
import pytest

import gristmill

PACKAGE = Path(gristmill.__file__).parent
LIBRARIES = {"np", "math"}  # numba knows them by itself, and looks at their versions


def compiled_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Those decorated with `@compiled`, `@njit` or `@numba.njit(...)`."""

    def compiles(decorator: ast.expr) -> bool:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        return ast.unparse(called).rpartition(".")[2] in ("compiled", "njit")

    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if any(map(compiles, function.decorator_list))]


def foreign_names(source: str) -> dict[str, set[str]]:
    """For each compiled function the imported names that it uses, but for those of `LIBRARIES`."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    found = {}
    for function in compiled_functions(tree):
        names = [name for line in function.body for name in ast.walk(line) if isinstance(name, ast.Name)]
        local = {name.id for name in names if isinstance(name.ctx, ast.Store)} | {a.arg for a in function.args.args}
        found[function.name] = ({name.id for name in names} - local) & imported - LIBRARIES
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if foreign_names(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_compiled_functions_use_nothing_of_other_files(path: Path) -> None:
    found = foreign_names(path.read_text(encoding="utf-8"))
    assert found == {name: set() for name in found}
    module = importlib.import_module(".".join(["gristmill", *path.relative_to(PACKAGE).with_suffix("").parts]))
    for name in found:
        assert isinstance(getattr(module, name), numba.core.registry.CPUDispatcher), f"{name} was found but not made"


def test_every_room_with_compiled_functions_is_looked_at() -> None:
    rooms = {str(path.parent.relative_to(PACKAGE)) for path in FILES}
    assert {"data/kernel", "data/ngram", "tokenizer", "tokenizer/kernel", "tokenizer/training"} <= rooms
    assert sum(len(foreign_names(path.read_text(encoding="utf-8"))) for path in FILES) > 60


def test_what_the_check_finds() -> None:
    source = """
import math
import numpy as np
import numba
from .other import LIMIT, helper, hidden
OWN = 3

@compiled
def calls(x): return helper(np.abs(x), OWN)

@numba.njit(cache=True)
def uses(x, hidden):
    LIMIT_2 = math.sqrt(LIMIT)
    return LIMIT_2 + hidden

@compiled
def good(x):
    for helper in range(OWN): x += helper
    return x

def plain(x): return helper(x)
"""
    assert foreign_names(source) == {"calls": {"helper"}, "uses": {"LIMIT"}, "good": set()}
