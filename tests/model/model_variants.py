"""Tiny models of every variant, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

VOCAB = 37
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_seq_len": 64,
}
SLIDING = {"sliding_window": 4, "attention_pattern": ("sliding", "full")}
LATENT = {
    "latent": {"kv_rank": 10, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 6},
    "head_dim": 12,
    "num_kv_heads": 4,
}
SCALING = {"factor": 4.0, "original_max_seq_len": 16}
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 16}

# Whose logits depend on where a token stands in its row, not only on distances, and which must be given positions.
ABSOLUTE = {"learned", "sinusoidal"}

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-head": {"num_kv_heads": 4},
    "multi-query": {"num_kv_heads": 1},
    "latent": LATENT,
    "latent-query": LATENT | {"latent": LATENT["latent"] | {"q_rank": 14}},
    "sliding": SLIDING,
    "all-sliding": {"sliding_window": 3, "attention_pattern": ("sliding",)},
    "sink-tokens": SLIDING | {"sink_tokens": 2},
    "qk-norm": {"qk_norm": "head"},
    "qk-norm-projection": {"qk_norm": "projection"},
    "softcap": {"attention_softcap": 1.5, "logit_softcap": 3.0, "attention_scale": 0.4},
    "learned-sinks": {"learned_sinks": True},
    "sliding-softcap-sinks": SLIDING | {"attention_softcap": 2.0, "learned_sinks": True},
    "qkv-bias": {"qkv_bias": True, "output_bias": True},
    "rope-theta": {"rope_theta": 500.0},
    "rope-partial": {"rope_fraction": 0.5},
    "rope-linear": {"rope_scaling": SCALING | {"kind": "linear"}},
    "rope-dynamic": {"rope_scaling": SCALING | {"kind": "dynamic"}},
    "rope-yarn": {"rope_scaling": SCALING | {"kind": "yarn"}},
    "rope-llama3": {"rope_scaling": SCALING | {"kind": "llama3"}},
    "rope-by-kind": SLIDING | {"sliding_rope_theta": 100.0, "rope_scaling": SCALING | {"kind": "linear"}},
    "alibi": {"positions": "alibi"},
    "alibi-sliding": SLIDING | {"positions": "alibi"},
    "sinusoidal": {"positions": "sinusoidal"},
    "learned-positions": {"positions": "learned"},
    "no-positions": {"positions": "none"},
    "layernorm": {"norm": "layernorm", "norm_bias": True},
    "post-norm": {"norm_position": "post"},
    "sandwich": {"norm_position": "sandwich", "norm_unit_offset": True, "embedding_scale": 4.9},
    "output-norm": {"norm_position": "output", "qk_norm": "projection"},
    "layernorm-offset": {"norm": "layernorm", "norm_bias": True, "norm_unit_offset": True},
    "embedding-norm": {"embedding_norm": True},
    "geglu": {"activation": "gelu_tanh"},
    "gelu": {"activation": "gelu", "gated": False, "mlp_bias": True},
    "relu": {"activation": "relu", "gated": False},
    "relu2": {"activation": "relu2", "gated": False},
    "parallel-shared": {"parallel_block": "shared"},
    "parallel-separate": {"parallel_block": "separate"},
    "untied": {"tie_embeddings": False, "head_bias": True, "logit_scale": 0.5},
    "experts": {"experts": EXPERTS},
    "experts-shared": {
        "experts": EXPERTS
        | {"shared_intermediate_size": 20, "router": "sigmoid", "balance": "bias", "dense_layers": (0,)}
    },
    "latent-experts": LATENT | {"experts": EXPERTS | {"num_groups": 2, "top_groups": 1}},
}


def variant(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**BASE | VARIANTS[name] | changes)


def random_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that attention is far from uniform, and no two parameters alike."""
    model = Decoder(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            tensor.add_(torch.empty(tensor.shape).normal_(0, 0.2, generator=generator))
    return model.eval()


def random_ids(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, size, generator=torch.Generator().manual_seed(seed))
