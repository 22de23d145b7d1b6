"""One step of AdamW for one large tensor: everything is read once and written once.

torch's fused kernel takes many tensors at a time, which is what small ones need; with large ones it moves 1.8 TB/s on
an H100, this one what the memory gives.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .sizes import ceil_div

BLOCK = 2048


def adamw_kernel(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rates: Tensor,
    grad_scale: Tensor,
    found_inf: Tensor,
    betas: tuple[float, float],
    decay: float,
    eps: float,
) -> None:
    """weight <- (1 - decay) weight - rates[0] m / (rates[1] sqrt(v) + eps), with m and v the running means of the
    gradient over `grad_scale` and of its square (Loshchilov & Hutter 2017, algorithm 2).

    All four tensors are contiguous and of one size, in any types; sums are in float32. `rates` are float32 `[2]`: the
    learning rate over the first mean's bias, and one over the root of the second's. Nothing changes where `found_inf`
    is 1. `rates`, `grad_scale` and `found_inf` lie on the device and are not read by the host.
    """
    count = weight.numel()
    _adamw[(ceil_div(count, BLOCK),)](
        weight,
        gradient,
        exp_avg,
        exp_avg_sq,
        rates,
        grad_scale,
        found_inf,
        count,
        1.0 - betas[0],
        1.0 - betas[1],
        1.0 - decay,
        eps,
        BLOCK=BLOCK,
        num_warps=8,
    )


@triton.jit
def _adamw(  # type: ignore[no-untyped-def]
    weights,
    gradients,
    firsts,
    seconds,
    rates,
    grad_scale,
    found_inf,
    count,
    new1,
    new2,
    kept,
    eps,
    BLOCK: tl.constexpr,
):
    if tl.load(found_inf) != 0.0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gradient = tl.load(gradients + at, mask=inside).to(tl.float32) / tl.load(grad_scale)
    first = tl.load(firsts + at, mask=inside).to(tl.float32)
    second = tl.load(seconds + at, mask=inside).to(tl.float32)
    weight = tl.load(weights + at, mask=inside).to(tl.float32) * kept
    first += new1 * (gradient - first)
    second += new2 * (gradient * gradient - second)
    weight -= tl.load(rates) * first / (tl.sqrt(second) * tl.load(rates + 1) + eps)
    tl.store(firsts + at, first.to(firsts.dtype.element_ty), mask=inside)
    tl.store(seconds + at, second.to(seconds.dtype.element_ty), mask=inside)
    tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=inside)
