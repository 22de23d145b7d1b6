"""How many parameters a model has, by part, from its shape alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import ModelConfig, ModelShape


def parameters_by_part(config: ModelConfig, active: bool = False) -> dict[str, int]:
    """Parameters of the built `Decoder` in `embedding`, `positions`, `attention`, `feed_forward`, `router`, `norms` and
    `head`; parts without any are left out. `active` counts of the routed experts only the `top_k` that a token meets.
    """
    layers = range(config.num_layers)
    parts = {
        "embedding": config.vocab_size * config.hidden_size,
        "positions": config.max_seq_len * config.hidden_size if config.positions == "learned" else 0,
        "attention": config.num_layers * attention(config),
        "feed_forward": sum(feed_forward(config, layer, active) for layer in layers),
        "router": sum(_router(config, layer) for layer in layers),
        "norms": norms(config),
        "head": (0 if config.tie_embeddings else config.vocab_size * config.hidden_size)
        + (config.vocab_size if config.head_bias else 0),
    }
    return {part: number for part, number in parts.items() if number}


def attention(config: ModelShape) -> int:
    """Projections, biases and sinks of one block; norms inside attention count under `norms`."""
    hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
    output = heads * config.value_dim * hidden + (hidden if config.output_bias else 0)
    sinks = heads if config.learned_sinks else 0
    if (latent := config.latent) is not None:
        rank = latent.q_rank
        q_width = heads * config.head_dim
        query = hidden * q_width if rank is None else hidden * rank + rank * q_width
        down = hidden * (latent.kv_rank + latent.rope_head_dim)
        up = latent.kv_rank * heads * (latent.nope_head_dim + latent.value_head_dim)
        return query + down + up + output + sinks
    width = (heads + 2 * kv_heads) * config.head_dim
    return hidden * width + (width if config.qkv_bias else 0) + output + sinks


def feed_forward(config: ModelShape, layer: int, active: bool = False) -> int:
    """Matrices and biases of one block's feed-forward layer, or of its experts."""
    matrices = 3 if config.gated else 2
    if not config.has_experts(layer):
        wide = config.intermediate_size
        biases = (matrices - 1) * wide + config.hidden_size if config.mlp_bias else 0
        return matrices * config.hidden_size * wide + biases
    experts = config.experts
    assert experts is not None
    number = experts.top_k if active else experts.num_experts
    return matrices * config.hidden_size * (number * experts.intermediate_size + experts.shared_intermediate_size)


def norms(config: ModelShape) -> int:
    """Gains and biases of all norms, those of queries, keys and latent vectors included."""
    one = config.hidden_size * (2 if config.norm_bias else 1)
    per_block = {"pre": 2, "post": 2, "sandwich": 4, "output": 2}[config.norm_position]
    if config.parallel_block == "shared":
        per_block = 1
    total = config.num_layers * per_block * one
    if config.norm_position != "post":
        total += one
    if config.embedding_norm:
        total += one
    return total + config.num_layers * _inner_norms(config)


def _inner_norms(config: ModelShape) -> int:
    if config.latent is not None:
        return config.latent.kv_rank + (config.latent.q_rank or 0)
    if config.qk_norm == "head":
        return 2 * config.head_dim
    if config.qk_norm == "projection":
        return (config.num_heads + config.num_kv_heads) * config.head_dim
    return 0


def _router(config: ModelShape, layer: int) -> int:
    return (
        config.hidden_size * config.experts.num_experts
        if config.experts is not None and config.has_experts(layer)
        else 0
    )
