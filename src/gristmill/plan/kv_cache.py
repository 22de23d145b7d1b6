"""Bytes of the key/value cache. Symbols as in plan/parameters.py."""

from __future__ import annotations

from ..model.config import ModelConfig


def kv_cache_bytes_per_token(config: ModelConfig, bytes_per_element: float) -> float:
    """Bytes that one more token adds while no window is full: L * 2 K D * bytes; latent attention L * (R + P) * bytes,
    its values being part of its keys. Encoders keep no cache: 0."""
    return config.num_layers * _bytes_per_layer(config, bytes_per_element)


def kv_cache_bytes_per_token_beyond_window(config: ModelConfig, bytes_per_element: float) -> float:
    """The same once the sliding layers' windows are full: their oldest token makes room, only full layers grow."""
    return config.layer_kinds.count("full") * _bytes_per_layer(config, bytes_per_element)


def kv_cache_bytes(
    config: ModelConfig, seq_len: int, bytes_per_element: float, batch: int = 1, drop_beyond_window: bool = True
) -> float:
    """Bytes for `batch` sequences of `seq_len` tokens. Sliding layers keep min(s, window + sinks) tokens, or all s of
    them in a cache that does not drop what no query can see any more."""
    tokens = 0
    for kind in config.layer_kinds:
        if kind == "full" or config.sliding_window is None or not drop_beyond_window:
            tokens += seq_len
        else:
            tokens += min(seq_len, config.sliding_window + config.sink_tokens)
    return batch * tokens * _bytes_per_layer(config, bytes_per_element)


def gqa_kv_reduction_factor(config: ModelConfig) -> float:
    """How many times smaller the cache is than with as many key/value heads as query heads: H / K (latent attention:
    H (D + E) / (R + P))."""
    heads, key_width, value_width = config.cache_shape
    return config.num_heads * (config.head_dim + config.value_dim) / (heads * (key_width + value_width))


def _bytes_per_layer(config: ModelConfig, bytes_per_element: float) -> float:
    heads, key_width, value_width = config.cache_shape
    return heads * (key_width + value_width) * bytes_per_element if config.causal else 0
