"""Sizes of blocks and grids in plain Python: Triton's own functions of this kind cost microseconds a call, as much as a
launch, and are called several times before each."""

from __future__ import annotations


def ceil_div(number: int, by: int) -> int:
    """How many times `by` it takes to cover `number`."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`, 1 at least."""
    return 1 << max(number - 1, 0).bit_length()
