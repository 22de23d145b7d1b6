"""How the model calls its linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels.cpu_linear import cpu_linear, fits


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`; of a plain linear layer on a CPU its product by the faster library. A layer of another kind
    (quantized, with adapters) or with hooks is called as it is."""
    if type(layer) is nn.Linear and fits(x, layer.weight) and not (layer._forward_hooks or layer._forward_pre_hooks):
        return cpu_linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out
