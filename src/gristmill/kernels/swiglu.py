"""The gated part of a feed-forward layer: activation(gate) * up, of the product that holds both side by side.

Shape suffixes: N tokens, F intermediate_size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .available import has_triton

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


def gated_activation(gate_up_N2F: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up (SwiGLU and its kin, Shazeer 2020), `[N, F]` in the input's type; computed in float32 and
    rounded once. The gate is the first half of each row. Inference only."""
    if gate_up_N2F.is_cuda and has_triton():
        from .swiglu_triton import gated_activation_kernel

        return gated_activation_kernel(gate_up_N2F, activation)
    return gated_activation_reference(gate_up_N2F, activation)


def gated_activation_reference(gate_up_N2F: Tensor, activation: Activation) -> Tensor:
    """`gated_activation` in plain torch."""
    gate_NF, up_NF = gate_up_N2F.float().chunk(2, dim=-1)
    return (activate(gate_NF, activation) * up_NF).to(gate_up_N2F.dtype)


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of `[..., 2F]`, `[..., F]`, for compiled training: the compiler makes the forward pass, and the
    gradient is one kernel. Left to the compiler it is a concatenation that reads its inputs once for each half."""
    product: Tensor = _SiluProduct.apply(gate_up)
    return product


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gradient: Tensor = silu_product_gradient(gate_up, grad_outputs[0])
        return gradient


@torch.library.custom_op("gristmill::silu_product_gradient", mutates_args=())
def silu_product_gradient(gate_up: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of silu(gate) * up, `[..., 2F]` as `gate_up`, from that of the product, `[..., F]`; computed in
    float32 and rounded once."""
    if gate_up.is_cuda and has_triton():
        from .swiglu_triton import silu_product_gradient_kernel

        return silu_product_gradient_kernel(gate_up, gradient)
    gate, up = gate_up.float().chunk(2, dim=-1)
    share = torch.sigmoid(gate)
    of_gate = gradient * up * share * (1 + gate * (1 - share))
    return torch.cat((of_gate, gradient * gate * share), dim=-1).to(gate_up.dtype)


@silu_product_gradient.register_fake
def _(gate_up: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(gate_up, memory_format=torch.contiguous_format)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """activation(x), by the names that a model's config has."""
    if activation == "silu":
        return F.silu(x)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    x = F.relu(x)
    return x if activation == "relu" else torch.square(x)
