"""Steps as CUDA graphs: some 200 kernels that the host starts with one call.

A small model's step takes a fraction of a millisecond, and starting its kernels one by one takes the host ten times as
long. Between two decoding steps nothing changes but what lies in tables on the device, so a step is recorded once for
each number of rows, rounded up (`bucket`), and each kind of drawing (`Asked`), on its first use, and then replayed.
Rows that fill up a bucket are the idle slot's, which reads and writes nothing that counts. Steps that are told more
than their slots, what forms allow or which drafts to check (draft_steps.py), get it as a row of numbers each; those
that read prompts (prompt_steps.py) are of several sizes, and are given as a whole.

The recorded step holds the addresses of weights, cache and tables. Changing what lies there is right; weights in other
tensors than before are noticed when the batch changes, or `look_again` is called, and recorded anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model.config import ModelShape
from .sampler import Asked
from .sending import sent

# What it is given, a row for each sequence, and what is asked -> its results; all of it on the device.
Recorded = Callable[[Tensor, Asked], Any]
# Such a step, its input and what is asked -> its results, and a function that makes them anew in the same tensors.
Capture = Callable[[Recorded, Tensor, Asked], tuple[Any, Callable[[], None]]]

MOST_KINDS = 128  # of steps that read prompts: to record one stops all replies for a moment


class NotRecorded(Exception):
    """A step could not be recorded: there was no memory for it, or the model does something that cannot be."""


@dataclass
class _Graph:
    given: Tensor
    results: Any
    replay: Callable[[], None]
    slots: list[int]  # whose rows `given` holds, without those that fill it up


def unrecorded(config: ModelShape) -> str | None:
    """Why the steps of a model of this shape cannot be recorded; None where they can."""
    if config.experts is not None:
        return "a mixture of experts may ask the host how many tokens each expert has"
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        return "rope_scaling dynamic turns keys by lengths that the host sends"
    return None


class DecodeGraphs:
    """Replays steps of up to `most_rows` rows. `idle_slot` is the row of the tables that pads them; `model` is the one
    whose weights the steps read."""

    def __init__(self, most_rows: int, idle_slot: int, capture: Capture | None = None, model: nn.Module | None = None):
        self.most_rows, self.idle_slot = most_rows, idle_slot
        self._capture: Capture = capture or _CudaCapture()
        self._idle = torch.tensor(idle_slot, dtype=torch.int32)
        # By the shape and type of what they are given, what else sets them apart, and what is asked; None: could not
        # be recorded.
        self._graphs: dict[tuple[tuple[int, ...], torch.dtype, Hashable, Asked], _Graph | None] = {}
        self._slots: list[int] = []  # of the last batch, sorted
        self.just_recorded = False  # in the last run, which took longer for it
        held = [] if model is None else list(model.modules())
        # Where weights are kept: the dictionaries stay, what they hold may be replaced.
        self._kept = [kept for module in held for kept in (module._parameters, module._buffers) if kept]
        self._addresses = self._where()

    def run(
        self,
        step: Recorded,
        slots: Sequence[int],
        asked: Asked,
        device: torch.device,
        rows: Tensor | None = None,
        idle: Tensor | None = None,
    ) -> Any | None:
        """One step for these slots; its results, of all rows of the bucket, lie where the next step of this kind writes
        again. Where the step is new and cannot be recorded, NotRecorded is raised and nothing has changed; None where
        that was found before.

        `step` is given `rows`, a processor's tensor with a row for each slot, or the slots themselves (int32); `idle`
        is a row that fills a batch up. Steps that are given rows of one shape and type must be the same step.
        """
        self._look(slots)
        idle = self._idle if idle is None else idle
        size = bucket(len(slots), self.most_rows)
        graph = self._graph(step, idle.expand(size, *idle.shape), None, asked, device)
        if graph is None:
            return None
        if rows is not None or graph.slots != slots:
            rows = torch.tensor(slots, dtype=torch.int32) if rows is None else rows
            padded = torch.cat([rows, idle.expand(size - len(slots), *idle.shape)])
            graph.given.copy_(sent(padded, device), non_blocking=True)
            graph.slots = list(slots)
        graph.replay()
        return graph.results

    def run_whole(
        self,
        step: Recorded,
        slots: Sequence[int],
        asked: Asked,
        device: torch.device,
        given: Tensor,
        idle: Tensor,
        kind: Hashable,
    ) -> Any | None:
        """`run` of a step that is given a tensor of its own making, a processor's, as long as `idle`, which means
        nothing to do. Steps of one `kind` and shape must be the same step. None also where there are MOST_KINDS."""
        self._look(slots)
        key = self._key(idle, kind, asked)
        if key not in self._graphs and sum(kind is not None for _, _, kind, _ in self._graphs) >= MOST_KINDS:
            self.just_recorded = False
            return None
        graph = self._graph(step, idle, kind, asked, device)
        if graph is None:
            return None
        graph.given.copy_(sent(given, device), non_blocking=True)
        graph.replay()
        return graph.results

    def _look(self, slots: Sequence[int]) -> None:
        """Where the batch is another, in whatever order, see whether the weights are where they were."""
        if (present := sorted(slots)) != self._slots:
            self._slots = present
            if self._addresses != (addresses := self._where()):
                self._graphs.clear()
                self._addresses = addresses

    def _graph(self, step: Recorded, idle: Tensor, kind: Hashable, asked: Asked, device: torch.device) -> _Graph | None:
        """The recording of a step of as many rows; made of idle ones."""
        key = self._key(idle, kind, asked)
        self.just_recorded = key not in self._graphs
        if self.just_recorded:
            self._graphs[key] = None
            given = idle.contiguous().to(device, copy=True)
            try:
                self._graphs[key] = _Graph(given, *self._capture(step, given, asked), [])
            except Exception as error:
                raise NotRecorded(f"a step of {len(idle)} rows: {error}") from error
        return self._graphs[key]

    @staticmethod
    def _key(idle: Tensor, kind: Hashable, asked: Asked) -> tuple[tuple[int, ...], torch.dtype, Hashable, Asked]:
        return tuple(idle.shape), idle.dtype, kind, asked

    @property
    def num_recorded(self) -> int:
        """Kinds of steps that were recorded, or found not to be recordable."""
        return len(self._graphs)

    def look_again(self) -> None:
        """At the next step it is asked where the weights are, be the batch another or not."""
        self._slots = []

    def _where(self) -> list[int]:
        return [weight.data_ptr() for kept in self._kept for weight in kept.values() if weight is not None]


def bucket(rows: int, most: int) -> int:
    """The rows that a step of `rows` is recorded with: a power of two up to 8, a multiple of 8 up to 64, of 16 up to
    128, then of 32."""
    for size in (1, 2, 4, 8):
        if rows <= size:
            return min(size, most)
    step = 8 if rows <= 64 else 16 if rows <= 128 else 32
    return min(-(-rows // step) * step, most)


class _CudaCapture:
    """Records on a stream of its own, after a run that compiles the kernels and finds what would wait for the device.
    All graphs share one pool of memory: they run one after the other, and what one drew is copied before the next. The
    stream is the same for all, since torch gives a stream no memory that another one has left."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._aside: Any = None
        self._last: Callable[[], Any] = lambda: None  # the graph recorded last, as long as there is one
        self._broken: list[Any] = []  # recordings that failed: torch may still ask them what is theirs

    def __call__(self, step: Recorded, given: Tensor, asked: Asked) -> tuple[Any, Callable[[], None]]:
        if self._aside is None:
            self._aside = torch.cuda.Stream()
        if self._last() is None:  # torch takes back a pool that no graph is left of, and lends it no more
            self._pool = torch.cuda.graph_pool_handle()
        current, aside = torch.cuda.current_stream(), self._aside
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            step(given, asked)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # A recording that fails leaves its stream behind as the current one. Other threads may go on: a server's other
        # model, batches being made.
        try:
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"),
            ):
                results = step(given, asked)
        except Exception:
            self._give_up(graph)
            raise
        self._last = weakref.ref(graph)
        return results, graph.replay

    def _give_up(self, graph: Any) -> None:
        """A recording that the device broke off is still under way to torch's allocator, which then refuses to give
        memory back, and to record any other into the pool."""
        self._broken.append(graph)
        self._last = lambda: None
        with suppress(Exception):  # it has been ended
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
