"""A linear layer of a few rows, as decoding has them, with what stands around it in a block: RMSNorm before it, bias,
activation and residual sum behind it.

With a few rows a product costs the reading of its weights and nothing else, and libraries made for large products
read them at a fraction of what memory gives. Here they are read once. On a GPU the kernels of small_linear_triton.py
compute it, elsewhere plain torch, which is what they are tested against. Inference only.

Shape suffixes: M rows, K channels in, N channels out.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .available import has_triton
from .norms import Norm, norm_reference
from .swiglu import Activation, activate

Path = Literal["vector", "matrix"]


def most_rows(width: int) -> int:
    """Rows up to which `small_linear` of so many channels is faster than a library's product and a norm beside it."""
    return 32 if width < 4096 else 16


def small_linear(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: Activation | None = None,
    gated: bool = False,
    residual_MN: Tensor | None = None,
    path: Path | None = None,
) -> Tensor:
    """residual + act(norm(x) @ weight.T + bias), `[M, N]` in x's type; sums in float32.

    `norm` is an RMSNorm. `gated`: the first half of the weight's rows is the gate, and act(gate) * up is half as wide.
    Any M is right, up to `most_rows` it is fast. `path` "vector" computes row by row, in float32; "matrix" on tensor
    cores, 16 rows at a time. With the same path a row gives the same bits in every batch; by default one or two rows
    take the first and more the second, then up to 32 at a time. (A processor's products round as their number of rows
    says.)
    """
    assert norm is None or not norm.centred, "only RMSNorm is part of the product"
    if x_MK.is_cuda and has_triton():
        from .small_linear_triton import small_linear_kernel

        return small_linear_kernel(x_MK, weight_NK, bias_N, norm, activation, gated, residual_MN, path)
    return small_linear_reference(x_MK, weight_NK, bias_N, norm, activation, gated, residual_MN)


def small_linear_reference(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    gated: bool = False,
    residual_MN: Tensor | None = None,
) -> Tensor:
    """`small_linear` in plain torch."""
    if norm is not None:
        x_MK = norm_reference(x_MK, norm).to(x_MK.dtype)
    out_MN = F.linear(x_MK, weight_NK, bias_N)
    if gated:
        gate, up = out_MN.chunk(2, dim=-1)
        out_MN = (gate if activation is None else activate(gate, activation)) * up
    elif activation is not None:
        out_MN = activate(out_MN, activation)
    return out_MN if residual_MN is None else out_MN + residual_MN
