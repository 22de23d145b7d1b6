"""A tiny model of each family, for tests that must hold for all of them."""

from typing import Any

from gristmill.model.config import ModelConfig
from gristmill.weights.families import FAMILIES, family_of, write_config

BASE = {"vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
BASE |= {"intermediate_size": 44, "max_seq_len": 64}
NAMES = [family.model_type for family in FAMILIES]
LATENT = {"kv_rank": 10, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 6}
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 16}
PLAIN = {"positions": "learned", "norm": "layernorm", "norm_bias": True, "gated": False, "activation": "gelu_tanh"}
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
# A model of each family.
SHAPES = {
    "llama": {},
    "mistral": {"sliding_window": 5, "attention_pattern": ("sliding",)},
    "ministral": {"sliding_window": 5, "attention_pattern": ("sliding", "full")},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma2": {"norm_position": "sandwich", "norm_unit_offset": True, "embedding_scale": 32**0.5},
    "olmo2": {"norm_position": "output", "qk_norm": "projection"},
    "gpt2": PLAIN | BIASES | {"num_kv_heads": 4},
    "gpt_neox": PLAIN | BIASES | {"num_kv_heads": 4, "positions": "rope", "parallel_block": "separate"},
    "nemotron": PLAIN | {"positions": "rope", "norm_unit_offset": True, "rope_fraction": 0.5},
    "mpt": {"positions": "alibi", "norm": "layernorm", "gated": False, "activation": "gelu", "num_kv_heads": 4}
    | {"intermediate_size": 128},
    "mixtral": {"experts": EXPERTS, "intermediate_size": 16},
    "qwen3_moe": {"experts": EXPERTS, "qk_norm": "head"},
    "deepseek_v2": {"latent": LATENT, "head_dim": 12, "num_kv_heads": 4},
    "deepseek_v3": {"latent": LATENT, "head_dim": 12, "num_kv_heads": 4}
    | {"experts": EXPERTS | {"router": "sigmoid", "balance": "bias", "shared_intermediate_size": 16}},
}
SHAPES["gemma3_text"] = SHAPES["gemma2"] | SHAPES["ministral"] | {"qk_norm": "head", "sliding_rope_theta": 100.0}


def config_of(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**BASE | SHAPES[name] | changes)


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    """The keys of `config.json` that the model of a family is written as."""
    config = config_of(name)
    return write_config(family_of(config), config) | changes
