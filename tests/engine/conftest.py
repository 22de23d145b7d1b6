from __future__ import annotations

import pytest
import torch
from engine_fixtures import make_model, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model():
    return make_model()
