"""Floating-point operations per token.

Convention: a multiply-add is 2 FLOPs; only matrix products count (projections, feed-forward, router, head, attention's
scores and weighted sums), not biases, norms, activations, softmax, rotations or lookups. Training recomputes nothing:
a backward pass is two products for every one of the forward pass. Symbols as in plan/parameters.py, and s tokens in the
sequence.
"""

from __future__ import annotations

from ..model.config import LayerKind, ModelConfig
from .parameters import matrix_params


def flops_per_token_forward(config: ModelConfig, seq_len: int, causal_half: bool = True) -> float:
    """FLOPs of one forward pass over `seq_len` tokens, divided by them (prefill, evaluation):
    2 * matrix parameters + attention (`attention_flops_per_token`)."""
    return 2 * matrix_params(config) + attention_flops_per_token(config, seq_len, causal_half)


def flops_per_token_backward(config: ModelConfig, seq_len: int, causal_half: bool = True) -> float:
    """FLOPs of the backward pass: gradients of inputs and of weights, 2 * forward. Attention that recomputes its scores
    (FlashAttention) does half of its forward pass once more, which by custom is not counted."""
    return 2 * flops_per_token_forward(config, seq_len, causal_half)


def flops_per_token_training(config: ModelConfig, seq_len: int, causal_half: bool = True) -> float:
    """Forward and backward: 6 * matrix parameters + 3 * attention (the 6 N of Kaplan et al. 2020, section 2.1, with
    attention, and without parameters that multiply nothing)."""
    return 3 * flops_per_token_forward(config, seq_len, causal_half)


def flops_per_token_decode(config: ModelConfig, context: int) -> float:
    """FLOPs of one new token that attends to `context` tokens, its own included, with a cache. Latent attention works
    in its absorbed form: kv_up meets the query and the output instead of every key, and scores are R + P wide."""
    attention = sum(pair_flops(config, config.causal) * _keys_of_last(config, kind, context)
                    for kind in config.layer_kinds)  # fmt: skip
    return 2 * matrix_params(config) + attention


def attention_flops_per_token(config: ModelConfig, seq_len: int, causal_half: bool = True) -> float:
    """FLOPs of scores and weighted sums, mean over `seq_len` tokens: 2 H (D + E) * mean number of keys, over layers.

    `causal_half`: only the keys that a token may see, (s + 1)/2 of s in a causal layer, which is what kernels compute.
    Without it every token pays for all s keys, or for a full window, as most published utilizations count (PaLM,
    appendix B).
    """
    per_key = pair_flops(config, absorbed=False)
    return sum(per_key * keys_per_token(config, kind, seq_len, causal_half) for kind in config.layer_kinds)


def keys_per_token(config: ModelConfig, kind: LayerKind, seq_len: int, causal_half: bool = True) -> float:
    """How many keys a token attends to in a layer of this kind: the mean over a sequence of `seq_len` tokens, or,
    without `causal_half`, the number for a token with all of them behind it.

    Causal: sum of min(t, w) for t = 1 ... s over s, with w the window (s in full layers); sinks add those first
    tokens that lie behind the window. Encoders see both sides, 2 sum(...)/s - 1.
    """
    window = seq_len if kind == "full" or config.sliding_window is None else min(config.sliding_window, seq_len)
    sinks = min(config.sink_tokens, seq_len) if window < seq_len else 0
    if not causal_half:
        return min(window + sinks, seq_len) if config.causal else min(2 * window - 1 + sinks, seq_len)
    behind = _sum_of_smaller(seq_len, window)
    outside = _sum_of_smaller(seq_len - window, sinks)
    if config.causal:
        return (behind + outside) / seq_len
    ahead = max(sinks - window, 0)  # sinks beyond the window in front of the first tokens
    return (2 * behind - seq_len + outside + ahead * (ahead + 1) / 2) / seq_len


def _keys_of_last(config: ModelConfig, kind: LayerKind, context: int) -> int:
    if kind == "full" or config.sliding_window is None:
        return context
    return min(context, config.sliding_window + config.sink_tokens)


def pair_flops(config: ModelConfig, absorbed: bool = True) -> int:
    """2 H (D + E) FLOPs of a layer for each pair of query and key; of latent attention in its absorbed form, as a
    cache serves it, 2 H (2 R + P)."""
    latent = config.latent
    if latent is not None and absorbed:
        return 2 * config.num_heads * (2 * latent.kv_rank + latent.rope_head_dim)
    return 2 * config.num_heads * (config.head_dim + config.value_dim)


def _sum_of_smaller(count: int, limit: int) -> int:
    """Sum of min(t, limit) for t = 1 ... count."""
    low = min(count, limit)
    return low * (low + 1) // 2 + max(count - limit, 0) * limit
