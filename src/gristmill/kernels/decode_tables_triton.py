"""The kernels of decode_tables.py: one program for all rows, which are few numbers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import power_of_two


def decode_inputs_kernel(tokens_SL: Tensor, places_S: Tensor, slots_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`decode_inputs` on a GPU."""
    rows = slots_B.shape[0]
    ids_B, positions_B = torch.empty(2, rows, dtype=torch.int64, device=slots_B.device)
    lengths_B = torch.empty(rows, dtype=torch.int32, device=slots_B.device)
    _decode_inputs[(1,)](
        tokens_SL,
        places_S,
        slots_B,
        ids_B,
        positions_B,
        lengths_B,
        rows,
        tokens_SL.stride(0),
        BLOCK=power_of_two(max(rows, 32)),
        num_warps=4,
    )
    return ids_B, positions_B, lengths_B


def keep_drawn_kernel(tokens_SL: Tensor, places_S: Tensor, slots_B: Tensor, drawn_B: Tensor) -> None:
    """`keep_drawn` on a GPU."""
    rows = slots_B.shape[0]
    _keep_drawn[(1,)](
        tokens_SL,
        places_S,
        slots_B,
        drawn_B,
        rows,
        tokens_SL.shape[1],
        tokens_SL.stride(0),
        drawn_B.stride(0),
        BLOCK=power_of_two(max(rows, 32)),
        num_warps=4,
    )


@triton.jit
def _decode_inputs(  # type: ignore[no-untyped-def]
    tokens, places, slots, ids, positions, lengths, rows, stride, BLOCK: tl.constexpr
):
    at = tl.arange(0, BLOCK)
    inside = at < rows
    slot = tl.load(slots + at, mask=inside, other=0).to(tl.int64)
    place = tl.load(places + slot, mask=inside, other=-1)
    token = tl.load(tokens + slot * stride + tl.maximum(place, 0), mask=inside, other=0)
    tl.store(ids + at, token, mask=inside)
    tl.store(positions + at, place, mask=inside)
    tl.store(lengths + at, (place + 1).to(tl.int32), mask=inside)


@triton.jit
def _keep_drawn(  # type: ignore[no-untyped-def]
    tokens, places, slots, drawn, rows, longest, stride, drawn_stride, BLOCK: tl.constexpr
):
    at = tl.arange(0, BLOCK)
    inside = at < rows
    slot = tl.load(slots + at, mask=inside, other=0).to(tl.int64)
    place = tl.load(places + slot, mask=inside, other=-1)
    token = tl.load(drawn + at * drawn_stride, mask=inside, other=0)
    runs = place >= 0
    tl.store(tokens + slot * stride + place + 1, token, mask=runs & (place + 1 < longest))
    tl.store(places + slot, place + 1, mask=runs)
