"""The gated part of a feed-forward layer: activation(gate) * up, of the product that holds both side by side.

Shape suffixes: N tokens, F intermediate_size.
"""

from __future__ import annotations

from typing import Literal

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


def activate(x: Tensor, activation: Activation) -> Tensor:
    """activation(x), by the names that a model's config has."""
    if activation == "silu":
        return F.silu(x)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    x = F.relu(x)
    return x if activation == "relu" else torch.square(x)
