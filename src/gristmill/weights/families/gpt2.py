"""GPT-2: learned positions, LayerNorm and biases throughout, matrices stored as `[in, out]`."""

from __future__ import annotations

import re
from typing import Any

from ...model.config import ModelConfig
from . import standard
from .family import Family, Layout, Part
from .settings import Settings
from .transforms import TRANSPOSED

_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


def _read(settings: Settings) -> dict[str, Any]:
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("reorder_and_upcast_attn", False)
    settings.only("add_cross_attention", False)
    hidden, heads = settings.integer("n_embd", 768), settings.integer("n_head", 12)
    if hidden % heads:
        settings.refuse("n_embd", f"a multiple of n_head ({heads})")
    scaled = settings.flag("scale_attn_weights", True)
    return {
        "vocab_size": settings.integer("vocab_size", 50257),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("n_inner", 4 * hidden),
        "num_layers": settings.layers("n_layer", 12),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "max_seq_len": settings.integer("n_positions", 1024),
        "attention_scale": None if scaled else 1.0,
        "activation": settings.choice("activation_function", standard.ACTIVATIONS, "gelu_new"),
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": settings.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "gated": False,
        **dict.fromkeys(("norm_bias", "qkv_bias", "output_bias", "mlp_bias"), True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_seq_len,
        "scale_attn_weights": config.attention_scale != 1.0,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else config.activation,
        "layer_norm_epsilon": config.norm_eps,
    }


def _layout(config: ModelConfig) -> Layout:
    hidden, wide = config.hidden_size, config.intermediate_size
    vocab = (config.vocab_size, hidden)
    table: Layout = {
        "embedding.weight": (Part("transformer.wte.weight", vocab),),
        "position_embedding.weight": (Part("transformer.wpe.weight", (config.max_seq_len, hidden)),),
    }
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        table |= standard.norm_parts(config, f"{ours}.attention_norm", f"{theirs}.ln_1")
        table |= _matrix(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", 3 * hidden, hidden)
        table |= _matrix(f"{ours}.attention.output", f"{theirs}.attn.c_proj", hidden, hidden)
        table |= standard.norm_parts(config, f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
        table |= _matrix(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", wide, hidden)
        table |= _matrix(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", hidden, wide)
    table |= standard.norm_parts(config, "norm", "transformer.ln_f")
    if not config.tie_embeddings:
        table["head.weight"] = (Part("lm_head.weight", vocab),)
    return table


def _matrix(ours: str, theirs: str, out_features: int, in_features: int) -> Layout:
    return {
        f"{ours}.weight": (Part(f"{theirs}.weight", (in_features, out_features), TRANSPOSED),),
        f"{ours}.bias": (Part(f"{theirs}.bias", (out_features,)),),
    }


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    keys={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "num_kv_heads": "n_head",
        "max_seq_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
    },
    read=_read,
    write=_write,
    layout=_layout,
    prefix="transformer.",
    harmless=lambda name, config: _MASK.fullmatch(name) is not None,
)
