"""The kernel of `rope_kv`: a program takes one token and a few of its heads, all queries, all keys or all values.

About 512 channels a program keep both a single token (4 to 24 programs) and a prompt busy, and cosines and sines, which
all heads share, are computed once for them. A head's two rotating halves and what passes are three blocks, each read
with wide loads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent_launch import launch_options, start_next, wait_for_inputs
from .norms import Norm
from .rope_kv import LARGEST, PagedLayer, Turning
from .sizes import ceil_div, power_of_two


def rope_kv_kernel(
    qkv_NX: Tensor,
    positions_N: Tensor,
    slots_N: Tensor,
    layer: PagedLayer,
    turning: Turning | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> Tensor:
    """`rope_kv` on a GPU."""
    keys, values = layer.keys, layer.values
    count = qkv_NX.shape[0]
    block_size, kv_heads, width = keys.shape[1:]
    heads = qkv_NX.shape[1] // width - 2 * kv_heads
    assert qkv_NX.stride(1) == 1, "a program reads heads from end to end"
    assert all(tensor is None or tensor.is_contiguous() for tensor in layer), "places in the cache are counted"
    q_NHD = torch.empty(count, heads, width, dtype=qkv_NX.dtype, device=qkv_NX.device)
    if count == 0:
        return q_NHD
    frequencies = qkv_NX if turning is None else turning.frequencies
    pairs = 0 if turning is None else frequencies.shape[-1]
    tabled = turning is not None and turning.table is not None
    rest = width - 2 * pairs
    scaled = layer.key_scales is not None
    block_h = max(512 // power_of_two(width), 1)
    constants: dict[str, Any] = dict(
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        PAIRS=pairs,
        TABLED=tabled,
        BLOCK_SIZE=block_size,
        NORM=q_norm is not None,
        OFFSET=q_norm is not None and q_norm.offset,
        LARGEST=LARGEST[keys.dtype] if scaled else 0.0,
        ROUND=keys.dtype == torch.int8,
        BLOCK_H=block_h,
        BLOCK_P=power_of_two(pairs) if pairs else 0,
        BLOCK_R=power_of_two(rest) if rest else 0,
        num_warps=2,
        **launch_options(),
    )
    _rope_kv[(count, ceil_div(heads, block_h) + 2 * ceil_div(kv_heads, block_h))](
        qkv_NX,
        positions_N,
        slots_N,
        layer.block_table_SM,
        turning.table if turning is not None and turning.table is not None else frequencies,
        qkv_NX if q_norm is None else q_norm.weight_C,
        qkv_NX if k_norm is None else k_norm.weight_C,
        q_NHD,
        keys,
        values,
        layer.key_scales if scaled else qkv_NX,
        layer.value_scales if scaled else qkv_NX,
        positions_N.stride(0),
        slots_N.stride(0),
        qkv_NX.stride(0),
        layer.block_table_SM.stride(0),
        frequencies.stride(0) if frequencies.dim() == 2 and pairs else 0,
        1.0 if turning is None else turning.factor,
        0.0 if q_norm is None else q_norm.eps,
        0.0 if k_norm is None else k_norm.eps,
        **constants,
    )
    return q_NHD


@triton.jit
def _part(row, head, at, inside, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Channels `at` of several heads of a token, float32."""
    return tl.load(row + head[:, None] * WIDTH + at[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _gains(weight, at, inside, OFFSET: tl.constexpr):  # type: ignore[no-untyped-def]
    gains = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        gains += 1.0
    return gains[None, :]


@triton.jit
def _stored(x, scale, LARGEST: tl.constexpr, ROUND: tl.constexpr):  # type: ignore[no-untyped-def]
    """What stands in the cache for x, still in float32."""
    if LARGEST > 0:
        x = tl.clamp(x / scale[:, None], -LARGEST, LARGEST)
    if ROUND:
        # To the nearest, halves to even: 1.5 * 2^23 leaves no place for a fraction.
        x = (x + 12582912.0) - 12582912.0
    return x


@triton.jit
def _rope_kv(  # type: ignore[no-untyped-def]
    qkv,
    positions,
    slots,
    block_table,
    frequencies,
    q_weight,
    k_weight,
    q_out,
    keys,
    values,
    key_scales,
    value_scales,
    position_stride,
    slot_stride,
    qkv_stride,
    table_stride,
    frequency_stride,
    factor,
    q_eps,
    k_eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    TABLED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    LARGEST: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    Q_BLOCKS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    is_query = block < Q_BLOCKS
    is_value = block >= Q_BLOCKS + KV_BLOCKS
    # What leads to the place in the cache is three loads, one behind the other: they go first.
    position = tl.load(positions + token * position_stride).to(tl.int32)
    kept = position >= 0
    slot = tl.load(slots + token * slot_stride, mask=kept, other=0).to(tl.int64)
    number = tl.load(block_table + slot * table_stride + position // BLOCK_SIZE, mask=kept, other=0).to(tl.int64)
    if is_query:
        head = block * BLOCK_H + tl.arange(0, BLOCK_H)
        real = head < HEADS
        row = qkv + token * qkv_stride
    else:
        head = (block - Q_BLOCKS) % KV_BLOCKS * BLOCK_H + tl.arange(0, BLOCK_H)
        real = head < KV_HEADS
        row = qkv + token * qkv_stride + (HEADS + tl.where(is_value, KV_HEADS, 0)) * WIDTH

    largest = tl.zeros([BLOCK_H], tl.float32)
    squares = tl.zeros([BLOCK_H], tl.float32)
    if PAIRS > 0:
        p = tl.arange(0, BLOCK_P)
        pairs = real[:, None] & (p < PAIRS)[None, :]
        first = _part(row, head, p, pairs, WIDTH)
        second = _part(row, head, PAIRS + p, pairs, WIDTH)
        squares += tl.sum(first * first, 1) + tl.sum(second * second, 1)
    if BLOCK_R > 0:
        r = tl.arange(0, BLOCK_R)
        others = real[:, None] & (2 * PAIRS + r < WIDTH)[None, :]
        rest = _part(row, head, 2 * PAIRS + r, others, WIDTH)
        squares += tl.sum(rest * rest, 1)
    if not is_value:
        if NORM:
            scale = 1.0 / tl.sqrt(squares / WIDTH + tl.where(is_query, q_eps, k_eps))
            if is_query:
                weight = q_weight
            else:
                weight = k_weight
            if PAIRS > 0:
                first *= scale[:, None] * _gains(weight, p, p < PAIRS, OFFSET)
                second *= scale[:, None] * _gains(weight, PAIRS + p, p < PAIRS, OFFSET)
            if BLOCK_R > 0:
                rest *= scale[:, None] * _gains(weight, 2 * PAIRS + r, 2 * PAIRS + r < WIDTH, OFFSET)
        if PAIRS > 0:
            if TABLED:
                turning = tl.where(kept, PAIRS, 0)
                turn = frequencies + position.to(tl.int64) * (2 * PAIRS) + p
                cos = tl.load(turn, mask=p < turning, other=0.0)[None, :]
                sin = tl.load(turn + PAIRS, mask=p < turning, other=0.0)[None, :]
            else:
                speed = tl.load(frequencies + token * frequency_stride + p, mask=p < PAIRS, other=0.0)
                angle = position.to(tl.float32) * speed
                cos = (tl.cos(angle) * factor)[None, :]
                sin = (tl.sin(angle) * factor)[None, :]
            turned = first * cos - second * sin
            second = second * cos + first * sin
            first = turned

    if is_query:
        there = q_out + token * (HEADS * WIDTH) + head[:, None] * WIDTH
        if PAIRS > 0:
            tl.store(there + p[None, :], first.to(q_out.dtype.element_ty), mask=pairs)
            tl.store(there + PAIRS + p[None, :], second.to(q_out.dtype.element_ty), mask=pairs)
        if BLOCK_R > 0:
            tl.store(there + 2 * PAIRS + r[None, :], rest.to(q_out.dtype.element_ty), mask=others)
    elif kept:
        place = (number * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + head
        if is_value:
            there = values + place[:, None] * WIDTH
            scales = value_scales
        else:
            there = keys + place[:, None] * WIDTH
            scales = key_scales
        if LARGEST > 0:
            if PAIRS > 0:
                largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
            if BLOCK_R > 0:
                largest = tl.maximum(largest, tl.max(tl.abs(rest), 1))
            largest = tl.maximum(largest, 1e-12) / LARGEST
            tl.store(scales + place, largest, mask=real)
        if PAIRS > 0:
            stored = _stored(first, largest, LARGEST, ROUND).to(keys.dtype.element_ty)
            tl.store(there + p[None, :], stored, mask=pairs)
            stored = _stored(second, largest, LARGEST, ROUND).to(keys.dtype.element_ty)
            tl.store(there + PAIRS + p[None, :], stored, mask=pairs)
        if BLOCK_R > 0:
            stored = _stored(rest, largest, LARGEST, ROUND).to(keys.dtype.element_ty)
            tl.store(there + 2 * PAIRS + r[None, :], stored, mask=others)
