"""Nemotron: LayerNorm with gains of 1 + w, squared ReLU without a gate, part of each head rotating."""

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
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "relu2"),
        "gated": False,
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": settings.flag("mlp_bias", False),
        "norm": "layernorm",
        "norm_bias": True,
        "norm_unit_offset": True,
        "norm_eps": settings.number("norm_eps", 1e-5),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings, fraction=0.5),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "norm_eps": config.norm_eps,
        **write_rope(config, partial=True),
    }


NEMOTRON = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    keys=standard.KEYS | {"norm_eps": "norm_eps"},
    read=_read,
    write=_write,
    layout=standard.layered,
)
