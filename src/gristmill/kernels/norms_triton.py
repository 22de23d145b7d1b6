"""The kernel of `add_norm` and `norm_add`: a program a row, which it holds whole in registers.

So a row is read once and written once, and the order of its sums is set by its width and by nothing else.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent_launch import launch_options, start_next, wait_for_inputs
from .norms import Norm
from .sizes import power_of_two


def add_norm_kernel(x_NC: Tensor, norm: Norm, residual_NC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`add_norm` on a GPU; `x_NC` and the residual are read by rows, whose channels lie side by side."""
    normed_NC = torch.empty_like(x_NC, memory_format=torch.contiguous_format)
    if residual_NC is None:
        _launch(x_NC, norm, x_NC, normed_NC, normed_NC, add_before=False, add_after=False)
        return normed_NC, x_NC
    total_NC = torch.empty_like(normed_NC)
    _launch(x_NC, norm, residual_NC, normed_NC, total_NC, add_before=True, add_after=False)
    return normed_NC, total_NC


def norm_add_kernel(x_NC: Tensor, norm: Norm, residual_NC: Tensor) -> Tensor:
    """`norm_add` on a GPU."""
    out_NC = torch.empty_like(x_NC, memory_format=torch.contiguous_format)
    _launch(x_NC, norm, residual_NC, out_NC, out_NC, add_before=False, add_after=True)
    return out_NC


def _launch(
    x_NC: Tensor, norm: Norm, residual_NC: Tensor, out_NC: Tensor, total_NC: Tensor, add_before: bool, add_after: bool
) -> None:
    count, width = x_NC.shape
    assert x_NC.stride(1) == residual_NC.stride(1) == 1, "a program reads a row from end to end"
    if count == 0:
        return
    block = power_of_two(width)
    _norm[(count,)](
        x_NC,
        residual_NC,
        norm.weight_C,
        norm.weight_C if norm.bias_C is None else norm.bias_C,
        out_NC,
        total_NC,
        x_NC.stride(0),
        residual_NC.stride(0),
        width,
        norm.eps,
        CENTRED=norm.centred,
        OFFSET=norm.offset,
        HAS_BIAS=norm.bias_C is not None,
        ADD_BEFORE=add_before,
        ADD_AFTER=add_after,
        BLOCK=block,
        # 8 channels a thread, one 16-byte load of bfloat16; wide rows take more, there being no more threads.
        num_warps=min(max(block // 256, 1), 16),
        **launch_options(),
    )


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x,
    residual,
    weight,
    bias,
    out,
    total,
    x_stride,
    residual_stride,
    width,
    eps,
    CENTRED: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD_BEFORE: tl.constexpr,
    ADD_AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    start_next(DEPENDENT)
    # Weights are no other kernel's output: they are on their way while the one before this one ends.
    gains = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        gains += 1.0
    if HAS_BIAS:
        shifts = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(DEPENDENT)
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD_BEFORE or ADD_AFTER:
        others = tl.load(residual + row * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD_BEFORE:
        rounded = (values + others).to(total.dtype.element_ty)
        tl.store(total + row * width + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    if CENTRED:
        values = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    values *= gains / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    if HAS_BIAS:
        values += shifts
    if ADD_AFTER:
        values += others
    tl.store(out + row * width + at, values.to(out.dtype.element_ty), mask=inside)
