"""Models without weights: what a model is made of, before tensors from elsewhere take the places of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def undrawn() -> Iterator[None]:
    """Modules made here have parameters on torch's device "meta", which take no memory, and what torch's own layers
    draw for them is left out.

    Drawing there would do nothing either, but torch imports its whole compiler for a normal distribution: two seconds
    of a process that means to load a model and answer (torch 2.11 and 2.13).
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", *args[:1])
        return func(*args, **(kwargs or {}))
