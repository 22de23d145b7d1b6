"""Reading small tiles again and again: how fast a GPU's multiprocessors read their own memory, the first-level cache
that shared memory is a part of. For measuring alone (plan/calibrate.py); there is nothing to it but the time it takes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

TILE, TILES, ROUNDS = 4096, 2, 2048  # floats of a tile, tiles of a program, how often it reads one
PROGRAMS = 2  # a multiprocessor


def read_bytes(torch: Any) -> int:
    """Bytes that one `cached_read` reads on the present GPU."""
    units: int = torch.cuda.get_device_properties(0).multi_processor_count
    return units * PROGRAMS * ROUNDS * TILE * 4


def cached_read(out: Tensor, programs: int | None = None, rounds: int = ROUNDS) -> Tensor:
    """Each of `programs` (two a multiprocessor, unless given) reads tiles of its own `rounds` times. `out`, float32
    `[1]`, tells the device; the sums of the programs' tiles are returned, float32 `[programs]`."""
    from .cached_read_triton import cached_read_kernel

    return cached_read_kernel(out, programs, rounds)
