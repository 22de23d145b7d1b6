"""One engine of a fleet: the engine's own scheduler and block pool, a device that only takes time.

Steps are planned, launched ahead and read in the very order of `Engine.step`; what a step computes is added up and
handed to a model of the device (plan/step_time.py), and tokens are numbers that say nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..engine.blocks import BlockPool
from ..engine.config import EngineConfig
from ..engine.request import Request
from ..engine.sampling import SamplingParams
from ..engine.scheduler import Scheduler, Step
from ..plan.step_time import Load
from .traffic import Arrival

Seconds = Callable[[Load], float]
PROMPT_ROOM = 2**32  # ids of a request's own tokens begin at its number times this


@dataclass(slots=True, eq=False)
class Served:
    """What became of a request; times are seconds of the simulation. `first` and `last`: when those tokens came."""

    arrival: Arrival
    replica: int = -1
    queued: float = 0.0  # when it reached a replica
    started: float = -1.0  # when it was first part of a step
    first: float = -1.0
    last: float = -1.0
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.first - self.arrival.seconds

    @property
    def tpot(self) -> float | None:
        """Seconds for each further token; None where there is none."""
        further = self.arrival.output_tokens - 1
        return (self.last - self.first) / further if further else None


@dataclass(eq=False)
class Replica:
    """`turn` is called at the times it returns: when a step under way is done. `seconds` says how long one takes."""

    number: int
    config: EngineConfig
    seconds: Seconds
    read_seconds: float = 0.0  # from a step's end until its tokens are handed out
    busy_seconds: float = 0.0
    steps: int = 0
    preemptions: int = 0
    peak_usage: float = 0.0
    inbox: list[Served] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.config.num_blocks, self.config.block_size, self.config.prefix_caching)
        self.scheduler = Scheduler(self.config, self.pool)
        self._open: dict[int, Served] = {}
        self._unstarted: set[int] = set()  # of those, the ones that were in no step yet
        self._under_way: deque[tuple[Step, float]] = deque()
        self._free_at = 0.0  # when the device has done all that was launched
        self._ids = itertools.count()

    @property
    def load(self) -> int:
        """Requests that wait or run here."""
        return len(self._open) + len(self.inbox)

    @property
    def idle(self) -> bool:
        return not self._open and not self.inbox and not self._under_way

    def turn(self, now: float) -> tuple[float | None, list[Served]]:
        """What the engine's thread does when the oldest step under way is done at `now`, or a request comes to an idle
        one: it reads that step, takes in what has come, launches. Returns when it is next called for, None where there
        is nothing to wait for, and the requests that ended."""
        ended = []
        if self._under_way and self._under_way[0][1] <= now:
            step, _ = self._under_way.popleft()
            now += self.read_seconds
            ended = self._read(step, now)
            self.scheduler.done(step)
        for served in self.inbox:
            self._add(served, now)
        self.inbox.clear()
        while len(self._under_way) <= self.config.run_ahead and (step_ := self.scheduler.schedule()) is not None:
            self._launch(step_, now)
        return (self._under_way[0][1] if self._under_way else None), ended

    def _add(self, served: Served, now: float) -> None:
        arrival, number = served.arrival, next(self._ids)
        own = (number + 1) * PROMPT_ROOM
        ids = list(range(own, own + arrival.prompt_tokens))
        if arrival.prefix_group is not None:
            common = -(arrival.prefix_group + 1) * PROMPT_ROOM
            ids[: arrival.prefix_tokens] = range(common, common + arrival.prefix_tokens)
        params = SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True, seed=0)
        request = Request(number, ids, params)
        served.replica, served.queued = self.number, now
        self._open[number] = served
        self._unstarted.add(number)
        self.scheduler.add(request)

    def _launch(self, step: Step, now: float) -> None:
        start = max(now, self._free_at)
        took = self.seconds(load_of(step, not self._under_way, start - now))
        self._free_at = start + took
        self.busy_seconds += took
        self.steps += 1
        self.peak_usage = max(self.peak_usage, self.pool.usage)
        if self._unstarted:
            for chunk in step.chunks:
                number = chunk.request.id
                if number in self._unstarted:
                    self._unstarted.discard(number)
                    self._open[number].started = start
                    self._open[number].cached_tokens = chunk.request.num_cached
        self._under_way.append((step, self._free_at))

    def _read(self, step: Step, now: float) -> list[Served]:
        ended = []
        for chunk in step.chunks:
            if not chunk.samples:
                continue
            request = chunk.request
            if request.finish_reason is not None:
                self.scheduler.took(request, ())
                continue
            served, output = self._open[request.id], len(request.output_ids)
            self.scheduler.took(request, (request.prompt_ids[-1] + 1 + output,))
            if not output:
                served.first = now
            if output + 1 == served.arrival.output_tokens:
                served.last = now
                served.preemptions = request.num_preemptions
                self.preemptions += request.num_preemptions
                request.finish_reason = "length"
                self.scheduler.remove(request)
                del self._open[request.id]
                ended.append(served)
        return ended


def load_of(step: Step, alone: bool = False, busy: float = math.inf) -> Load:
    """What a step computes; `alone`: nothing was under way when it was planned; `busy`: the device was, for so long."""
    chunks = step.chunks
    if step.decode_only:
        count = len(chunks)
        context = sum([chunk.start for chunk in chunks]) + count
        return Load(count, count, count, context, context, alone=alone, busy=busy)
    tokens = logits = pairs = cached = prompts = 0
    for _, start, count, samples, drafts in chunks:
        tokens += count
        logits += samples * (1 + len(drafts))
        pairs += count * start + count * (count + 1) // 2
        cached += start + count
        prompts += count > 1 + len(drafts)
    return Load(tokens, len(chunks), logits, pairs, cached, prompts, alone, busy)
