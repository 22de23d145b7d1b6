"""What a decoding step reads from the tables of running sequences, and what it writes back.

A row of the tables is a slot's: its tokens, and the place of the one that the model sees next. Rows whose place is -1
pad a batch: they read a token that means nothing and write nothing. Nothing here waits for the device, so a CUDA graph
can hold it.

Shape suffixes: S slots, L most tokens of a sequence, B rows of the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .available import has_triton


class DecodeInputs(NamedTuple):
    """A step's tokens: int64 ids and places (-1 pads), and int32 lengths of their sequences with them (0 pads)."""

    ids_B: Tensor
    positions_B: Tensor
    lengths_B: Tensor


def decode_inputs(tokens_SL: Tensor, places_S: Tensor, slots_B: Tensor) -> DecodeInputs:
    """The next token of each slot; `tokens_SL` and `places_S` are int64, `slots_B` int32."""
    if tokens_SL.is_cuda and has_triton():
        from .decode_tables_triton import decode_inputs_kernel

        return DecodeInputs(*decode_inputs_kernel(tokens_SL, places_S, slots_B))
    positions_B = places_S[slots_B]
    return DecodeInputs(tokens_SL[slots_B, positions_B.clamp(min=0)], positions_B, (positions_B + 1).int())


def keep_drawn(tokens_SL: Tensor, places_S: Tensor, slots_B: Tensor, drawn_B: Tensor) -> None:
    """Write each drawn token (int64) behind the one that it was drawn after, as the next that the model sees. One that
    ends a full row has no place, and no step that would read it."""
    if tokens_SL.is_cuda and has_triton():
        from .decode_tables_triton import keep_drawn_kernel

        keep_drawn_kernel(tokens_SL, places_S, slots_B, drawn_B)
        return
    positions_B = places_S[slots_B]
    fits_B = (positions_B >= 0) & (positions_B + 1 < tokens_SL.shape[1])
    tokens_SL[slots_B[fits_B], positions_B[fits_B] + 1] = drawn_B[fits_B]
    places_S[slots_B] = torch.where(positions_B < 0, -1, positions_B + 1)


def write_tokens(
    tokens_SL: Tensor, slots_B: Tensor, places_B: Tensor, new_B: Tensor, there_B: Tensor | None = None
) -> None:
    """Write a token into each slot's row (int64 all), but where `there_B` is false. One that ends a full row has no
    place, and no step that would read it."""
    at_B = places_B.clamp(max=tokens_SL.shape[1] - 1)
    fits_B = places_B < tokens_SL.shape[1]
    written_B = fits_B if there_B is None else fits_B & there_B
    tokens_SL[slots_B, at_B] = torch.where(written_B, new_B, tokens_SL[slots_B, at_B])
