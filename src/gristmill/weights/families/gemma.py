"""Gemma 2 and the text part of Gemma 3: norms around each layer with gains of 1 + w, scaled embeddings, sliding layers.

Gemma 2 caps scores and logits; Gemma 3 norms queries and keys and turns them by another base in sliding layers.
"""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard, windows
from .family import Family
from .rope import read_rope, read_scaling, scaling_keys, write_rope
from .settings import Settings

_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}


def _read_common(settings: Settings, sizes: dict[str, Any], sliding: list[str]) -> dict[str, Any]:
    bias = settings.flag("attention_bias", False)
    if settings.get("use_bidirectional_attention"):
        settings.refuse("use_bidirectional_attention", "false or null")
    scalar = settings.number("query_pre_attn_scalar", 256)
    if scalar <= 0:
        settings.refuse("query_pre_attn_scalar", "a number above 0")
    settings.get("hidden_act")  # an older name, which the reference does not read either
    return {
        **sizes,
        "activation": settings.choice("hidden_activation", standard.ACTIVATIONS, "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "norm_position": "sandwich",
        "norm_unit_offset": True,
        "embedding_scale": sizes["hidden_size"] ** 0.5,
        "attention_scale": None if scalar == sizes["head_dim"] else scalar**-0.5,
        **windows.by_layer_types(settings, sizes["num_layers"], settings.get("sliding_window", 4096), sliding),
    }


def _write_common(config: ModelConfig) -> dict[str, Any]:
    return {
        **standard.write_sizes(config),
        "hidden_activation": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.qkv_bias,
        "rms_norm_eps": config.norm_eps,
        "query_pre_attn_scalar": _scalar(config.attention_scale or config.head_dim**-0.5),
        # The reference makes a mask of this width even where no layer slides.
        "sliding_window": config.sliding_window or config.max_seq_len,
        "layer_types": windows.layer_types(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def _scalar(scale: float) -> int | float:
    """The number whose inverse root is the factor of the scores; it is whole in all published models."""
    scalar = scale**-2
    return round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar


def _read_gemma2(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=4, head_dim=256)
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(sizes["num_layers"])]
    fields = _read_common(settings, sizes, alternating)
    if "sliding_window" in fields:
        windows.refuse_scaling(settings)
    return {
        **fields,
        "attention_softcap": settings.get("attn_logit_softcapping", 50.0),
        "logit_softcap": settings.get("final_logit_softcapping", 30.0),
        **read_rope(settings),
    }


def _read_gemma3(settings: Settings) -> dict[str, Any]:
    sizes = standard.read_sizes(settings, kv_heads=4, head_dim=256)
    every = settings.integer("sliding_window_pattern", 6)
    mixed = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(sizes["num_layers"])]
    settings.only("attn_logit_softcapping", None)  # the reference takes the key and computes nothing with it
    fields = _read_common(settings, sizes, mixed)
    rope = _read_rope(settings)
    if "sliding_window" not in fields:
        del rope["sliding_rope_theta"]
    return {
        **fields,
        "qk_norm": "head",
        "logit_softcap": settings.get("final_logit_softcapping"),
        **rope,
    }


def _read_rope(settings: Settings) -> dict[str, Any]:
    """Base and scaling of full layers, and the base of sliding ones, out of either form."""
    by_type = settings.nested("rope_parameters")
    older = settings.nested("rope_scaling")
    if by_type is not None and not (by_type.has("full_attention") or by_type.has("sliding_attention")):
        settings.refuse("rope_parameters", "an object with full_attention and sliding_attention")
    full = by_type.nested("full_attention") if by_type else None
    sliding = by_type.nested("sliding_attention") if by_type else None
    theta = settings.number("rope_theta", 1_000_000.0)
    local = settings.number("rope_local_base_freq", 10_000.0)
    scaled = older or full
    if sliding is not None and sliding.filled("rope_type", "default") != "default":
        sliding.refuse("rope_type", "'default': sliding layers are not scaled")
    return {
        "rope_theta": full.number("rope_theta", theta) if full else theta,
        "sliding_rope_theta": sliding.number("rope_theta", local) if sliding else local,
        **(read_scaling(settings, scaled) if scaled else {}),
    }


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = config.sliding_rope_theta or config.rope_theta
    full = {"rope_theta": config.rope_theta, **scaling_keys(config.rope_scaling)}
    keys = write_rope(config) | {
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
    return _write_common(config) | keys


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    keys=standard.KEYS
    | {
        "sliding_window": "sliding_window",
        "attention_pattern": "layer_types",
        "attention_scale": "query_pre_attn_scalar",
        "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    },
    read=_read_gemma2,
    write=lambda config: (
        _write_common(config) | {"attn_logit_softcapping": config.attention_softcap} | write_rope(config)
    ),
    layout=lambda config: standard.layered(config, _NORMS),
    refuses=standard.indivisible_heads,
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    keys={**GEMMA2.keys, "sliding_rope_theta": "rope_local_base_freq"},
    read=_read_gemma3,
    write=_write_gemma3,
    layout=lambda config: standard.layered(config, _NORMS),
    refuses=standard.indivisible_heads,
)
