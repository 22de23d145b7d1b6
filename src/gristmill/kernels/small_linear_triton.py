"""The kernels of `small_linear`. Both read each weight once, and sum over K in an order that K, N and the block sizes
set, never the number of rows.

What a product of a few rows takes is not its bytes but what comes one after the other: the start of a kernel, the way
of its weights from memory, of its inputs, its sums. So a program asks for its weights before the kernel ahead of it is
done (dependent_launch.py), all of them where its registers hold them: then only the inputs' way is left.

*One or two rows* (`_vector`): a program takes a few rows of the weight and all of K, multiplies in float32 and sums at
the end: a matrix-vector product has nothing for tensor cores to share. Up to 4,096 channels are one pass of its loop,
more are several, each asked for one pass ahead: 2 to 8 rows of 1,024 channels are 4 to 16 KiB a program, and with 4 to
8 programs a multiprocessor some 50 KiB are on their way, where 3 TB/s over 132 multiprocessors with 0.8 microseconds of
latency take 18.

*More rows* (`_matrix`): a program takes 64 rows of the weight, as many as tensor cores multiply at once, and some of K,
so that there are programs for all multiprocessors and x, which each of them reads, is little beside the weights. Each
leaves its sums in memory, and whichever comes last adds them up in their order. Any number of rows is padded to 16 or
32 with zeros, and a row of x is a column of its own in the product, so its sum is the same whatever stands beside it.
Measured on an H100, all products of a layer of Qwen3-0.6B with 8 rows, 31.5 MB: 22 us; 45 us with 16 rows of the weight
a program over all of K, which asked for them once the inputs were there; the library's and a norm 36.

RMSNorm costs no pass of its own: norm(x) @ W = (x * gain) @ W / rms(x), with the mean square summed along the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent_launch import launch_options, start_next, wait_for_inputs
from .norms import Norm
from .sizes import ceil_div, power_of_two
from .small_linear import Path
from .swiglu import Activation
from .swiglu_triton import activated

ONE_PASS = 4096  # channels at most that a program of `_vector` holds at once
ROWS_AT_ONCE = 2  # rows that a program of `_vector` multiplies its weights with, if they are one pass
MOST_PROGRAMS = 576  # of `_matrix` over which K is divided: four a multiprocessor, and some
MOST_TILES = 4096  # whose parts may be on their way at once

_tickets: dict[torch.device, Tensor] = {}


def small_linear_kernel(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    gated: bool = False,
    residual_MN: Tensor | None = None,
    path: Path | None = None,
    tuning: dict[str, Any] | None = None,
) -> Tensor:
    """`small_linear` on a GPU; x has the weight's type. Calls that may run at the same time belong in one stream.
    `tuning` overrides block sizes and launch parameters, so that a benchmark can look for better ones."""
    rows, width = x_MK.shape
    outputs = weight_NK.shape[0] // 2 if gated else weight_NK.shape[0]
    assert x_MK.stride(1) == weight_NK.stride(1) == 1, "programs read rows from end to end"
    assert residual_MN is None or residual_MN.stride(1) == 1
    out_MN = torch.empty(rows, outputs, dtype=x_MK.dtype, device=x_MK.device)
    if rows == 0:
        return out_MN
    arguments = (
        x_MK,
        weight_NK,
        weight_NK if bias_N is None else bias_N,
        weight_NK if norm is None else norm.weight_C,
        x_MK if residual_MN is None else residual_MN,
        out_MN,
        rows,
        outputs,
        width,
        x_MK.stride(0),
        weight_NK.stride(0),
        0 if residual_MN is None else residual_MN.stride(0),
        0.0 if norm is None else norm.eps,
    )
    constants: dict[str, Any] = dict(
        GATED=gated,
        ACTIVATION=activation,
        NORM=norm is not None,
        OFFSET=norm is not None and norm.offset,
        HAS_BIAS=bias_N is not None,
        HAS_RESIDUAL=residual_MN is not None,
        **launch_options(),
    )
    if takes_vector(rows, width) if path is None else path == "vector":
        blocks = vector_blocks(rows, outputs, width, gated) | (tuning or {})
        even = width % blocks["BLOCK_K"] == 0
        grid: tuple[int, ...] = ceil_div(outputs, blocks["BLOCK_N"]), ceil_div(rows, blocks["ROWS"])
        _vector[grid](*arguments, EVEN=even, ONE_PASS=width <= blocks["BLOCK_K"], **constants, **blocks)
        return out_MN
    blocks = matrix_blocks(rows, outputs, width, gated, norm is not None, x_MK.dtype, path) | (tuning or {})
    early = residual_MN is not None and width <= 2 * outputs and blocks["BLOCK_M"] == 16
    blocks = {"EARLY": early} | blocks
    space = _space(rows, outputs, gated, blocks, x_MK.device)
    grid = ceil_div(outputs, blocks["BLOCK_N"]), blocks["PARTS"] if space.divided else 1, space.row_blocks
    even = width % (blocks["BLOCK_K"] * blocks["PASSES"] * blocks["PARTS"]) == 0
    mine = 1 if space.divided else blocks["PARTS"]
    constants |= {"EVEN": even, "MINE": blocks["PARTS"] if path else mine, "COUNTED": path is not None}
    _matrix[grid](*arguments, space.sums, space.tickets, mine, **constants, **blocks)
    return out_MN


def takes_vector(rows: int, width: int) -> bool:
    """Whether so few rows are multiplied without tensor cores unless the caller says how."""
    return rows == 1 or (rows <= ROWS_AT_ONCE and width < ONE_PASS)


def vector_blocks(rows: int, outputs: int, width: int, gated: bool) -> dict[str, Any]:
    """Block sizes for one or two rows: one warp for 1,024 channels, which holds 64 or 128 weights a thread; where K is
    several passes, at least 256 programs for 132 multiprocessors, if the outputs are enough."""
    if width <= ONE_PASS:
        warps = max(power_of_two(width) // 1024, 1)
        block_n = 2 if gated or warps > 1 or outputs < 768 else 4
        rows_at_once = min(rows, ROWS_AT_ONCE)
        return {"BLOCK_N": block_n, "BLOCK_K": power_of_two(width), "ROWS": rows_at_once, "num_warps": warps}
    block_n = 1
    while block_n < (4 if gated else 8) and outputs >= 512 * block_n:
        block_n *= 2
    return {"BLOCK_N": block_n, "BLOCK_K": 512 if gated else 1024, "ROWS": 1, "num_warps": 4}


def matrix_blocks(
    rows: int, outputs: int, width: int, gated: bool, norm: bool, dtype: torch.dtype, path: Path | None
) -> dict[str, Any]:
    """Block sizes for several rows. What sets the order of a sum depends on K and N alone; the rows of a program are
    always 16 where `path` asks for the same bits, since how threads share out a block of x orders the mean square."""
    block_n, block_k = (64, 256) if dtype.itemsize == 2 else (32, 64)
    tiles = ceil_div(outputs, block_n)
    if path is not None or tiles * ceil_div(width, block_k) > MOST_PROGRAMS:
        block_k //= 2  # what a next pass needs is in registers as well
    block_k = min(block_k, max(power_of_two(width), 16))
    slices = ceil_div(width, block_k)
    passes = min(ceil_div(slices * tiles, MOST_PROGRAMS), slices)
    block_m = 32 if rows > 16 and path is None else 16
    return {
        "BLOCK_N": block_n,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
        "PASSES": passes,
        "PARTS": ceil_div(slices, passes),
        "num_warps": 4 if gated or norm or block_m == 16 else 8,
    }


@dataclass(frozen=True)
class _Space:
    """Where programs leave their sums, and how many of a tile's have done so: zeros between calls."""

    divided: bool
    row_blocks: int
    sums: Tensor  # float32 [row blocks, tiles, parts, gate and up, N, M], mean squares behind them
    tickets: Tensor  # int32 [row blocks, tiles]


def _space(rows: int, outputs: int, gated: bool, blocks: dict[str, Any], device: torch.device) -> _Space:
    """K is divided among programs as long as there are few of them: many rows are programs enough, and each adds up
    all parts of K, in the same order."""
    row_blocks, block = ceil_div(rows, blocks["BLOCK_M"]), blocks["BLOCK_N"] * blocks["BLOCK_M"]
    tiles = row_blocks * ceil_div(outputs, blocks["BLOCK_N"])
    if device not in _tickets:
        zeros = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return _Space(False, row_blocks, zeros, zeros)  # its memory is the graph's
        _tickets[device] = zeros
    tickets = _tickets[device]
    divided = blocks["PARTS"] > 1 and row_blocks <= 2 and tiles <= MOST_TILES
    numbers = tiles * blocks["PARTS"] * (block * (2 if gated else 1) + blocks["BLOCK_M"]) if divided else 1
    return _Space(divided, row_blocks, torch.empty(numbers, dtype=torch.float32, device=device), tickets)


@triton.jit
def _gains(norm_weight, at, inside, OFFSET: tl.constexpr):  # type: ignore[no-untyped-def]
    gains = tl.load(norm_weight + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        gains += 1.0
    return gains


@triton.jit
def _weights(pointers, inside, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    # A program's outputs behind the last one repeat it, so that only K needs a mask; each weight is read once, so
    # the caches need not keep it.
    if EVEN:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _vector(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    norm_weight,
    residual,
    out,
    rows,
    outputs,
    width,
    x_stride,
    weight_stride,
    residual_stride,
    eps,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    ONE_PASS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < outputs
    n = tl.minimum(n, outputs - 1)
    k = tl.arange(0, BLOCK_K)
    first = weight + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
    second = first + outputs.to(tl.int64) * weight_stride
    inside = k < width
    w = _weights(first, inside[None, :], EVEN)
    if GATED:
        w2 = _weights(second, inside[None, :], EVEN)
    if NORM:
        gains = _gains(norm_weight, k, inside, OFFSET)
    if HAS_BIAS:
        added = tl.load(bias + n).to(tl.float32)
        if GATED:
            added2 = tl.load(bias + outputs + n).to(tl.float32)
    wait_for_inputs(DEPENDENT)

    for at in tl.static_range(ROWS):
        row = tl.program_id(1).to(tl.int64) * ROWS + at
        if row < rows:
            if HAS_RESIDUAL:
                old = tl.load(residual + row * residual_stride + n).to(tl.float32)
            here = x + row * x_stride + k
            if ONE_PASS:
                values = tl.load(here, mask=inside, other=0.0).to(tl.float32)
                if NORM:
                    squares = values * values
                    values *= gains
                sums = w.to(tl.float32) * values[None, :]
                if GATED:
                    sums2 = w2.to(tl.float32) * values[None, :]
            else:
                tl.static_assert(ROWS == 1, "the weights of the first pass are gone after the first row")
                sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
                sums2 = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
                squares = tl.zeros([BLOCK_K], tl.float32)
                for start in range(0, width, BLOCK_K):
                    values = tl.load(here + start, mask=start + k < width, other=0.0).to(tl.float32)
                    if NORM:
                        squares += values * values
                        values *= gains
                    # The next pass's weights are on their way while this pass's are multiplied; there are none after
                    # the last.
                    following = start + BLOCK_K + k
                    coming = following < width
                    if NORM:
                        gains = _gains(norm_weight, following, coming, OFFSET)
                    w_now = w.to(tl.float32)
                    w = _weights(first + start + BLOCK_K, coming[None, :], False)
                    sums += w_now * values[None, :]
                    if GATED:
                        w2_now = w2.to(tl.float32)
                        w2 = _weights(second + start + BLOCK_K, coming[None, :], False)
                        sums2 += w2_now * values[None, :]
            result = tl.sum(sums, 1)
            if NORM:
                scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / width + eps)
                result *= scale
            if HAS_BIAS:
                result += added
            result = activated(result, ACTIVATION)
            if GATED:
                up = tl.sum(sums2, 1)
                if NORM:
                    up *= scale
                if HAS_BIAS:
                    up += added2
                result *= up
            if HAS_RESIDUAL:
                result += old
            tl.store(out + row * outputs + n, result.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["rows", "mine"])
def _matrix(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    norm_weight,
    residual,
    out,
    rows,
    outputs,
    width,
    x_stride,
    weight_stride,
    residual_stride,
    eps,
    space,
    tickets,
    mine,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    MINE: tl.constexpr,
    COUNTED: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PASSES: tl.constexpr,
    PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program takes MINE parts of K, of PASSES blocks each: one, or all. COUNTED: it takes `mine`, a number, so that
    the same program computes either, and its sums have the same bits."""
    if EARLY:
        start_next(DEPENDENT)
    count = MINE
    if COUNTED:
        count = mine
    divided = count < PARTS
    stop = tl.minimum(width, (tl.program_id(1) + count) * (PASSES * BLOCK_K))
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = (n < outputs)[:, None] & (m < rows)[None, :]
    n = tl.minimum(n, outputs - 1)
    k = tl.program_id(1) * (PASSES * BLOCK_K) + tl.arange(0, BLOCK_K)
    first = weight + n.to(tl.int64)[:, None] * weight_stride
    second = first + outputs.to(tl.int64) * weight_stride
    w = _weights(first + k[None, :], (k < width)[None, :], EVEN)
    if GATED:
        w2 = _weights(second + k[None, :], (k < width)[None, :], EVEN)
    if NORM:
        gains = _gains(norm_weight, k, k < width, OFFSET)
    wait_for_inputs(DEPENDENT)

    here = x + m.to(tl.int64)[None, :] * x_stride
    result = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    square = tl.zeros([BLOCK_M], tl.float32)
    for _ in range(count):
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        if COUNTED:
            # Zero, but not to the compiler, which would make dot(w, x, 0) + result one sum, rounded otherwise.
            sums += 0.0 * eps
        sums2 = sums  # of "up"
        squares = tl.zeros([BLOCK_K, BLOCK_M], tl.float32)
        for _ in range(PASSES):
            values = tl.load(here + k[:, None], mask=(k < width)[:, None] & (m < rows)[None, :], other=0.0)
            if NORM:
                exact = values.to(tl.float32)
                squares += exact * exact
                values = (exact * gains[:, None]).to(values.dtype)
            w_now = w
            if GATED:
                w2_now = w2
            if PASSES * MINE > 1:  # the next block's weights; there are none after the last
                k += BLOCK_K
                coming = k < stop
                w = _weights(first + k[None, :], coming[None, :], False)
                if GATED:
                    w2 = _weights(second + k[None, :], coming[None, :], False)
                if NORM:
                    gains = _gains(norm_weight, k, coming, OFFSET)
            sums = tl.dot(w_now, values, sums, input_precision="ieee")
            if GATED:
                sums2 = tl.dot(w2_now, values, sums2, input_precision="ieee")
        result += sums
        if GATED:
            up += sums2
        if NORM:
            square += tl.sum(squares, 0)
    if not EARLY:
        start_next(DEPENDENT)

    last = tl.program_id(0) >= 0
    if divided:
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        PART: tl.constexpr = SIZE * (2 if GATED else 1) + BLOCK_M
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        parts = space + tile.to(tl.int64) * (PARTS * PART)
        own = parts + tl.program_id(1) * PART
        at = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        squares_at = PART - BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(own + at, result)
        if GATED:
            tl.store(own + SIZE + at, up)
        if NORM:
            tl.store(own + squares_at, square)
        # All of a program's threads have stored before one of them says so; release and acquire do the rest.
        tl.debug_barrier()
        last = tl.atomic_add(tickets + tile, 1, sem="acq_rel") == PARTS - 1
        if last:
            tl.store(tickets + tile, 0)
            result = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            square = tl.zeros([BLOCK_M], tl.float32)
            for number in tl.static_range(PARTS):
                # Past the first-level cache, which may hold what stood there before.
                result += tl.load(parts + number * PART + at, cache_modifier=".cg")
                if GATED:
                    up += tl.load(parts + number * PART + SIZE + at, cache_modifier=".cg")
                if NORM:
                    square += tl.load(parts + number * PART + squares_at, cache_modifier=".cg")
    if last:
        if NORM:
            scale = 1.0 / tl.sqrt(square / width + eps)
            result *= scale[None, :]
        if HAS_BIAS:
            result += tl.load(bias + n).to(tl.float32)[:, None]
        result = activated(result, ACTIVATION)
        if GATED:
            if NORM:
                up *= scale[None, :]
            if HAS_BIAS:
                up += tl.load(bias + outputs + n).to(tl.float32)[:, None]
            result *= up
        if HAS_RESIDUAL:
            places = m.to(tl.int64)[None, :] * residual_stride + n[:, None]
            result += tl.load(residual + places, mask=real, other=0.0).to(tl.float32)
        places = m.to(tl.int64)[None, :] * outputs + n[:, None]
        tl.store(out + places, result.to(out.dtype.element_ty), mask=real)
