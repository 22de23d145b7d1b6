import json
from pathlib import Path

import pytest
import torch

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A tokenizer of five special tokens and 26 letters."""
    directory = tmp_path_factory.mktemp("tokenizer")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": token, **flags} for i, token in enumerate(SPECIAL)]
    vocab = {token: i for i, token in enumerate((*SPECIAL, *LETTERS))}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": {"content": SPECIAL[2]}}
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "pad_token": SPECIAL[2]}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    (directory / "chat_template.jinja").write_text(template)
    return directory


def _random_model(seed: int = 0, **changes) -> Decoder:
    base = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 44,
        "max_seq_len": 64,
    }
    model = Decoder(ModelConfig(**base | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.empty(parameter.shape).normal_(0, 0.2, generator=generator)
            parameter.copy_(drawn + (parameter.dim() == 1))
    return model


@pytest.fixture(scope="session")
def random_model():
    """Makes a tiny decoder with random weights: `random_model(seed=0, **changes of its shape)`."""
    return _random_model
