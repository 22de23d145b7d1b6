"""What both kernels of paged attention are made of: a tile of queries meets a tile of keys, and what comes of it.

Rows of a tile are the queries of one key head: token r // GROUP, head r % GROUP of the group. So a tile of keys is
read once for all heads that share it. Scores are kept in base 2 (times log2 e), as the hardware has exp2; maximum and
sum are carried from tile to tile (Milakov & Gimelshein 2018; Dao et al. 2022, algorithm 1).

A key that a row may not see has score -inf, by choice and not by arithmetic, and places without a key are not read at
all: what an unused page holds goes nowhere. A tile of which a row sees nothing leaves the row as it was, bit for bit,
so that it does not matter which rows share a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .paged_attention import PagedBatch, Scores, value_scales, values_in_keys
from .rope_kv import PagedLayer
from .sizes import power_of_two

LOG2_E = math.log2(math.e)

# What the tensor cores multiply; Triton's interpreter can not multiply in the narrow types.
_OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def width_of(channels: int) -> int:
    """Channels that a tile takes for so many; 16 at least, as tensor cores want."""
    return max(power_of_two(channels), 16)


def cache_bytes_per_key(layer: PagedLayer) -> int:
    """Bytes of shared memory that a key of a tile takes, with its value."""
    key, value = layer.keys.shape[-1], layer.values.shape[-1]
    if values_in_keys(layer):
        channels = width_of(value) + (width_of(key - value) if key > value else 0)
    else:
        channels = width_of(key) + width_of(value)
    return channels * layer.keys.dtype.itemsize


def common_arguments(out_NHE: Tensor, q_NHD: Tensor, layer: PagedLayer, batch: PagedBatch, scores: Scores) -> Any:
    """The arguments that both kernels take by name."""
    keys, values = layer.keys, layer.values
    in_keys = values_in_keys(layer)
    main = values.shape[-1] if in_keys else keys.shape[-1]
    tail = keys.shape[-1] - main
    assert keys.stride(-1) == values.stride(-1) == q_NHD.stride(-1) == 1, "a head's channels lie side by side"
    assert layer.block_table_SM.stride(1) == 1, "a program reads a row of the block table from end to end"
    assert all(x.is_contiguous() for x in (batch.slots_B, batch.offsets, batch.lengths_B))
    scaled, capped = layer.key_scales is not None, scores.softcap is not None
    key_scales = keys if layer.key_scales is None else layer.key_scales
    scales_of_values = value_scales(layer)
    # Two multiplications less for each score: base 2 goes into the scale, or into the cap behind it.
    scale = scores.scale / scores.softcap if scores.softcap is not None else scores.scale * LOG2_E
    return {
        "out": out_NHE,
        "q": q_NHD,
        "keys": keys,
        "values": values,
        "key_scales": key_scales,
        "value_scales": keys if scales_of_values is None else scales_of_values,
        "table": layer.block_table_SM,
        "slopes": q_NHD if scores.alibi_slopes_H is None else scores.alibi_slopes_H,
        "sinks": q_NHD if scores.sinks_H is None else scores.sinks_H,
        "out_token": out_NHE.stride(0),
        "out_head": out_NHE.stride(1),
        "q_token": q_NHD.stride(0),
        "q_head": q_NHD.stride(1),
        "key_block": keys.stride(0),
        "key_place": keys.stride(1),
        "key_head": keys.stride(2),
        "value_block": values.stride(0),
        "value_place": values.stride(1),
        "value_head": values.stride(2),
        "scale_block": key_scales.stride(0),
        "scale_place": key_scales.stride(1),
        "table_slot": layer.block_table_SM.stride(0),
        "scale": scale,
        "cap": scores.softcap * LOG2_E if scores.softcap is not None else 1.0,
        "window": scores.window or 0,
        "sink_tokens": scores.sink_tokens,
        "CAUSAL": scores.causal,
        "WINDOWED": scores.window is not None,
        "CAPPED": capped,
        "ALIBI": scores.alibi_slopes_H is not None,
        "SINKS": scores.sinks_H is not None,
        "SCALED": scaled,
        "VALUES_IN_KEYS": in_keys,
        "GROUP": q_NHD.shape[1] // keys.shape[2],
        "PAGE": keys.shape[1],
        "MAIN": main,
        "TAIL": tail,
        "E": values.shape[-1],
        "BLOCK_D": width_of(main),
        "BLOCK_TAIL": width_of(tail),
        "BLOCK_E": width_of(values.shape[-1]),
        "OPERAND": _OPERANDS[q_NHD.dtype] if q_NHD.is_cuda else tl.float32,
    }


@triton.jit
def seen_tiles(end, first_at, window, sink_tokens, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many tiles hold keys before `end` that a query at `first_at` or later sees; how many of them hold sink
    tokens and come first; and how many tiles that no query sees lie between those and the others."""
    tiles = (end + BLOCK_N - 1) // BLOCK_N
    sink_tiles = tiles * 0
    skipped = tiles * 0
    if WINDOWED:
        sink_tiles = tl.minimum((sink_tokens + BLOCK_N - 1) // BLOCK_N, tiles)
        near = tl.maximum(first_at - window + 1, 0) // BLOCK_N
        skipped = tl.maximum(near - sink_tiles, 0)
    return tiles - skipped, sink_tiles, skipped


@triton.jit
def load_queries(  # type: ignore[no-untyped-def]
    q,
    rows,
    wanted,
    q_token,
    q_head,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Channels START to START + COUNT of a tile's rows, `[M, BLOCK]`; `q` is at the first token and head."""
    at = tl.arange(0, BLOCK)
    places = (rows // GROUP).to(tl.int64) * q_token + (rows % GROUP) * q_head
    mask = wanted[:, None] & (at < COUNT)[None, :]
    return tl.load(q + places[:, None] + START + at[None, :], mask=mask, other=0.0).to(OPERAND)


@triton.jit
def block_numbers(blocks, start, n, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The blocks in which the keys from `start` on stand: one number where a tile lies in one block, else one for each
    key. Asked for a tile ahead, as the keys wait for it."""
    if PAGE % BLOCK_N == 0:
        return tl.load(blocks + start // PAGE, mask=start < end, other=0).to(tl.int64)
    else:
        at = start + n
        return tl.load(blocks + at // PAGE, mask=at < end, other=0).to(tl.int64)


@triton.jit
def _rows(start, n, block, block_step, place_step, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """How far from the first key of the cache each key of a tile is, as a number for all and one for each: within a
    block the latter are the same for all tiles."""
    if PAGE % BLOCK_N == 0:
        return block * block_step + (start % PAGE) * place_step, n * place_step
    else:
        return start * 0, block * block_step + (start + n) % PAGE * place_step


@triton.jit
def attend_tile(  # type: ignore[no-untyped-def]
    acc,
    highest,
    total,
    q_main,
    q_tail,
    end,
    query_at,
    slope,
    start,
    n,
    block,
    keys,
    values,
    key_scales,
    value_scales,
    key_block,
    key_place,
    value_block,
    value_place,
    scale_block,
    scale_place,
    scale,
    cap,
    window,
    sink_tokens,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    SCALED: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """The keys from `start` on join the softmax of the rows: new `acc`, `highest`, `total`. `block` is their
    `block_numbers`; keys, values and scales are at the head. Without MASKED every row sees every key of the tile."""
    at = start + n
    held = at < end
    all_keys, each_key = _rows(start, n, block, key_block, key_place, PAGE, BLOCK_N)
    k = _load_tile(keys + all_keys, each_key, tl.arange(0, BLOCK_D), held, MAIN, BLOCK_D, MASKED)
    if TAIL > 0:
        tail = tl.arange(0, BLOCK_TAIL)
        k_tail = _load_tile(keys + all_keys + MAIN, each_key, tail, held, TAIL, BLOCK_TAIL, MASKED)
    if not VALUES_IN_KEYS:
        all_values, each_value = _rows(start, n, block, value_block, value_place, PAGE, BLOCK_N)
        v = _load_tile(values + all_values, each_value, tl.arange(0, BLOCK_E), held, E, BLOCK_E, MASKED)
    k = k.to(OPERAND)
    x = tl.dot(q_main, tl.trans(k), input_precision="ieee")
    if TAIL > 0:
        x = tl.dot(q_tail, tl.trans(k_tail.to(OPERAND)), x, input_precision="ieee")
    if SCALED:
        all_scales, each_scale = _rows(start, n, block, scale_block, scale_place, PAGE, BLOCK_N)
        scale_at = all_scales + each_scale
        x *= tl.load(key_scales + scale_at, mask=held, other=0.0)[None, :]
    x *= scale
    if CAPPED:
        x = cap * (2 * tl.sigmoid(2 * x) - 1)
    distance = query_at[:, None] - at[None, :]
    if ALIBI:
        x -= slope[:, None] * tl.abs(distance).to(tl.float32)
    if MASKED:
        seen = held[None, :] & (query_at >= 0)[:, None]
        if CAUSAL:
            seen = seen & (distance >= 0)
        if WINDOWED:
            near = distance < window
            if not CAUSAL:
                near = near & (distance > -window)
            seen = seen & (near | (at < sink_tokens)[None, :])
        x = tl.where(seen, x, float("-inf"))
    higher = tl.maximum(highest, tl.max(x, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(x - base[:, None])
    faded = tl.exp2(highest - base)
    total = total * faded + tl.sum(weights, 1)
    acc = acc * faded[:, None]
    if SCALED:
        weights *= tl.load(value_scales + scale_at, mask=held, other=0.0)[None, :]
    if VALUES_IN_KEYS:
        acc = tl.dot(weights.to(OPERAND), k, acc, input_precision="ieee")
    else:
        acc = tl.dot(weights.to(OPERAND), v.to(OPERAND), acc, input_precision="ieee")
    return acc, higher, total


@triton.jit
def _load_tile(  # type: ignore[no-untyped-def]
    first, rows, channels, held, COUNT: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr
):
    """`[N, BLOCK]` of which COUNT channels are read; masks only where there is something to mask."""
    places = first + (rows[:, None] + channels[None, :])
    if MASKED:
        tile = tl.load(places, mask=held[:, None] & (channels < COUNT)[None, :], other=0.0)
    elif COUNT < BLOCK:
        tile = tl.load(places, mask=(channels < COUNT)[None, :], other=0.0)
    else:
        tile = tl.load(places)
    return tile


@triton.jit
def store_rows(  # type: ignore[no-untyped-def]
    acc,
    highest,
    total,
    out,
    rows,
    wanted,
    sinks,
    out_token,
    out_head,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SINKS: tl.constexpr,
):
    """The rows' weighted means, to `out` at their first token and head; zeros for those that saw nothing."""
    if SINKS:
        sink = tl.load(sinks + rows % GROUP).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(highest, sink)
        faded = tl.exp2(highest - higher)
        total = total * faded + tl.exp2(sink - higher)
        acc = acc * faded[:, None]
    mean = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    e = tl.arange(0, BLOCK_E)
    places = (rows // GROUP).to(tl.int64) * out_token + (rows % GROUP) * out_head
    mask = wanted[:, None] & (e < E)[None, :]
    tl.store(out + places[:, None] + e[None, :], mean.to(out.dtype.element_ty), mask=mask)
