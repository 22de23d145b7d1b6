"""What autocast makes of products, asked in a way that compilers of several versions of torch can follow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Asked once: of `is_autocast_available` itself torch 2.11's compiler knows nothing and leaves the program there.
KINDS = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The type that autocast computes products in on a kind of device; None where it is off or there is none."""
    return torch.get_autocast_dtype(kind) if kind in KINDS and torch.is_autocast_enabled(kind) else None


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """A context in which operators on a kind of device compute in the types they are given."""
    return nullcontext() if autocast_dtype(kind) is None else torch.autocast(kind, enabled=False)
