"""Llama (1 to 3), and Mistral and Ministral, which have no biases but a sliding window in all layers or in some."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard, windows
from .family import Family
from .rope import read_rope, write_rope
from .settings import Settings


def _read_llama(settings: Settings) -> dict[str, Any]:
    bias = settings.flag("attention_bias", False)
    return {
        **standard.read_sizes(settings),
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": settings.flag("mlp_bias", False),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings),
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    keys=standard.KEYS,
    read=_read_llama,
    write=_write_llama,
    layout=standard.layered,
    refuses=standard.indivisible_heads,
)


def _read_mistral(settings: Settings) -> dict[str, Any]:
    settings.only("layer_types", None)
    return _read_windowless(settings) | windows.every_layer(settings, settings.get("sliding_window", 4096))


def _read_ministral(settings: Settings) -> dict[str, Any]:
    fields, window = _read_windowless(settings), settings.get("sliding_window", 4096)
    every = ["full_attention" if window is None else "sliding_attention"] * fields["num_layers"]
    slides = windows.by_layer_types(settings, fields["num_layers"], window, every)
    if slides:
        windows.refuse_scaling(settings)
    return fields | slides


def _read_windowless(settings: Settings) -> dict[str, Any]:
    return {
        **standard.read_sizes(settings, kv_heads=8),
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings),
    }


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.sliding_window,
        **write_rope(config),
    }


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    keys=standard.KEYS | {"sliding_window": "sliding_window"},
    read=_read_mistral,
    write=_write_mistral,
    layout=standard.layered,
)
MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    keys={**MISTRAL.keys, "attention_pattern": "layer_types"},
    read=_read_ministral,
    write=lambda config: _write_mistral(config) | {"layer_types": windows.layer_types(config)},
    layout=standard.layered,
)
