"""RMSNorm and LayerNorm, plain or with gains of 1 + weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autocast import without_autocast
from .config import ModelShape


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) in the type of its input: under autocast the weight is float32, torch would
    leave its fused kernel where the two differ, and on a GPU it would make the result float32."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device.type):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) in the type of its input, as `RMSNorm` is."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with without_autocast(x.device.type):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class OffsetRMSNorm(nn.Module):
    """RMSNorm that multiplies by 1 + weight in float32, as Gemma does: a weight near 0 keeps
    its bits in bfloat16, one near 1 would not."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


class OffsetLayerNorm(nn.Module):
    """LayerNorm (Ba et al. 2016) that multiplies by 1 + weight (Nemotron's layernorm1p)."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), bias, self.eps).to(x.dtype)


def build_norm(config: ModelShape, width: int | None = None) -> nn.Module:
    """A norm of the kind that `config` names, over `width` channels (hidden_size by default)."""
    width = width or config.hidden_size
    if config.norm == "layernorm":
        if config.norm_unit_offset:
            return OffsetLayerNorm(width, config.norm_eps, config.norm_bias)
        return LayerNorm(width, config.norm_eps, bias=config.norm_bias)
    return build_rms_norm(config, width)


def build_rms_norm(config: ModelShape, width: int) -> nn.Module:
    """What queries and keys are normed with, whatever the kind of the other norms."""
    if config.norm_unit_offset:
        return OffsetRMSNorm(width, config.norm_eps)
    return RMSNorm(width, eps=config.norm_eps)
