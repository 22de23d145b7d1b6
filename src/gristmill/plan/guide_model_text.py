"""How a model's parameters come from its dimensions, written with the numbers of one shape."""

from __future__ import annotations

from ..model import counts
from ..model.config import ModelConfig


def parameters_text(config: ModelConfig, active: bool = False) -> str:
    """Every part of `counts.parameters_by_part` as a product; `active` counts the experts that a token meets."""
    width, vocab = config.hidden_size, config.vocab_size
    parts = counts.parameters_by_part(config, active)
    texts = {
        "embedding": f"{vocab:,} * {width:,}",
        "positions": f"{config.max_seq_len:,} * {width:,}",
        "attention": attention_text(config),
        "feed_forward": feed_forward_text(config, active),
        "router": _router_text(config),
        "norms": norms_text(config, parts.get("norms", 0)),
        "head": f"{vocab:,} * {width:,}" + (f" + biases {vocab:,}" if config.head_bias else ""),
    }
    biases = {"attention": _attention_biases(config), "feed_forward": _feed_forward_biases(config)}
    lines = [
        f"{part.replace('_', '-')} {texts[part]}" + (f" + biases {count:,}" if (count := biases.get(part, 0)) else "")
        for part in parts
    ]
    return " + ".join(lines)


def attention_text(config: ModelConfig) -> str:
    """Matrices alone."""
    layers, width, heads = config.num_layers, config.hidden_size, config.num_heads
    if (latent := config.latent) is None:
        return f"{layers} * 2 * {width:,} * {config.head_dim} * ({heads} + {config.num_kv_heads})"
    query = f"{width:,} * {heads} * {config.head_dim}"
    if (rank := latent.q_rank) is not None:
        query = f"{width:,} * {rank:,} + {rank:,} * {heads} * {config.head_dim}"
    keys = f"{width:,} * ({latent.kv_rank:,} + {latent.rope_head_dim})"
    values = f"{latent.kv_rank:,} * {heads} * ({latent.nope_head_dim} + {latent.value_head_dim})"
    return f"{layers} * ({query} + {keys} + {values} + {heads} * {latent.value_head_dim} * {width:,})"


def feed_forward_text(config: ModelConfig, active: bool = False) -> str:
    """Matrices alone: the dense layers', then those of the layers with experts."""
    each = f"{3 if config.gated else 2} * {config.hidden_size:,}"
    dense = _dense_layers(config)
    texts = [f"{dense} * {each} * {config.intermediate_size:,}"] if dense else []
    if (experts := config.experts) is not None:
        number = experts.top_k if active else experts.num_experts
        shared = f" + {experts.shared_intermediate_size:,}" if experts.shared_intermediate_size else ""
        texts.append(f"{config.num_layers - dense} * {each} * ({number} * {experts.intermediate_size:,}{shared})")
    return " + ".join(texts)


def norms_text(config: ModelConfig, total: int) -> str:
    """So many norms of the stream's width, and what stands inside attention."""
    one = config.hidden_size * (2 if config.norm_bias else 1)
    whole, rest = divmod(total, one)
    return f"{whole:,} * {one:,}" + (f" + {rest:,}" if rest else "")


def _dense_layers(config: ModelConfig) -> int:
    return sum(not config.has_experts(layer) for layer in range(config.num_layers))


def _router_text(config: ModelConfig) -> str:
    experts = config.experts.num_experts if config.experts is not None else 0
    return f"{config.num_layers - _dense_layers(config)} * {config.hidden_size:,} * {experts}"


def _attention_biases(config: ModelConfig) -> int:
    bare = config.model_copy(update={"qkv_bias": False, "output_bias": False, "learned_sinks": False})
    return config.num_layers * (counts.attention(config) - counts.attention(bare))


def _feed_forward_biases(config: ModelConfig) -> int:
    bare = config.model_copy(update={"mlp_bias": False})
    layers = range(config.num_layers)
    return sum(counts.feed_forward(config, layer) - counts.feed_forward(bare, layer) for layer in layers)
