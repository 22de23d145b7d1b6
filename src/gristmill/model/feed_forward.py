"""The feed-forward layer: gated (SwiGLU, GeGLU) or not (GELU, ReLU, squared ReLU)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.available import has_triton
from ..kernels.swiglu import silu_product
from .config import ModelShape
from .linear import project


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
}


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), where gate and up come from one product, or down(act(up(x)))."""

    def __init__(self, config: ModelShape, intermediate_size: int | None = None):
        super().__init__()
        wide = intermediate_size or config.intermediate_size
        self.activation = ACTIVATIONS[config.activation]
        if config.gated:
            self.gate_up = nn.Linear(config.hidden_size, 2 * wide, bias=config.mlp_bias)
        else:
            self.up = nn.Linear(config.hidden_size, wide, bias=config.mlp_bias)
        self.gated = config.gated
        self.has_kernel = config.gated and config.activation == "silu" and has_triton()
        self.down = nn.Linear(wide, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if not self.gated:
            return project(self.down, self.activation(project(self.up, x_BTC)))
        gate_up = project(self.gate_up, x_BTC)
        if self.has_kernel and gate_up.is_cuda and torch.compiler.is_compiling():
            return self.down(silu_product(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return project(self.down, self.activation(gate) * up)
