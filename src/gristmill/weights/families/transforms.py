"""The ways in which published tensors differ from ours by more than their names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .family import Transform

# GPT-2 keeps its matrices as `[in, out]`.
TRANSPOSED = Transform(load=lambda stored: stored.transpose(0, 1), save=lambda ours: ours.transpose(0, 1))


def interleaved_rows(heads: int, before: int, rotary: int, after: int = 0) -> Transform:
    """Rows of `heads` heads, each of `before` channels, `rotary` that turn, and `after`.

    Stored, the two channels of a rotary pair stand side by side (the layout of RoFormer, kept by DeepSeek and
    llama.cpp); ours stand `rotary / 2` apart.
    """

    def load(stored: Tensor) -> Tensor:
        return reorder(stored, lambda turning: turning.unflatten(1, (rotary // 2, 2)))

    def save(ours: Tensor) -> Tensor:
        return reorder(ours, lambda turning: turning.unflatten(1, (2, rotary // 2)))

    def reorder(rows: Tensor, in_pairs: Callable[[Tensor], Tensor]) -> Tensor:
        first, turning, last = rows.unflatten(0, (heads, -1)).split([before, rotary, after], dim=1)
        turning = in_pairs(turning).transpose(1, 2).flatten(1, 2)
        return torch.cat((first, turning, last), dim=1).flatten(0, 1)

    return Transform(load, save)


def fused_heads(heads: int) -> Transform:
    """Queries, keys and values stored head by head (GPT-NeoX): q, k and v of head 0, then those of head 1."""

    def load(stored: Tensor) -> Tensor:
        return stored.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    def save(ours: Tensor) -> Tensor:
        return ours.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)

    return Transform(load, save)
