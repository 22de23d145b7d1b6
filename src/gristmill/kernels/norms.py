"""Norms of a step's tokens, each with the sum around it in the same pass over memory.

A pre-norm block adds and then norms (`add_norm`), one that norms its layers' outputs norms and then adds (`norm_add`).
On a GPU both are one kernel (norms_triton.py), elsewhere plain torch, which is what the kernel is tested against.
Inference only: nothing here is differentiable. A row's result depends on that row alone, bit for bit.

Shape suffixes: N tokens, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .available import has_triton


class Norm(NamedTuple):
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm (Ba et al. 2016) if `centred`. `offset`: gains are 1 + weight."""

    weight_C: Tensor
    eps: float
    bias_C: Tensor | None = None
    centred: bool = False
    offset: bool = False


def add_norm(x_NC: Tensor, norm: Norm, residual_NC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual), both in x's type; without a residual the second is x itself.

    The sum is rounded before it is normed, so that what is normed is what the next layers see.
    """
    if x_NC.is_cuda and has_triton():
        from .norms_triton import add_norm_kernel

        return add_norm_kernel(x_NC, norm, residual_NC)
    return add_norm_reference(x_NC, norm, residual_NC)


def norm_add(x_NC: Tensor, norm: Norm, residual_NC: Tensor) -> Tensor:
    """residual + norm(x), in x's type."""
    if x_NC.is_cuda and has_triton():
        from .norms_triton import norm_add_kernel

        return norm_add_kernel(x_NC, norm, residual_NC)
    return norm_add_reference(x_NC, norm, residual_NC)


def add_norm_reference(x_NC: Tensor, norm: Norm, residual_NC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`add_norm` in plain torch."""
    total_NC = x_NC if residual_NC is None else x_NC + residual_NC
    return norm_reference(total_NC, norm).to(x_NC.dtype), total_NC


def norm_add_reference(x_NC: Tensor, norm: Norm, residual_NC: Tensor) -> Tensor:
    """`norm_add` in plain torch."""
    return (norm_reference(x_NC, norm) + residual_NC.float()).to(x_NC.dtype)


def norm_reference(x_NC: Tensor, norm: Norm) -> Tensor:
    """norm(x) in float32."""
    gains_C = norm.weight_C.float() + 1.0 if norm.offset else norm.weight_C.float()
    if not norm.centred:
        return F.rms_norm(x_NC.float(), gains_C.shape, gains_C, norm.eps)
    bias_C = None if norm.bias_C is None else norm.bias_C.float()
    return F.layer_norm(x_NC.float(), gains_C.shape, gains_C, bias_C, norm.eps)
