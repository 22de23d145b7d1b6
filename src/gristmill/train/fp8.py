"""Linear layers whose three products run in 8 bits (Micikevicius et al. 2022, "FP8 Formats for Deep Learning").

Activations and weights are rounded to E4M3, gradients, which spread wider, to E5M2. Each tensor is first scaled so that
its largest magnitude is the format's largest number; the scale is taken from the tensor itself (tensorwise, dynamic),
so there is no history to go stale. Sums are float32 inside a product, and what comes out has the type of the input.
Weights and their gradients stay what they were.

Shape suffixes: M rows (tokens), K in features, N out features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.autocast import autocast_dtype, without_autocast
from ..plan.activations import SMALLEST_FP8_WEIGHT, multiplied_in_fp8

FORWARD_TYPE = torch.float8_e4m3fn
GRADIENT_TYPE = torch.float8_e5m2

TILE = 16  # the hardware multiplies 8 bits in sizes that are a multiple of it
SMALLEST_SCALE = 1e-12  # of amax: a tensor of zeros is divided by it instead of by zero


class Float8Linear(nn.Linear):
    """`nn.Linear` with products in 8 bits while gradients are taken, and as it was otherwise: evaluation and what is
    exported see the weights themselves."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        kind = x.device.type
        dtype = autocast_dtype(kind) or x.dtype
        with without_autocast(kind):
            rows = x.flatten(0, -2).to(dtype)
            missing = -len(rows) % TILE
            if missing:  # rows of zeros, which add nothing to any sum and are no new largest number
                y: Tensor = _Float8Product.apply(F.pad(rows, (0, 0, 0, missing)), self.weight)[: len(rows)]
            else:
                y = _Float8Product.apply(rows, self.weight)
            y = y.unflatten(0, x.shape[:-1])
            return y if self.bias is None else y + self.bias.to(dtype)


def use_fp8(model: nn.Module, smallest_weight: int = SMALLEST_FP8_WEIGHT) -> int:
    """Make the blocks' linear layers of `model` multiply in 8 bits, in place; how many. Names of parameters and the
    parameters themselves stay.

    Left as they are: what is outside of blocks (embeddings, heads), routers, mixtures of experts (one tensor for all,
    not linear layers), widths that are no multiple of 16, which the hardware does not take (rows are filled up to it),
    and weights of fewer than `smallest_weight` numbers.
    """
    found = 0
    for name, module in list(model.named_modules()):
        if "blocks." not in name:
            continue
        for child_name, child in list(module.named_children()):
            if type(child) is nn.Linear and child_name != "router" and _takes(child, smallest_weight):
                setattr(module, child_name, _swapped(child))
                found += 1
    return found


def _takes(linear: nn.Linear, smallest_weight: int) -> bool:
    return multiplied_in_fp8(linear.in_features, linear.out_features, smallest_weight)


def _swapped(linear: nn.Linear) -> Float8Linear:
    with torch.device("meta"):
        swapped = Float8Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    swapped.weight, swapped.bias = linear.weight, linear.bias
    return swapped.train(linear.training)


class _Float8Product(torch.autograd.Function):
    """x_MK @ weight_NK.T. The rounded x is what backward keeps, at one byte a number; the weight is rounded again."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        x8, x_scale = to_float8(x_MK, FORWARD_TYPE)
        weight8, weight_scale = to_float8(weight_NK, FORWARD_TYPE)
        ctx.save_for_backward(x8, x_scale, weight_NK)
        return scaled_product(x8, x_scale, weight8.t(), weight_scale, x_MK.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_scale, weight_NK = ctx.saved_tensors
        (grad_MN,) = grad_outputs
        grad8, grad_scale = to_float8(grad_MN, GRADIENT_TYPE)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            weight8, weight_scale = to_float8(weight_NK, FORWARD_TYPE)
            grad_x = scaled_product(grad8, grad_scale, weight8, weight_scale, grad_MN.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = scaled_product(grad8.t(), grad_scale, x8, x_scale, grad_MN.dtype).to(weight_NK.dtype)
        return grad_x, grad_weight


def to_float8(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`tensor` rounded to 8 bits, and the float32 scalar that multiplied by it gives `tensor` back: amax / largest
    number of the format. A tensor that is not finite comes back not finite."""
    largest = torch.finfo(dtype).max
    scale = tensor.abs().amax().float().clamp(min=SMALLEST_SCALE) / largest
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype), scale


def scaled_product(
    a_MK: Tensor, a_scale: Tensor, b_KN: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False
) -> Tensor:
    """(a * a_scale) @ (b * b_scale), `[M, N]` in `dtype`, of tensors of 8 bits whose sizes are multiples of `TILE`.

    `fast` sums in the tensor cores' own, shorter registers, which is good enough for a forward pass. Where the hardware
    multiplies no 8 bits the same rounded numbers are multiplied in float32, which holds their products exactly.
    """
    if float8_runs(a_MK.device):
        a, b = a_MK.contiguous(), b_KN.t().contiguous().t()  # the layouts that the product takes: rows by columns
        return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)
    return (a_MK.float() @ b_KN.float() * (a_scale * b_scale)).to(dtype)


def float8_runs(device: torch.device) -> bool:
    """Whether the device multiplies 8 bits itself: compute capability 8.9 or more."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
