"""A tiny random model and its tokenizer as a directory on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpret_models import tiny_model

from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts
from gristmill.weights.hf import save_model

TEXT = "The king said to the people, and the people said to the king: one day the water will return to the city. "


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    tokenizer_directory = tmp_path_factory.mktemp("tokenizer")
    train_on_texts(TokenizerConfig(vocab_size=310), [TEXT] * 20, tokenizer_directory)
    directory = tmp_path_factory.mktemp("dpo")
    save_model(tiny_model(Tokenizer.load(tokenizer_directory).vocab_size), directory, tokenizer_directory)
    return directory
