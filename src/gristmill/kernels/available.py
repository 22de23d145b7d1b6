"""Whether kernels can be compiled here."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Triton is found; it comes with torch's builds for GPUs."""
    return find_spec("triton") is not None
