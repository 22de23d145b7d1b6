"""INT8 weights, symmetric, one step per output row, rounded to nearest: no calibration, no change of the model's code.

A row w becomes round(w / scale) with scale = max|w| / 127.5, the convention of compressed-tensors: half of the 255
steps between -128 and 127. Each weight moves by at most half a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GristmillError
from ..weights.compressed import QuantizedRows
from ..weights.compressed import dequantize as dequantize

LOW, HIGH = -128, 127


def quantize_rows(weight: Tensor, name: str, scale_dtype: torch.dtype = torch.float32) -> QuantizedRows:
    """A matrix `[out, in]` of any floating type as int8 and one scale per row, `[out, 1]` in `scale_dtype`.

    Holds |w - values * scale| <= scale / 2 (but for float32's own rounding), also with 16-bit scales, which are
    rounded up. A row of zeros stays zeros. GristmillError names the tensor `name` if it holds NaN or infinity.
    """
    if not torch.isfinite(weight).all():
        raise GristmillError(f"{name} holds NaN or infinity; it cannot be quantized")
    weight = weight.float()
    exact = weight.abs().amax(dim=1, keepdim=True) / ((HIGH - LOW) / 2)
    scale = _round_up(exact, scale_dtype)
    if not torch.isfinite(scale).all():
        raise GristmillError(f"{name} holds weights too large for scales of {scale_dtype}; use dtype float32")
    # Any step represents zeros; the smallest number above 0 could turn 0 / scale into NaN in other readers.
    scale = torch.where(scale == 0, torch.finfo(scale_dtype).eps, scale)
    values = (weight / scale.float()).round().clamp(LOW, HIGH).to(torch.int8)
    return QuantizedRows(values, scale)


def relative_error(weight: Tensor, quantized: QuantizedRows) -> float:
    """||w - dequantized|| / ||w|| in the Frobenius norm; 0 for a matrix of zeros."""
    norm = weight.float().norm()
    return float((weight.float() - dequantize(quantized)).norm() / norm) if norm > 0 else 0.0


def _round_up(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest numbers of `dtype` that are not below `scale` (>= 0, float32)."""
    rounded = scale.to(dtype)
    if dtype == torch.float32:
        return rounded
    # The bit patterns of numbers above 0 are in the order of the numbers, so the next one up is the pattern plus 1.
    next_up = (rounded.view(torch.int16) + 1).view(dtype)
    return torch.where(rounded.float() < scale, next_up, rounded)
