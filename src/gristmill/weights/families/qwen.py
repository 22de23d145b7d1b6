"""Qwen 2 (biases on queries, keys and values), Qwen 3 (norms of queries and keys), and Qwen 3 with experts."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard, windows
from .family import Family
from .rope import read_rope, write_rope
from .settings import Settings


def _read_common(settings: Settings, sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        **sizes,
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings),
    }


def _read_windows(settings: Settings, num_layers: int) -> dict[str, Any]:
    """Sliding layers as Qwen says it: from layer `max_window_layers` on, unless `layer_types` says otherwise."""
    window = settings.get("sliding_window", 4096) if settings.flag("use_sliding_window", False) else None
    settings.get("sliding_window")
    first = settings.filled("max_window_layers", 28)
    default = ["full_attention" if window is None or layer < first else "sliding_attention"
               for layer in range(num_layers)]  # fmt: skip
    fields = windows.by_layer_types(settings, num_layers, window, default)
    if fields:
        windows.refuse_scaling(settings)
    return fields


def _write_common(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
    }


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    kinds = config.layer_kinds
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        # Readers that know no layer_types count from here.
        "max_window_layers": kinds.index("sliding") if "sliding" in kinds else config.num_layers,
        "layer_types": windows.layer_types(config),
    }


def _read_qwen2(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=32)
    return {
        **_read_common(settings, sizes),
        "qkv_bias": True,
        **_read_windows(settings, sizes["num_layers"]),
    }


def _read_qwen3(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=32, head_dim=128)
    return {
        **_read_common(settings, sizes),
        **_read_attention(settings),
        **_read_windows(settings, sizes["num_layers"]),
    }


def _read_attention(settings: Settings) -> dict[str, Any]:
    bias = settings.flag("attention_bias", False)
    return {"qk_norm": "head", "qkv_bias": bias, "output_bias": bias}


def _read_qwen3_moe(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=4)
    window = settings.get("sliding_window", 4096)
    slides = settings.flag("use_sliding_window", False)
    return {
        **_read_common(settings, sizes),
        **_read_attention(settings),
        **windows.every_layer(settings, window if slides else None),
        "experts": {
            # transformers 4 writes num_experts, 5 num_local_experts
            "num_experts": settings.integer("num_experts", settings.integer("num_local_experts", 128)),
            "top_k": settings.integer("num_experts_per_tok", 8),
            "intermediate_size": settings.integer("moe_intermediate_size", 768),
            "dense_layers": _dense_layers(settings, sizes["num_layers"]),
            "normalize_top_k": settings.flag("norm_topk_prob", False),
            **standard.read_balance(settings, "router_aux_loss_coef", 0.001),
        },
    }


def _dense_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    step = settings.integer("decoder_sparse_step", 1)
    plain = settings.filled("mlp_only_layers", [])
    if not isinstance(plain, list) or not all(isinstance(layer, int) for layer in plain):
        settings.refuse("mlp_only_layers", "a list of numbers of layers")
    return tuple(layer for layer in range(num_layers) if layer in plain or (layer + 1) % step)


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    experts = standard.experts_of(config)
    return {
        **_write_common(config),
        "attention_bias": config.qkv_bias,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
        "norm_topk_prob": experts.normalize_top_k,
        "router_aux_loss_coef": experts.aux_loss_weight,
    }


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=standard.KEYS | {"sliding_window": "sliding_window", "attention_pattern": "layer_types"},
    read=_read_qwen2,
    write=lambda config: _write_common(config) | _write_windows(config),
    layout=standard.layered,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=QWEN2.keys,
    read=_read_qwen3,
    write=lambda config: _write_common(config) | _write_windows(config) | {"attention_bias": config.qkv_bias},
    layout=standard.layered,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    keys=standard.KEYS
    | {
        "sliding_window": "sliding_window",
        "experts.num_experts": "num_experts",
        "experts.top_k": "num_experts_per_tok",
        "experts.intermediate_size": "moe_intermediate_size",
        "experts.dense_layers": "mlp_only_layers",
    },
    read=_read_qwen3_moe,
    write=_write_qwen3_moe,
    layout=lambda config: standard.layered(config, feed_forward=standard.experts),
)
