"""GPT-NeoX (Pythia): attention and feed-forward side by side on a norm each, part of each head rotating."""

from __future__ import annotations

import re
from typing import Any

from ...model.config import ModelConfig
from . import standard
from .family import Family, Layout, Part
from .rope import read_rope, write_rope
from .settings import Settings
from .transforms import fused_heads

_BUFFER = re.compile(r"(gpt_neox\.)?layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)")


def _read(settings: Settings) -> dict[str, Any]:
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if hidden % heads:
        settings.refuse("hidden_size", f"a multiple of num_attention_heads ({heads})")
    bias = settings.flag("attention_bias", True)
    parallel = settings.flag("use_parallel_residual", True)
    theta, fraction = settings.number("rotary_emb_base", 10_000.0), settings.number("rotary_pct", 0.25)
    return {
        "vocab_size": settings.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("intermediate_size"),
        "num_layers": settings.layers("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "max_seq_len": settings.integer("max_position_embeddings", 2048),
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "gelu"),
        "gated": False,
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": True,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": settings.number("layer_norm_eps", 1e-5),
        "parallel_block": "separate" if parallel else "none",
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings, theta, fraction),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    sizes = standard.write_sizes(config)
    del sizes["num_key_value_heads"], sizes["head_dim"]
    return {
        **sizes,
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.qkv_bias,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_block == "separate",
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction,
        **write_rope(config, partial=True),
    }


def _layout(config: ModelConfig) -> Layout:
    hidden, wide, vocab = config.hidden_size, config.intermediate_size, (config.vocab_size, config.hidden_size)
    heads = fused_heads(config.num_heads)
    table: Layout = {"embedding.weight": (Part("gpt_neox.embed_in.weight", vocab),)}
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        table |= standard.norm_parts(config, f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        table |= standard.norm_parts(config, f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm")
        fused = f"{theirs}.attention.query_key_value"
        table[f"{ours}.attention.qkv.weight"] = (Part(f"{fused}.weight", (3 * hidden, hidden), heads, linear=True),)
        table[f"{ours}.attention.output.weight"] = (standard.linear(f"{theirs}.attention.dense", hidden, hidden),)
        if config.qkv_bias:
            table[f"{ours}.attention.qkv.bias"] = (Part(f"{fused}.bias", (3 * hidden,), heads),)
            table[f"{ours}.attention.output.bias"] = (Part(f"{theirs}.attention.dense.bias", (hidden,)),)
        for name, stored, rows, columns in (
            ("up", "dense_h_to_4h", wide, hidden),
            ("down", "dense_4h_to_h", hidden, wide),
        ):
            table[f"{ours}.feed_forward.{name}.weight"] = (standard.linear(f"{theirs}.mlp.{stored}", rows, columns),)
            table[f"{ours}.feed_forward.{name}.bias"] = (Part(f"{theirs}.mlp.{stored}.bias", (rows,)),)
    table |= standard.norm_parts(config, "norm", "gpt_neox.final_layer_norm")
    if not config.tie_embeddings:
        table["head.weight"] = (Part("embed_out.weight", vocab),)
    return table


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    keys={**standard.KEYS, "norm_eps": "layer_norm_eps", "rope_fraction": "rotary_pct"},
    read=_read,
    write=_write,
    layout=_layout,
    prefix="gpt_neox.",
    head="embed_out.weight",
    harmless=lambda name, config: _BUFFER.fullmatch(name) is not None,
)
