from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_rooms import VOCAB_SIZE, WEIGHTS, example_shards, stage_run, write_corpus

from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_tokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", example_shards(), WEIGHTS)


@pytest.fixture(scope="session", params=["gpt2", "gpt4", "qwen2"])
def any_directory(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer directory for each pre-tokenizer."""
    out = tmp_path_factory.mktemp(request.param) / "tokenizer"
    config = TokenizerConfig(vocab_size=VOCAB_SIZE, pretokenizer=request.param)
    train_tokenizer(config, stage_run(out, corpus=corpus))
    return out


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory and the figures of a tokenizer with default options."""
    out = tmp_path_factory.mktemp("default") / "tokenizer"
    figures = train_tokenizer(TokenizerConfig(vocab_size=VOCAB_SIZE), stage_run(out, corpus=corpus))
    return out, figures


@pytest.fixture(scope="session")
def directory(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


@pytest.fixture(scope="session")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)
