"""Tiny models for tests of benchmarks, and likelihoods worked out the long way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "max_seq_len": 64,
}  # fmt: skip
SLIDING = {"sliding_window": 4, "attention_pattern": ("sliding", "full")}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "sliding": SLIDING,
    "sink-tokens": SLIDING | {"sink_tokens": 2},
    "softcap-sinks": SLIDING | {"attention_softcap": 2.0, "learned_sinks": True, "logit_softcap": 3.0},
    "alibi": {"positions": "alibi"},
    "learned-positions": {"positions": "learned"},
    "dynamic": {"rope_scaling": {"kind": "dynamic", "factor": 4.0, "original_max_seq_len": 8}},
    "latent": {
        "latent": {"kv_rank": 10, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 6},
        "head_dim": 12, "num_kv_heads": 4,
    },
    "experts": {"experts": {"num_experts": 4, "top_k": 2, "intermediate_size": 16}},
    "untied": {"tie_embeddings": False, "head_bias": True},
}  # fmt: skip


def random_decoder(variant: str = "grouped", seed: int = 0) -> Decoder:
    """Weights large enough that tokens far apart matter and no two places are alike."""
    model = Decoder(ModelConfig(**SHAPE | VARIANTS[variant])).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.empty(tensor.shape).normal_(0, 0.2, generator=generator))
    return model.eval()


def long_way(model: Decoder, ids: Sequence[int], start: int) -> tuple[float, bool]:
    """Log-likelihood of `ids[start:]` and whether it is greedy, from one plain forward pass over all ids but the
    last."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0, start - 1 :].double()
    targets = torch.tensor(ids[start:])
    values = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
    return float(values.sum()), bool((logits.argmax(-1) == targets).all())
