"""The kernel of cached_read.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cached_read import PROGRAMS, TILE, TILES


def cached_read_kernel(out: Tensor, programs: int | None, rounds: int) -> Tensor:
    device = out.device
    if programs is None:
        programs = PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    tiles = torch.ones(programs * TILES * TILE, device=device)
    sums = torch.empty(programs, device=device)
    _cached_read[(programs,)](tiles, sums, ROUNDS=rounds, TILE=TILE, TILES=TILES, num_warps=8)
    return sums


@triton.jit
def _cached_read(tiles, sums, ROUNDS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    at = tiles + program * TILES * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for number in range(ROUNDS):
        total += tl.load(at + (number % TILES) * TILE)
    tl.store(sums + program, tl.sum(total, axis=0))
