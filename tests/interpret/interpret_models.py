"""A tiny random model whose attention and norms are far from trivial."""

from __future__ import annotations

import torch

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder


def tiny_model(vocab_size: int, tie_embeddings: bool = True) -> Decoder:
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, max_seq_len=128, tie_embeddings=tie_embeddings,
    )  # fmt: skip
    model = Decoder(config).init_weights(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # gains of exactly 1 would hide a norm that is left out
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
            else:
                parameter.mul_(10.0)
    return model.eval()
