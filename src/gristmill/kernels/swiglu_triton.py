"""The kernel of `gated_activation`, and activations for other kernels' ends."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent_launch import launch_options, start_next, wait_for_inputs
from .sizes import ceil_div
from .swiglu import Activation

# 8 channels a thread of gate and of up: one 16-byte load of bfloat16 each.
BLOCK = 1024


def gated_activation_kernel(gate_up_N2F: Tensor, activation: Activation) -> Tensor:
    """`gated_activation` on a GPU; rows may be strided, their channels lie side by side."""
    count, width = gate_up_N2F.shape[0], gate_up_N2F.shape[1] // 2
    assert gate_up_N2F.stride(1) == 1, "a program reads a part of a row from end to end"
    out_NF = torch.empty(count, width, dtype=gate_up_N2F.dtype, device=gate_up_N2F.device)
    if count:
        _gated_activation[(count, ceil_div(width, BLOCK))](
            gate_up_N2F,
            out_NF,
            gate_up_N2F.stride(0),
            width,
            ACTIVATION=activation,
            BLOCK=BLOCK,
            num_warps=4,
            **launch_options(),
        )
    return out_NF


def silu_product_gradient_kernel(gate_up: Tensor, gradient: Tensor) -> Tensor:
    """`silu_product_gradient` on a GPU."""
    gate_up, gradient = gate_up.contiguous(), gradient.contiguous()
    out, width = torch.empty_like(gate_up), gradient.shape[-1]
    count = gradient.numel() // max(width, 1)
    if count:
        grid = (count, ceil_div(width, BLOCK))
        _silu_product_gradient[grid](gate_up, gradient, out, width, BLOCK=BLOCK, num_warps=4)
    return out


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation of that name of a float32 tensor, or x itself where it is None."""
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(y)) is sigmoid(2 y)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "relu2":
        x = tl.maximum(x, 0.0)
        x = x * x
    return x


@triton.jit
def _gated_activation(  # type: ignore[no-untyped-def]
    gate_up, out, stride, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    start_next(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * stride + at, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + at, mask=inside).to(tl.float32)
    tl.store(out + row * width + at, (activated(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_product_gradient(gate_ups, gradients, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate_up = gate_ups + row * 2 * width + at
    gate = tl.load(gate_up, mask=inside).to(tl.float32)
    up = tl.load(gate_up + width, mask=inside).to(tl.float32)
    gradient = tl.load(gradients + row * width + at, mask=inside).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate = gradient * up * share * (1 + gate * (1 - share))
    of_up = gradient * gate * share
    to = out + row * 2 * width + at
    tl.store(to, of_gate.to(out.dtype.element_ty), mask=inside)
    tl.store(to + width, of_up.to(out.dtype.element_ty), mask=inside)
