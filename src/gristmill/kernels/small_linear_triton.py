"""The kernels of `small_linear`. Both read each weight once, and sum over K in an order that K, N and the block sizes
set, never the number of rows.

*One row* (`_vector`): a program takes a few rows of the weight and all of K, multiplies in float32 and sums at the end:
a matrix-vector product has nothing for tensor cores to share. What the first pass of its loop needs is asked for before
the kernel ahead of it is done (dependent_launch.py), later passes one pass ahead: 2 to 8 rows of 1,024 channels are 4
to 16 KiB a program, and with 4 to 8 programs a multiprocessor some 50 KiB are on their way, where 3 TB/s over 132
multiprocessors with 0.8 microseconds of latency take 18.

*More rows* (`_matrix`): a program takes 16 rows of the weight and 16 of x, on tensor cores. K is cut into as
many parts as the program has warps, a warp multiplies its own part (a product of one warp after the other over all of
K would wait for each sum), and the parts are added in a fixed order at the end. Since any number of rows is padded to
16 with zeros, and a row of x is a column of its own in the product, its sum is the same whatever stands beside it.

RMSNorm costs no pass of its own: norm(x) @ W = (x * gain) @ W / rms(x), with the mean square summed along the way.
"""

from __future__ import annotations

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


def small_linear_kernel(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    gated: bool = False,
    residual_MN: Tensor | None = None,
    path: Path | None = None,
    tuning: dict[str, int] | None = None,
) -> Tensor:
    """`small_linear` on a GPU; x has the weight's type. `tuning` overrides block sizes and launch parameters, so that a
    benchmark can look for better ones."""
    rows, width = x_MK.shape
    outputs = weight_NK.shape[0] // 2 if gated else weight_NK.shape[0]
    assert x_MK.stride(1) == weight_NK.stride(1) == 1, "programs read rows from end to end"
    assert residual_MN is None or residual_MN.stride(1) == 1
    out_MN = torch.empty(rows, outputs, dtype=x_MK.dtype, device=x_MK.device)
    if rows == 0:
        return out_MN
    vector = rows == 1 if path is None else path == "vector"
    blocks = vector_blocks(outputs, width, gated) if vector else matrix_blocks(width, x_MK.dtype)
    blocks |= tuning or {}
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
    down = ceil_div(outputs, blocks["BLOCK_N"])
    if vector:
        _vector[(down, rows)](*arguments, EVEN=width % blocks["BLOCK_K"] == 0, **constants, **blocks)
    else:
        even = width % (blocks["BLOCK_K"] * blocks["PARTS"]) == 0
        _matrix[(down, ceil_div(rows, blocks["BLOCK_M"]))](*arguments, EVEN=even, **constants, **blocks)
    return out_MN


def vector_blocks(outputs: int, width: int, gated: bool) -> dict[str, int]:
    """Block sizes for one row: at least 256 programs for 132 multiprocessors, where the outputs are enough."""
    block_n = 1
    while block_n < (4 if gated else 8) and outputs >= 512 * block_n:
        block_n *= 2
    return {"BLOCK_N": block_n, "BLOCK_K": min(power_of_two(width), 512 if gated else 1024), "num_warps": 4}


def matrix_blocks(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes for several rows. All that sets the order of a sum depends on K alone, the rows of a program too:
    the mean square's order follows from how threads share out a block of x."""
    parts = 8 if width >= 2048 else 4
    return {
        "BLOCK_N": 16,
        "BLOCK_M": 16,
        "BLOCK_K": 64,
        "PARTS": parts,
        "num_warps": parts,
        "num_stages": 3 if dtype.itemsize == 2 else 2,  # what is on its way has to fit a multiprocessor
    }


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
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    row = tl.program_id(1).to(tl.int64)
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

    if HAS_RESIDUAL:
        old = tl.load(residual + row * residual_stride + n).to(tl.float32)
    x += row * x_stride
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums2 = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, width, BLOCK_K):
        inside = start + k < width
        values = tl.load(x + start + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += values * values
            values *= gains
        # The next pass's weights are on their way while this pass's are multiplied; there are none after the last.
        following = start + BLOCK_K + k
        coming = following < width
        if NORM:
            gains = _gains(norm_weight, following, coming, OFFSET)
        coming = coming[None, :]
        w_now = w.to(tl.float32)
        w = _weights(first + start + BLOCK_K, coming, False)
        sums += w_now * values[None, :]
        if GATED:
            w2_now = w2.to(tl.float32)
            w2 = _weights(second + start + BLOCK_K, coming, False)
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


@triton.jit
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
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = (n < outputs)[:, None] & (m < rows)[None, :]
    n = tl.minimum(n, outputs - 1)
    # Part p takes channels p * BLOCK_K ... of every PARTS * BLOCK_K: together the parts read rows from end to end.
    k = tl.arange(0, PARTS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    first = weight + n.to(tl.int64)[None, :, None] * weight_stride + k[:, None, :]
    second = first + outputs.to(tl.int64) * weight_stride
    here = x + m.to(tl.int64)[None, None, :] * x_stride + k[:, :, None]
    if HAS_BIAS:
        added = tl.load(bias + n).to(tl.float32)
        if GATED:
            added2 = tl.load(bias + outputs + n).to(tl.float32)
    wait_for_inputs(DEPENDENT)

    if HAS_RESIDUAL:
        places = m.to(tl.int64)[None, :] * residual_stride + n[:, None]
        old = tl.load(residual + places, mask=real, other=0.0).to(tl.float32)

    sums = tl.zeros([PARTS, BLOCK_N, BLOCK_M], tl.float32)
    sums2 = tl.zeros([PARTS, BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([PARTS, BLOCK_K, BLOCK_M], tl.float32)
    for start in range(0, width, PARTS * BLOCK_K):
        inside = start + k < width
        values = tl.load(here + start, mask=inside[:, :, None] & (m < rows)[None, None, :], other=0.0)
        if NORM:
            exact = values.to(tl.float32)
            squares += exact * exact
            values = (exact * _gains(norm_weight, start + k, inside, OFFSET)[:, :, None]).to(values.dtype)
        w = _weights(first + start, inside[:, None, :], EVEN)
        sums = tl.dot(w, values, sums, input_precision="ieee")
        if GATED:
            w2 = _weights(second + start, inside[:, None, :], EVEN)
            sums2 = tl.dot(w2, values, sums2, input_precision="ieee")
    result = tl.sum(sums, 0)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / width + eps)
        result *= scale[None, :]
    if HAS_BIAS:
        result += added[:, None]
    result = activated(result, ACTIVATION)
    if GATED:
        up = tl.sum(sums2, 0)
        if NORM:
            up *= scale[None, :]
        if HAS_BIAS:
            up += added2[:, None]
        result *= up
    if HAS_RESIDUAL:
        result += old
    places = m.to(tl.int64)[None, :] * outputs + n[:, None]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=real)
