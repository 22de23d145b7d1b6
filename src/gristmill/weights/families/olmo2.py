"""OLMo 2: norms after each layer only, and norms over all queries and all keys."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard
from .family import Family
from .rope import read_rope, write_rope
from .settings import Settings


def _read(settings: Settings) -> dict[str, Any]:
    bias = settings.flag("attention_bias", False)
    return {
        **standard.read_sizes(settings),
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": "projection",
        "norm_position": "output",
        "norm_eps": settings.number("rms_norm_eps", 1e-5),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.qkv_bias,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
    }


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    keys=standard.KEYS,
    read=_read,
    write=_write,
    layout=lambda config: standard.layered(
        config,
        {
            "attention_output_norm": "post_attention_layernorm",
            "feed_forward_output_norm": "post_feedforward_layernorm",
        },
    ),
)
