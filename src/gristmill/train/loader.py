"""Batches made ahead by a thread, so that the device does not wait for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch

T = TypeVar("T")


class _Made(NamedTuple):
    """A batch, or what making it raised."""

    number: int
    batch: Any
    error: BaseException | None


class Ahead(Generic[T]):
    """A context manager whose `get(number)` gives `make(number)`, made before it was asked for.

    `make` is a pure function; a thread calls it for `first`, `first + 1` and so on, below `stop`, and stays at most
    `depth` batches ahead. Any other number may be asked for, one beyond `stop` too: the thread goes on from there. With
    `depth` 0 there is no thread and batches are made when they are asked for. `pin` copies their tensors into
    page-locked memory, from which a GPU fetches them without stopping the host (needs CUDA). What `make` raises, `get`
    of that number raises.
    """

    def __init__(self, make: Callable[[int], T], first: int, stop: int, depth: int, pin: bool = False):
        self._make, self._stop, self._depth, self._pin = make, stop, depth, pin
        self._stalled = 0.0
        self._next = first  # the number that the thread makes next
        self._making: int | None = None  # the one that it is making; None too where that is no longer wanted
        self._made: deque[_Made] = deque()
        self._closed = False
        self._changed = threading.Condition()
        # Which GPU is current is known to each thread alone; another's would be woken by pinning.
        self._gpu = torch.cuda.current_device() if pin else None
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def __enter__(self) -> Self:
        if self._depth:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._made.clear()
            self._changed.notify_all()
        if self._depth:
            self._thread.join()

    @property
    def stall_seconds(self) -> float:
        """How long `get` has waited since this was last read; reading it begins anew at 0."""
        seconds, self._stalled = self._stalled, 0.0
        return seconds

    def get(self, number: int) -> T:
        """Batch `number`. Waits for it where it is not made yet."""
        started = time.perf_counter()
        try:
            made = self._take(number) if self._depth else self._one(number)
        finally:
            self._stalled += time.perf_counter() - started
        if made.error is not None:
            raise made.error
        batch: T = made.batch
        return batch

    def _take(self, number: int) -> _Made:
        with self._changed:
            assert self._thread.is_alive(), "batches are there inside `with` only"
            while self._made and self._made[0].number != number:
                self._made.popleft()
            if not self._made and number != (self._next if self._making is None else self._making):
                self._next, self._making = number, None
            self._stop = max(self._stop, number + 1)
            self._changed.notify_all()
            while not self._made:
                self._changed.wait()
            made = self._made.popleft()
            self._changed.notify_all()
            return made

    def _work(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        while True:
            with self._changed:
                while not self._closed and (len(self._made) >= self._depth or self._next >= self._stop):
                    self._changed.wait()
                if self._closed:
                    return
                self._making = number = self._next
                self._next += 1
            made = self._one(number)
            with self._changed:
                if self._making == number:
                    self._making = None
                    self._made.append(made)
                    self._changed.notify_all()

    def _one(self, number: int) -> _Made:
        try:
            batch = self._make(number)
            return _Made(number, pinned(batch) if self._pin else batch, None)
        except BaseException as error:  # all of them: a thread that ended without a word would leave `get` waiting
            return _Made(number, None, error)


def pinned(batch: Any) -> Any:
    """`batch` with every CPU tensor in it copied into page-locked memory; looks into lists, tuples and dataclasses."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory() if batch.device.type == "cpu" else batch
    if isinstance(batch, list):
        return [pinned(part) for part in batch]
    if type(batch) is tuple:
        return tuple(pinned(part) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: pinned(getattr(batch, field.name)) for field in fields(batch)})
    return batch
