"""Optimizer state that lies in host memory or in files, and visits the device portion by portion.

While a portion is updated the next one is on its way to the device and the last one on its way back, each in a CUDA
stream of its own; what lies in files is read and written by threads, through pinned memory. On a CPU state in host
memory is where it would be anyway, and state in files is updated in place, in their mapped pages.

What it costs on a GPU is the time of copying the state there and back, both ways at once, less that of computing the
updates: with AdamW 8 bytes a parameter each way, 0.3 s a step for a billion parameters at 25 GB/s.
On a CPU, AdamW's update of 5.4M parameters takes 12 ms, and 13 ms in files that fit into memory's cache: nothing beside
the 3.8 s of forward and backward over 1,024 tokens. Where they do not fit the disk's speed is the limit.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import GristmillError
from .base import Portion, Residence, State

PORTION_ELEMENTS = 2**24  # of parameters in a portion
SLOTS = 3  # portions on the device at a time: one arrives, one is updated, one leaves
FIRST_BLOCK, LARGEST_BLOCK = 2**22, 2**30  # bytes; each block is twice the one before
ALIGNMENT = 256  # bytes; where a tensor begins in a block or slot
Copies = Sequence[tuple[Tensor, Tensor]]  # to, from


class HostMemory(Residence):
    """State in host memory, pinned where there is a GPU; counts of steps stay on the device."""

    def __init__(self, device: torch.device, staged: bool | None = None):
        """`staged`: whether state is copied to be updated, as it is wherever the device is not the CPU."""
        super().__init__()
        self.device = device
        self.staged = device.type != "cpu" if staged is None else staged
        self.elements = PORTION_ELEMENTS if self.staged else None
        self._block: Tensor | None = None
        self._used = 0
        self._slots = Slots(device)
        self._up, self._down = Lane(device), Lane(device)
        self._left: Any = None  # when all that left the device until now is back

    def place(self, state: State) -> State:
        return {key: value if value.dim() == 0 else self._carve(value).copy_(value) for key, value in state.items()}

    def stream(self, portions: Iterable[Portion]) -> Iterator[Portion]:
        if not self.staged:
            yield from portions
            return
        todo = list(portions)
        if not todo:
            return
        self._begin(todo)
        arrived = self._arrive(0, todo[0], after=[self._up.now(), self._left])
        for number, portion in enumerate(todo):
            visiting, ready = arrived
            self._up.computes_after(ready)
            yield visiting
            computed = self._down.now()
            if number + 1 < len(todo):
                arrived = self._arrive(number + 1, todo[number + 1])
            self._left = self._slots.free[number % SLOTS] = self._leave(number, visiting, portion, computed)

    def settle(self) -> None:
        self._down.settle()

    def _begin(self, todo: Sequence[Portion]) -> None:
        """Before the first portion of a step."""
        self._slots.reserve(max(_bytes(portion.states) for portion in todo))

    def _arrive(self, number: int, portion: Portion, after: Sequence[Any] = ()) -> tuple[Portion, Any]:
        """Begin to copy the portion's states to the device: the portion with states there, and when they are."""
        slot = number % SLOTS
        states = self._slots.views(slot, portion.states)
        pairs = _pairs(states, self._source(number, portion))
        ready = self._up.copy(pairs, [*after, self._slots.free[slot]])
        return Portion(portion.group, portion.parameters, states), ready

    def _leave(self, number: int, visiting: Portion, portion: Portion, computed: Any) -> Any:
        """Begin to copy states back; when that is done."""
        return self._down.copy(_pairs(portion.states, visiting.states), [computed])

    def _source(self, number: int, portion: Portion) -> list[State]:
        """The portion's states, in memory that copies to the device can start from."""
        return portion.states

    def _carve(self, like: Tensor) -> Tensor:
        """A tensor of this shape and type in the place where state is kept."""
        needed = _aligned(like.numel() * like.element_size())
        if self._block is None or self._used + needed > len(self._block):
            size = FIRST_BLOCK if self._block is None else min(LARGEST_BLOCK, 2 * len(self._block))
            self._block, self._used = self._new_block(max(size, needed)), 0
        part = self._block[self._used : self._used + like.numel() * like.element_size()]
        self._used += needed
        return part.view(like.dtype).view(like.shape)

    def _new_block(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")


class Files(HostMemory):
    """State in memory-mapped files of up to 1 GiB, in a directory that holds no trace of them: they have no names, so
    that nothing is left when the process ends, however it ends. Runs are resumed from checkpoints."""

    def __init__(self, device: torch.device, directory: Path, staged: bool | None = None):
        super().__init__(device, staged)
        self.directory = directory
        self._reader, self._writer = ThreadPoolExecutor(1, "state-in"), ThreadPoolExecutor(1, "state-out")
        host = torch.device("cpu")
        pinned = device.type == "cuda"
        self._incoming, self._outgoing = Slots(host, pinned), Slots(host, pinned)
        self._reads: list[Future[list[State]]] = []
        self._unread: list[tuple[int, Portion]] = []
        self._writes: list[Future[None]] = []

    def settle(self) -> None:
        super().settle()
        for write in self._writes:
            write.result()
        self._writes = []

    def _begin(self, todo: Sequence[Portion]) -> None:
        self.settle()
        super()._begin(todo)
        most = max(_bytes(portion.states) for portion in todo)
        self._incoming.reserve(most)
        self._outgoing.reserve(most)
        self._reads = [self._reader.submit(self._read, number, portion) for number, portion in enumerate(todo[:SLOTS])]
        self._unread = list(enumerate(todo))[SLOTS:]

    def _read(self, number: int, portion: Portion, uploaded: Any = None) -> list[State]:
        """In a thread: copy states from the files, into a slot that has been `uploaded` from."""
        _wait(uploaded)
        states = self._incoming.views(number % SLOTS, portion.states)
        for to, kept in _pairs(states, portion.states):
            to.copy_(kept)
        return states

    def _arrive(self, number: int, portion: Portion, after: Sequence[Any] = ()) -> tuple[Portion, Any]:
        visiting, ready = super()._arrive(number, portion, after)
        if self._unread:
            self._reads.append(self._reader.submit(self._read, *self._unread.pop(0), uploaded=ready))
        return visiting, ready

    def _source(self, number: int, portion: Portion) -> list[State]:
        return self._reads[number].result()

    def _leave(self, number: int, visiting: Portion, portion: Portion, computed: Any) -> Any:
        if number >= SLOTS:
            self._writes[number - SLOTS].result()
        states = self._outgoing.views(number % SLOTS, portion.states)
        left = self._down.copy(_pairs(states, visiting.states), [computed])
        self._writes.append(self._writer.submit(_write, _pairs(portion.states, states), left))
        return left

    def _new_block(self, size: int) -> Tensor:
        try:
            with tempfile.TemporaryFile(dir=self.directory) as file:
                # Without room set aside a full disk would end the process by a signal, at some later write.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise GristmillError(
                f"memory.offload: disk cannot set aside {size / 2**20:.0f} MiB in {self.directory}: {error.strerror}; "
                "make room there or name another place in memory.offload_directory"
            ) from None
        return torch.frombuffer(mapped, dtype=torch.uint8)


@dataclass
class Slots:
    """As many stretches of memory as portions are under way at a time, used in turn."""

    device: torch.device
    pinned: bool = False
    memory: list[Tensor] = field(default_factory=list)
    free: list[Any] = field(default_factory=lambda: [None] * SLOTS)  # when a slot's last content has been copied away

    def reserve(self, size: int) -> None:
        """Make every slot at least `size` bytes large."""
        if not self.memory or len(self.memory[0]) < size:
            for event in self.free:
                _wait(event)
            self.memory = [
                torch.empty(size, dtype=torch.uint8, device=self.device, pin_memory=self.pinned) for _ in range(SLOTS)
            ]

    def views(self, slot: int, states: Sequence[State]) -> list[State]:
        """Tensors in a slot for these states; counts of steps stay what they are."""
        memory, used = self.memory[slot], 0
        views: list[State] = []
        for state in states:
            view = dict(state)
            for key, value in state.items():
                if value.dim() > 0:
                    size = value.numel() * value.element_size()
                    view[key] = memory[used : used + size].view(value.dtype).view(value.shape)
                    used += _aligned(size)
            views.append(view)
        return views


class Lane:
    """Copies in a CUDA stream beside the one that computes; on another device each copy is done at once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def now(self) -> Any:
        """The moment, in the stream that computes, when all that it has been given is done."""
        return None if self.stream is None else torch.cuda.current_stream(self.device).record_event()

    def computes_after(self, event: Any) -> None:
        """What is computed from here on waits for `event`; the host does not."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def copy(self, pairs: Copies, after: Sequence[Any]) -> Any:
        """Copy when all of `after` has come; the moment when it is done."""
        if self.stream is None:
            for to, source in pairs:
                to.copy_(source)
            return None
        with torch.cuda.stream(self.stream):
            for event in after:
                if event is not None:
                    self.stream.wait_event(event)
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def settle(self) -> None:
        """Wait for all copies."""
        if self.stream is not None:
            self.stream.synchronize()


def _write(pairs: Copies, left: Any) -> None:
    """In a thread: copy states into the files once they have come from the device."""
    _wait(left)
    for kept, new in pairs:
        kept.copy_(new)


def _wait(event: Any) -> None:
    if event is not None:
        event.synchronize()


def _pairs(to: Sequence[State], source: Sequence[State]) -> list[tuple[Tensor, Tensor]]:
    """Tensors of equal place in both; not the counts of steps, which are not copied."""
    return [
        (tensor, other[key])
        for one, other in zip(to, source, strict=True)
        for key, tensor in one.items()
        if tensor.dim() > 0
    ]


def _bytes(states: Sequence[State]) -> int:
    return sum(_aligned(v.numel() * v.element_size()) for state in states for v in state.values() if v.dim() > 0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
