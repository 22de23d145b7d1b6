"""`gristmill plan model`: what follows from a model's shape alone, each figure with its formula.

Symbols as in plan/parameters.py; s is the sequence length, b the bytes of one cached number, w the sliding window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from . import encoder_decoder, flops, kv_cache, parameters
from .quantity import Quantity

SHOWN_DTYPES = ("fp32", "bf16", "int8", "int4")


def plan_model(config: ModelConfig, seq_len: int, dtype: str = "bf16") -> list[Quantity]:
    """Parameters by part, bytes, FLOPs per token and cache of a decoder at `seq_len` tokens; `dtype` is that of weights
    and cache. GristmillError for a length or a type that cannot be."""
    bits = parameters.bits_per_element(dtype)
    if seq_len < 1:
        raise GristmillError(f"seq_len must be at least 1 token, not {seq_len}")
    if config.positions == "learned" and seq_len > config.max_seq_len:
        raise GristmillError(f"seq_len ({seq_len}) is more than the model's {config.max_seq_len} learned positions")
    if parameters.is_encoder_decoder(config):
        return [
            *_parameters(config),
            *_bytes(config, dtype, bits),
            *_two_halves(config, seq_len, bits / 8),
        ]
    return [
        *_parameters(config),
        *_bytes(config, dtype, bits),
        *_flops(config, seq_len),
        *(_cache(config, seq_len, bits / 8) if config.causal else []),
    ]


def whole_shape(fields: Mapping[str, Any]) -> ModelConfig | None:
    """The shape that fields from a file describe, vocabulary included; None where they are not all there, or are those
    of another version."""
    try:
        return ModelConfig.model_validate(dict(fields))
    except ValueError:
        return None


def _parameters(config: ModelConfig) -> list[Quantity]:
    formulas = parameters.formulas(config)
    whole = config.parameters_by_part()
    active = config.parameters_by_part(active=True)
    parts = [Quantity(f"parameters.{part}", number, "param", formulas[part]) for part, number in whole.items()]
    table = " + ".join(part for part in ("embedding", "positions", "token_types", "head") if part in whole)
    share = Quantity("parameters.embedding_share", parameters.embedding_share(config), "1", f"({table}) / total")
    total = Quantity("parameters.total", parameters.total_params(config), "param", "sum of the parts")
    if active == whole:
        return [*parts, total, share]
    return [
        *parts,
        total,
        Quantity("parameters.active", parameters.active_params(config), "param", "as the total, with k for X experts"),
        Quantity(
            "parameters.active_feed_forward", active["feed_forward"], "param", "as feed_forward, with k for X experts"
        ),
        share,
    ]


def _bytes(config: ModelConfig, dtype: str, bits: int) -> list[Quantity]:
    params = parameters.total_params(config)
    shown = SHOWN_DTYPES if dtype in SHOWN_DTYPES else (dtype, *SHOWN_DTYPES)
    return [
        Quantity(
            f"weights.{name}",
            parameters.weight_bytes(params, parameters.bits_per_element(name)),
            "byte",
            f"total * {parameters.bits_per_element(name)} bit / 8"
            + ("" if parameters.bits_per_element(name) > 8 else ", without scales"),
        )
        for name in shown
    ]


def _flops(config: ModelConfig, seq_len: int) -> list[Quantity]:
    moe = ", k of X experts" if config.experts else ""
    head = "head" if config.makes_logits else "no head"
    attention = flops.attention_flops_per_token(config, seq_len)
    forward = flops.flops_per_token_forward(config, seq_len)
    per_layer = "2 H (D + E)" if config.latent else "4 H D"
    keys = "(s + 1)/2 keys" if config.causal else "s keys"
    if config.sliding_window:
        keys += ", sliding layers sum of min(t, w) over t <= s, / s"
    unit = "FLOP/token"
    rows = [
        Quantity("flops.matrices", 2 * parameters.matrix_params(config), unit, f"2 * (projections, {head}{moe})"),
        Quantity(
            "flops.attention", attention, unit, f"{per_layer} * mean keys, sum over layers: {keys}; s = {seq_len}"
        ),
        Quantity("flops.forward", forward, unit, "matrices + attention"),
        Quantity("flops.backward", flops.flops_per_token_backward(config, seq_len), unit, "2 * forward"),
        Quantity("flops.training", flops.flops_per_token_training(config, seq_len), unit, "forward + backward"),
        Quantity("flops.attention_share", attention / forward, "1", "attention / forward"),
        Quantity(
            "flops.forward_all_keys",
            flops.flops_per_token_forward(config, seq_len, causal_half=False),
            unit,
            "every token paying for all s keys (or a full window), as most utilizations count",
        ),
    ]
    if per_text := encoder_decoder.text_flops(config):
        rows.append(Quantity("flops.text", per_text, "FLOP", "2 (C C + Y C), pooler and classifier, once a text"))
    if config.causal:
        formula = f"matrices + {per_layer} * {seq_len} keys, sum over layers"
        if config.latent:
            formula = f"matrices + 2 H (2R + P) * {seq_len} keys, sum over layers (absorbed)"
        rows.append(Quantity("flops.decode", flops.flops_per_token_decode(config, seq_len), unit, formula))
    return rows


def _two_halves(config: ModelConfig, seq_len: int, bytes_per_element: float) -> list[Quantity]:
    """FLOPs and cache of an encoder-decoder that reads and writes `seq_len` tokens."""
    read = encoder_decoder.flops_per_token_read(config, seq_len)
    written = encoder_decoder.flops_per_token_written(config, seq_len, seq_len)
    kept = encoder_decoder.cross_cache_bytes_per_token(config, bytes_per_element)
    unit, cache = "FLOP/token", f"Ld * 2 K D b, b = {bytes_per_element:g}"
    formula = "2 * (encoder's projections, cross-attention's keys and values) + attention to both sides"
    other = f"2 * (decoder's projections, cross-attention's, head) + attention to (t + 1)/2 keys and {seq_len} read"
    return [
        Quantity("flops.read", read, unit, f"a token of {seq_len} read: {formula}"),
        Quantity("flops.written", written, unit, f"a token of {seq_len} written: {other}"),
        Quantity("flops.forward", read + written, unit, "read + written, for as many of both"),
        Quantity("flops.backward", 2 * (read + written), unit, "2 * forward"),
        Quantity("flops.training", 3 * (read + written), unit, "forward + backward"),
        Quantity("kv_cache.per_token_read", kept, "byte/token", f"cross-attention's: {cache}"),
        Quantity("kv_cache.per_token_written", kept, "byte/token", f"the decoder's own: {cache}"),
        Quantity("kv_cache.sequence", 2 * kept * seq_len, "byte", f"(read + written) * {seq_len}"),
    ]


def _cache(config: ModelConfig, seq_len: int, bytes_per_element: float) -> list[Quantity]:
    layer = "(R + P) b" if config.latent else "2 K D b"
    rows = [
        Quantity(
            "kv_cache.per_token",
            kv_cache.kv_cache_bytes_per_token(config, bytes_per_element),
            "byte/token",
            f"L * {layer}, b = {bytes_per_element:g}",
        ),
        Quantity(
            "kv_cache.sequence",
            kv_cache.kv_cache_bytes(config, seq_len, bytes_per_element, drop_beyond_window=False),
            "byte",
            f"per token * {seq_len}",
        ),
    ]
    if "sliding" in config.layer_kinds:
        rows += [
            Quantity(
                "kv_cache.per_token_beyond_window",
                kv_cache.kv_cache_bytes_per_token_beyond_window(config, bytes_per_element),
                "byte/token",
                f"full layers * {layer}",
            ),
            Quantity(
                "kv_cache.sequence_windowed",
                kv_cache.kv_cache_bytes(config, seq_len, bytes_per_element),
                "byte",
                f"min(s, w + sinks) tokens in sliding layers, w = {config.sliding_window}",
            ),
        ]
    factor = kv_cache.gqa_kv_reduction_factor(config)
    formula = "H (D + E) / (R + P)" if config.latent else "H / K"
    return [*rows, Quantity("kv_cache.reduction_factor", factor, "x", formula + ", against full multi-head")]
