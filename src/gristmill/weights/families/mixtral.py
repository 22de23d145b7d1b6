"""Mixtral: Mistral with a softmax router over experts in every layer."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard, windows
from .family import Family, Layout
from .rope import read_rope, write_rope
from .settings import Settings


def _read(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=8)
    settings.get("router_jitter_noise")  # of training alone
    return {
        **sizes,
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "norm_eps": settings.number("rms_norm_eps", 1e-5),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings, theta=1_000_000.0),
        **windows.every_layer(settings, settings.get("sliding_window")),
        "experts": {
            "num_experts": settings.integer("num_local_experts", 8),
            "top_k": settings.integer("num_experts_per_tok", 2),
            "intermediate_size": sizes["intermediate_size"],
            **standard.read_balance(settings, "router_aux_loss_coef", 0.001),
        },
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = standard.experts_of(config)
    return {
        **standard.write_sizes(config),
        "intermediate_size": experts.intermediate_size,
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.sliding_window,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "router_aux_loss_coef": experts.aux_loss_weight,
        **write_rope(config),
    }


def _experts(config: ModelConfig, layer: int, ours: str, theirs: str) -> Layout:
    theirs = theirs.removesuffix("mlp") + "block_sparse_moe"
    return standard.experts(config, layer, ours, theirs, names=("w1", "w3", "w2"))


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    keys=standard.KEYS
    | {
        "sliding_window": "sliding_window",
        "experts.num_experts": "num_local_experts",
        "experts.top_k": "num_experts_per_tok",
        "experts.intermediate_size": "intermediate_size",
    },
    read=_read,
    write=_write,
    layout=lambda config: standard.layered(config, feed_forward=_experts),
)
