"""Watching an engine work: when each token came, how full the blocks of its cache are, how much memory it takes."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from gristmill.capacity import report
from gristmill.engine.engine import Engine
from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams

Figures = dict[str, float | None]  # by name, which ends with the unit
LOOK_EVERY = 8  # steps between two looks at the blocks


@dataclass
class Watch:
    """Adds requests to an engine and steps it. Times are seconds.

    `first`: from a request's arrival to its first token; `between`: from each token of a request to its next, by
    request id. Several tokens of one step share its time in equal parts.
    """

    engine: Engine
    requests: list[Request] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)
    between: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last: dict[int, float] = {}
        self._pieces = 0  # times that a request past its first token got some
        self._steps_before = self.engine.num_steps
        self._hits_before = self.engine.blocks.hit_tokens, self.engine.blocks.query_tokens
        self._wasted = self._looked_for = 0.0
        self._looked = perf_counter()
        self._until_look = LOOK_EVERY

    def add(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        request = self.engine.make_request(prompt_ids, params)
        self._last[request.id] = perf_counter()
        self.between[request.id] = []
        self.requests.append(request)
        self.engine.add(request)
        return request

    def step(self) -> None:
        """One step of the engine; an error of a request is raised."""
        outputs = self.engine.step()
        now = perf_counter()
        for output in outputs:
            if output.error is not None:
                raise output.error
            number = output.request.id
            count = len(output.new_token_ids)
            if count == 0:
                continue
            since, self._last[number] = now - self._last[number], now
            if number not in self.first:
                self.first[number] = since
                self.between[number] += [0.0] * (count - 1)
            else:
                self.between[number] += [since / count] * count
                self._pieces += 1
        self._until_look -= 1
        if self._until_look == 0:
            self._look()

    def run(self) -> float:
        """Step until nothing is left to do; the seconds that took."""
        started = perf_counter()
        while self.engine.has_work:
            self.step()
        return perf_counter() - started

    def _look(self) -> None:
        """Which share of the tokens that the running requests' blocks could hold they do not hold now."""
        now = perf_counter()
        size = self.engine.config.block_size
        room = held = 0
        for request in self.engine.scheduler.running.values():
            room += len(request.blocks) * size
            held += min(request.num_computed, len(request.blocks) * size)
        if room:
            self._wasted += (1 - held / room) * (now - self._looked)
            self._looked_for += now - self._looked
        self._looked = now
        self._until_look = LOOK_EVERY

    @property
    def gaps(self) -> list[float]:
        """All times between tokens."""
        return [gap for gaps in self.between.values() for gap in gaps]

    @property
    def output_tokens(self) -> int:
        return sum(len(request.output_ids) for request in self.requests)

    @property
    def tokens_a_step(self) -> float | None:
        """Mean tokens that a step gave a decoding request; more than 1 where drafts were accepted."""
        return len(self.gaps) / self._pieces if self._pieces else None

    @property
    def steps(self) -> int:
        return self.engine.num_steps - self._steps_before

    @property
    def preemptions(self) -> int:
        return sum(request.num_preemptions for request in self.requests)

    @property
    def waste(self) -> float | None:
        """1 - tokens held / (blocks held * block size), averaged over time; None where it was too short to look."""
        return self._wasted / self._looked_for if self._looked_for else None

    @property
    def hit_rate(self) -> float | None:
        """Share of the tokens asked for that prefix caching had; None where it was never asked."""
        hits, queries = self._hits_before
        asked = self.engine.blocks.query_tokens - queries
        return (self.engine.blocks.hit_tokens - hits) / asked if asked else None


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The value below which `percent` per cent of `values` lie; None of nothing."""
    return report.percentile(values, percent) if values else None


def latencies(watch: Watch) -> Figures:
    """Times to the first token and between tokens, in milliseconds."""
    found: Figures = {}
    for name, values in (("first token ms", list(watch.first.values())), ("between tokens ms", watch.gaps)):
        found |= {f"{name} p50": milliseconds(values, 50), f"{name} p99": milliseconds(values, 99)}
    return found


def milliseconds(values: Sequence[float], percent: int) -> float | None:
    """A percentile of seconds."""
    value = percentile(values, percent)
    return None if value is None else 1e3 * value


class PeakMemory:
    """Most memory since it was made: what torch allocated on a GPU, what the process held on a CPU."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # Linux: the high-water mark falls to what is held now (proc(5), clear_refs)
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """Bytes. Where the system has no mark that can be reset, the process's highest ever."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def launches_a_step(engine: Engine, steps: int = 16) -> Figures:
    """Of one decoding request on a GPU, a step: what the host launches (kernels and whole graphs), and kernels run.
    Nothing where the context is too short to decode so many steps twice."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    prompt, output = [1, 2, 3, 4], 2 * steps + 4
    if engine.config.max_model_len < len(prompt) + output:
        return {}
    watch = Watch(engine)
    watch.add(prompt, SamplingParams(max_tokens=output, temperature=0, ignore_eos=True))
    while watch.steps < steps:  # its prompt is read and its graph captured
        watch.step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            watch.step()
        torch.cuda.synchronize()
    watch.run()
    launched = kernels = 0
    for event in seen.events() or ():
        launched += "LaunchKernel" in event.name or "GraphLaunch" in event.name
        on_device = event.device_type == DeviceType.CUDA
        kernels += on_device and not event.name.startswith(("Memcpy", "Memset"))
    return {"host launches a step": launched / steps, "kernels a step": kernels / steps}
