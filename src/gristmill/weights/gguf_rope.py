"""Scaled rotary positions in GGUF files. Linear and yarn scaling are metadata; Llama 3's is a tensor of one factor per
pair of channels, which says what became of the frequencies but not with which settings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.config import RopeScaling
from ..model.positions import rotary_frequencies

_USUAL_CONTEXT = 8192  # Llama 3.1 to 3.3


def llama3_factors(scaling: RopeScaling, dim: int, theta: float) -> Tensor:
    """What llama.cpp divides each pair's frequency by, float32 `[dim / 2]`."""
    cpu = torch.device("cpu")
    return rotary_frequencies(dim, theta, None, None, cpu) / rotary_frequencies(dim, theta, scaling, None, cpu)


def llama3_scaling(factors: Tensor, dim: int, theta: float, context: int | None, where: str) -> RopeScaling | None:
    """The settings of Llama 3's scaling that give `factors` `[dim / 2]`; None where all of them are 1.

    `context` is the trained context, where the file states it. GristmillError where no settings give these factors.
    """
    if torch.allclose(factors, torch.ones_like(factors)):
        return None
    if factors.min() >= 1 - 1e-4:
        for scaling in _candidates(factors.double(), dim, theta, context):
            if torch.allclose(llama3_factors(scaling, dim, theta), factors, rtol=1e-4):
                return scaling
    raise GristmillError(f"{where} holds factors of the rotary frequencies that are not those of Llama 3's scaling")


def _candidates(factors: Tensor, dim: int, theta: float, context: int | None) -> Iterator[RopeScaling]:
    """Settings to try: the published ones, then those of a line through the pairs between the two borders.

    There, with f the factor and F the largest one, (1/f - 1/F) / (1 - 1/F) = (turns - low) / (high - low), where a pair
    turns context * frequency / 2 pi times: a line over the frequency, whose slope and height give both borders.
    """
    factor = round(float(factors.max()), 4)
    for known in (context, _USUAL_CONTEXT):
        if known:
            yield RopeScaling(kind="llama3", factor=factor, original_max_seq_len=known)
    kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (kept > 1e-3) & (kept < 1 - 1e-3)
    if between.sum() < 2:
        return
    frequencies = rotary_frequencies(dim, theta, None, None, torch.device("cpu")).double()[between]
    matrix = torch.stack((frequencies, torch.ones_like(frequencies)), dim=1)
    slope, height = torch.linalg.lstsq(matrix, kept[between]).solution.tolist()
    if height >= 0 or slope <= 0:
        return
    # Another context with borders in proportion is the same scaling, so one can be taken where none is stated.
    context = context or _USUAL_CONTEXT
    spread = context / (2 * math.pi * slope)
    low, high = round(-height * spread, 5), round((1 - height) * spread, 5)
    if 0 < low < high:
        yield RopeScaling(
            kind="llama3", factor=factor, original_max_seq_len=context, low_freq_factor=low, high_freq_factor=high
        )
