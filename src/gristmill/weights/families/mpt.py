"""MPT: ALiBi in place of positions, LayerNorm without biases, a plain GELU feed-forward four times as wide."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelConfig
from . import standard
from .family import Family, Layout, Part
from .settings import Settings


def _read(settings: Settings) -> dict[str, Any]:
    settings.only("expansion_ratio", 4)
    settings.only("logit_scale", None)
    settings.only("no_bias", True)
    norm = settings.get("norm_type", "low_precision_layernorm")
    if norm not in ("low_precision_layernorm", "layernorm"):
        settings.refuse("norm_type", "'low_precision_layernorm' or 'layernorm'")
    hidden, heads = settings.integer("d_model", 2048), settings.integer("n_heads", 16)
    if hidden % heads:
        settings.refuse("d_model", f"a multiple of n_heads ({heads})")
    return {
        "vocab_size": settings.integer("vocab_size", 50368),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_layers": settings.layers("n_layers", 24),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "max_seq_len": settings.integer("max_seq_len", 2048),
        "attention_scale": _read_attention(settings),
        "positions": "alibi",
        "activation": "gelu",
        "gated": False,
        "norm": "layernorm",
        "norm_eps": settings.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
    }


def _read_attention(settings: Settings) -> float | None:
    """The factor of the scores, out of the only attention that is computed here."""
    attention = settings.nested("attn_config")
    if attention is None:
        return None
    for key, value in {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_type": "multihead_attention",
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "attn_uses_sequence_id": False,
    }.items():
        attention.only(key, value)
    return attention.number("softmax_scale") if attention.has("softmax_scale") else None


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "d_model": config.hidden_size,
        "n_heads": config.num_heads,
        "n_layers": config.num_layers,
        "expansion_ratio": 4,
        "max_seq_len": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "softmax_scale": config.attention_scale},
    }


def _layout(config: ModelConfig) -> Layout:
    hidden, wide = config.hidden_size, config.intermediate_size
    vocab = (config.vocab_size, hidden)
    table: Layout = {"embedding.weight": (Part("transformer.wte.weight", vocab),)}
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.blocks.{layer}"
        table |= standard.norm_parts(config, f"{ours}.attention_norm", f"{theirs}.norm_1")
        table |= standard.norm_parts(config, f"{ours}.feed_forward_norm", f"{theirs}.norm_2")
        table |= {
            f"{ours}.attention.qkv.weight": (standard.linear(f"{theirs}.attn.Wqkv", 3 * hidden, hidden),),
            f"{ours}.attention.output.weight": (standard.linear(f"{theirs}.attn.out_proj", hidden, hidden),),
            f"{ours}.feed_forward.up.weight": (standard.linear(f"{theirs}.ffn.up_proj", wide, hidden),),
            f"{ours}.feed_forward.down.weight": (standard.linear(f"{theirs}.ffn.down_proj", hidden, wide),),
        }
    table |= standard.norm_parts(config, "norm", "transformer.norm_f")
    if not config.tie_embeddings:
        table["head.weight"] = (Part("lm_head.weight", vocab),)
    return table


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    keys={
        "hidden_size": "d_model",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "num_kv_heads": "n_heads",
        "norm_eps": "layer_norm_epsilon",
    },
    read=_read,
    write=_write,
    layout=_layout,
    prefix="transformer.",
)
