"""The kernel of `draw`: a program a row, which goes over the row's logits a few times while they are in the L2 cache.

The first pass finds the best logit; a greedy row is done then. Cuts are distances below the best: the smallest distance
that enough tokens, or tokens of enough weight, lie within, found exactly by halving its range of 2**31 floats, whose
bits are in the order of their values; only rows that ask for a cut do so. Two last passes sum the weights and find
the token at which the running sum passes the row's random number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sampling import MIN_TEMPERATURE, DrawTable, Need
from .sizes import power_of_two

LONGEST_BLOCK = 8192
INFINITY = 0x7F800000  # the bits of the float32


def draw_kernel(
    logits_BV: Tensor, table: DrawTable, slots_B: Tensor, positions_B: Tensor, need: Need = Need()
) -> tuple[Tensor, Tensor]:
    """`draw` on a GPU."""
    rows, vocab = logits_BV.shape
    assert logits_BV.stride(1) == 1, "a program reads a row of logits from end to end"
    tokens_B = torch.empty(rows, dtype=torch.int64, device=logits_BV.device)
    finite_B = torch.empty(rows, dtype=torch.bool, device=logits_BV.device)
    if rows:
        block = min(LONGEST_BLOCK, power_of_two(vocab))
        _draw[(rows,)](
            logits_BV,
            *table,
            slots_B,
            positions_B,
            tokens_B,
            finite_B,
            logits_BV.stride(0),
            slots_B.stride(0),
            positions_B.stride(0),
            vocab,
            DRAWS=need.draws,
            CUTS=need.cuts,
            COLDEST=MIN_TEMPERATURE,
            INFINITY=INFINITY,
            BLOCK=block,
            num_warps=max(block // 512, 4),
        )
    return tokens_B, finite_B


@triton.jit
def _distances(logits, at, vocab, best, heat):  # type: ignore[no-untyped-def]
    """How far logits at places `at` lie below the best, over the temperature; inf behind the vocabulary."""
    x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return (best - x) / heat


@triton.jit
def _within(logits, vocab, best, heat, bits, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many tokens lie at most the distance with these bits below the best, and their weight."""
    count = 0
    weight = tl.zeros([], tl.float64)
    for start in range(0, vocab, BLOCK):
        d = _distances(logits, start + tl.arange(0, BLOCK), vocab, best, heat)
        inside = (d.to(tl.int32, bitcast=True) <= bits) & (d < float("inf"))
        count += tl.sum(inside.to(tl.int32), 0)
        weight += tl.sum(tl.where(inside, tl.exp(-d), 0.0), 0).to(tl.float64)
    return count, weight


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    slots,
    positions,
    tokens,
    finites,
    stride,
    slot_stride,
    position_stride,
    vocab,
    DRAWS: tl.constexpr,
    CUTS: tl.constexpr,
    COLDEST: tl.constexpr,
    INFINITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slot = tl.load(slots + row * slot_stride)
    places = tl.arange(0, BLOCK)

    # Tensors from the start: a branch cannot make one of a number.
    best = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    bad = 0
    for start in range(0, vocab, BLOCK):
        x = tl.load(logits + start + places, mask=start + places < vocab, other=float("-inf")).to(tl.float32)
        bad += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
        highest = tl.max(x, 0)
        if highest > best:
            token = start + tl.min(tl.where(x == highest, places, BLOCK), 0)
            best = highest
    finite = (bad == 0) & (best > float("-inf"))
    tl.store(finites + row, finite)

    if DRAWS:
        temperature = tl.load(temperatures + slot)
        if (temperature > 0) & finite:
            heat = tl.maximum(temperature, COLDEST)
            bits = tl.full([], INFINITY, tl.int32)
            if CUTS:
                bits = _cut(logits, vocab, best, heat, slot, top_ks, top_ps, min_ps, INFINITY, BLOCK)
            _count, total = _within(logits, vocab, best, heat, bits, BLOCK)
            position = tl.load(positions + row * position_stride).to(tl.uint64)
            first, second, _third, _fourth = tl.philox(
                tl.load(seeds + slot).to(tl.uint64),
                (position & 0xFFFFFFFF).to(tl.uint32),
                (position >> 32).to(tl.uint32),
                tl.full([], 0, tl.uint32),
                tl.full([], 0, tl.uint32),
            )
            number = first.to(tl.uint32).to(tl.float64) * 2097152.0 + (second.to(tl.uint32) >> 11).to(tl.float64)
            target = number * 1.1102230246251565e-16 * total
            token = _find(logits, vocab, best, heat, bits, target, token, BLOCK)
    tl.store(tokens + row, token)


@triton.jit
def _cut(logits, vocab, best, heat, slot, top_ks, top_ps, min_ps, INFINITY: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits of the largest distance that top_k, then top_p of what that leaves, and min_p keep."""
    top_k = tl.load(top_ks + slot)
    top_p = tl.load(top_ps + slot)
    min_p = tl.load(min_ps + slot)
    bits = tl.full([], INFINITY, tl.int32)
    if (top_k > 0) & (top_k < vocab):
        low = tl.full([], 0, tl.int32)
        while low < bits:
            middle = low + (bits - low) // 2
            count, _weight = _within(logits, vocab, best, heat, middle, BLOCK)
            if count >= top_k:
                bits = middle
            else:
                low = middle + 1
    if top_p < 1:
        _count, weight = _within(logits, vocab, best, heat, bits, BLOCK)
        share = weight * top_p.to(tl.float64)
        low = tl.full([], 0, tl.int32)
        while low < bits:
            middle = low + (bits - low) // 2
            _count, weight = _within(logits, vocab, best, heat, middle, BLOCK)
            if weight >= share:
                bits = middle
            else:
                low = middle + 1
    if min_p > 0:
        # 0.0 - x: the bits of -0.0 would be a negative number
        bits = tl.minimum(bits, (0.0 - tl.log(min_p)).to(tl.int32, bitcast=True))
    return bits


@triton.jit
def _find(logits, vocab, best, heat, bits, target, token, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first token whose running sum of weights passes the target; where rounding leaves none, the last one."""
    places = tl.arange(0, BLOCK)
    before = tl.zeros([], tl.float64)
    found = tl.full([], 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        if found == 0:
            d = _distances(logits, start + places, vocab, best, heat)
            inside = (d.to(tl.int32, bitcast=True) <= bits) & (d < float("inf"))
            w = tl.where(inside, tl.exp(-d), 0.0)
            after = before + tl.sum(w, 0).to(tl.float64)
            if tl.max(w, 0) > 0.0:
                passed = (tl.cumsum(w, 0) > (target - before).to(tl.float32)) & (w > 0.0)
                last = tl.max(tl.where(w > 0.0, places, 0), 0)
                token = start + tl.minimum(tl.min(tl.where(passed, places, BLOCK), 0), last)
                found = (after > target).to(tl.int32)
            before = after
    return token
