"""Looking through all layouts of a machine for the ones that train a model quickest.

Each layout gets the schedule that is quickest: sequences at once, the least activation checkpointing that fits, chunks
of an interleaved pipeline. What cannot come near the layouts already found is not reckoned out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from .communication import Links
from .device import Device
from .layout_memory import MODES, LayoutMemory
from .layouts import Layout
from .memory import SPARE, TrainingRun
from .memory_plan import usable_bytes
from .parallel_memory import memory_per_device
from .quantity import in_bytes
from .training_step import Schedule, StepTime, Work, step_time

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)  # sequences that go through a device at once
EXCESS = 1.6  # a layout whose compute and bubble alone take this many times the best step is left


@dataclass(frozen=True)
class Choice:
    """A layout with its best schedule."""

    layout: Layout
    schedule: Schedule
    step: StepTime
    memory_bytes: float

    def name(self) -> str:
        """Such as `TP 8 x PP 4 x DP 2, zero1`."""
        parts = [("TP", self.layout.tensor), ("PP", self.layout.pipeline), ("DP", self.layout.data)]
        text = " x ".join(f"{short} {size}" for short, size in parts if size > 1) or "one device"
        if self.layout.expert > 1:
            text += f" (EP {self.layout.expert})"
        return text + (f", zero{self.layout.zero}" if self.layout.zero else "")

    def settings(self) -> str:
        schedule = self.schedule
        plural = "es" if schedule.micro_batches > 1 else ""
        text = f"{schedule.micro_batches:,} micro-batch{plural} of {schedule.micro_batch_size}"
        if schedule.interleaved > 1:
            text += f", {schedule.interleaved} chunks of layers a device"
        return text + ("" if schedule.checkpointing == "none" else f", checkpointing {schedule.checkpointing}")

    def rank(self) -> tuple[int, int, int, int, float]:
        """Quicker first; of those within half a percent the one with less checkpointing, less sharing, more at once."""
        schedule = self.schedule
        bucket = math.floor(200 * math.log(self.step.seconds))
        checkpointing = MODES.index(schedule.checkpointing)
        return bucket, checkpointing, self.layout.zero, -schedule.micro_batch_size, self.step.seconds

    def as_json(self) -> dict[str, Any]:
        layout, schedule, step = self.layout, self.schedule, self.step
        return {
            "layout": {name: getattr(layout, name) for name in ("tensor", "pipeline", "data", "expert", "zero")},
            "micro_batch_size": schedule.micro_batch_size,
            "micro_batches": schedule.micro_batches,
            "interleaved": schedule.interleaved,
            "activation_checkpointing": schedule.checkpointing,
            "step_seconds": step.seconds,
            "compute_seconds": step.compute_seconds,
            "bubble_seconds": step.bubble_seconds,
            "exposed_seconds": {part.kind: part.exposed_seconds for part in step.traffic},
            "sent_bytes": {part.kind: part.sent_bytes for part in step.traffic},
            "utilization": step.utilization,
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True)
class Excluded:
    """Layouts that one rule rules out: how many, and one of them with its figures."""

    rule: str
    count: int
    example: str

    def sentence(self) -> str:
        plural = "layouts" if self.count > 1 else "layout"
        return f"Excluded, {self.count} {plural}: {self.rule} ({self.example})."


@dataclass(frozen=True)
class Cluster:
    """What the layouts are to run on, and what a device reaches of its peak while it computes."""

    device: Device
    devices: int
    links: Links
    peak_flops: float
    share: float

    @property
    def usable_bytes(self) -> float:
        return usable_bytes(self.device)


class Search:
    def __init__(self, work: Work, cluster: Cluster, optimizer: str, batch_tokens: int):
        self.work, self.cluster, self.batch_tokens = work, cluster, batch_tokens
        self.memory, self.optimizer = LayoutMemory(work, optimizer), optimizer
        self.sequences = batch_tokens // work.sequence_length
        self.excluded: dict[str, tuple[int, str]] = {}
        self.looked_at = self.too_large = 0
        self.quickest = math.inf
        self.least_memory: tuple[float, str] = (math.inf, "")

    def run(self, fixed: dict[str, int], wanted: int) -> tuple[Choice, ...]:
        """The best schedule of each TP x PP x DP x EP, `wanted` of them. Those that the quick estimate of memory lets
        through are reckoned with care before they count; what turns out too large gets another schedule."""
        found = [choice for layout in self._layouts(fixed) if (choice := self._best(layout, self.cluster.usable_bytes))]
        waiting = [(choice.rank(), i, choice) for i, choice in enumerate(found)]
        heapq.heapify(waiting)
        chosen: dict[tuple[int, ...], Choice] = {}
        while waiting and len(chosen) < wanted:
            _, i, choice = heapq.heappop(waiting)
            layout = choice.layout
            key = (layout.tensor, layout.pipeline, layout.data, layout.expert)
            if key in chosen:
                continue
            careful = self.careful_bytes(choice)
            if careful <= self.cluster.usable_bytes:
                chosen[key] = replace(choice, memory_bytes=careful)
                continue
            smaller = self._best(layout, 0.995 * choice.memory_bytes * self.cluster.usable_bytes / careful)
            if smaller:
                heapq.heappush(waiting, (smaller.rank(), i, smaller))
        return tuple(sorted(chosen.values(), key=lambda choice: choice.step.seconds))

    def careful_bytes(self, choice: Choice) -> float:
        """As plan/parallel_memory.py reckons it, and what interleaved chunks keep more in flight."""
        work, schedule = self.work, choice.schedule
        run = TrainingRun(
            schedule.micro_batch_size,
            schedule.sequence_length,
            optimizer=self.optimizer,
            checkpointing=schedule.checkpointing,
        )
        memory = memory_per_device(work.config, work.arithmetic, run, choice.layout, schedule.micro_batches)
        plain = self.memory.total(choice.layout, replace(schedule, interleaved=1))
        return memory.total + self.memory.total(choice.layout, schedule) - plain

    def _exclude(self, rule: str, example: str) -> None:
        count, first = self.excluded.get(rule, (0, example))
        self.excluded[rule] = (count + 1, first)

    def why_not(self) -> Iterator[Excluded]:
        for rule, (count, example) in self.excluded.items():
            yield Excluded(rule, count, example)
        if self.too_large:
            least, name = self.least_memory
            yield Excluded(
                f"a device's share fits into {in_bytes(self.cluster.usable_bytes)}, {1 - SPARE:.0%} of its memory, "
                "with checkpointing block and one sequence at a time",
                self.too_large,
                f"nearest {name}: {in_bytes(least)}",
            )

    def _layouts(self, fixed: dict[str, int]) -> Iterator[Layout]:
        """All that use every device and break no rule of the model, the batch or the machine."""
        config, n = self.work.config, self.cluster.devices
        node = self.cluster.links.devices_per_node
        for tensor in divisors(n):
            if tensor != fixed.get("tensor", tensor):
                continue
            if tensor > node and "tensor" not in fixed:
                self._exclude(f"tensor parallelism stays within a node of {node} devices", f"TP {tensor}")
                continue
            if not self._allowed(Layout(tensor), config):
                continue
            for pipeline in divisors(n // tensor):
                if pipeline != fixed.get("pipeline", pipeline) or not self._allowed(Layout(1, pipeline), config):
                    continue
                data = n // tensor // pipeline
                if data != fixed.get("data", data):
                    continue
                if self.sequences % data:
                    self._exclude(
                        f"data parallelism divides the batch's {self.sequences:,} sequences equally", f"DP {data}"
                    )
                    continue
                yield from self._shared(Layout(tensor, pipeline, data), fixed)

    def _shared(self, layout: Layout, fixed: dict[str, int]) -> Iterator[Layout]:
        """By how the experts and the states are shared out among data-parallel devices."""
        config, data = self.work.config, layout.data
        experts = divisors(math.gcd(data, config.experts.num_experts)) if config.experts else [1]
        if "expert" in fixed:
            if data % fixed["expert"]:
                self._exclude("expert parallelism divides data parallelism", f"EP {fixed['expert']} in DP {data}")
                return
            experts = [fixed["expert"]]
        for expert in experts:
            for zero in (0, 1, 2, 3) if data > 1 else (0,):
                if zero != fixed.get("zero", zero):
                    continue
                if zero > 1 and layout.pipeline > 1:
                    self._exclude(
                        "zero2 and zero3 are not combined with a pipeline: each micro-batch would scatter its "
                        "gradients, and gather the weights, anew",
                        f"PP {layout.pipeline}, zero{zero}",
                    )
                    continue
                yield replace(layout, expert=expert, zero=zero)

    def _allowed(self, layout: Layout, config: ModelConfig) -> bool:
        try:
            layout.check(config, self.cluster.links.devices_per_node)
        except GristmillError as broken:
            self._exclude(_rule(str(broken)), str(broken))
            return False
        return True

    def _best(self, layout: Layout, room: float) -> Choice | None:
        """With the quickest schedule that fits into `room` by the quick estimate; None where none does, or where none
        can come near the best."""
        work, cluster = self.work, self.cluster
        states = self.memory.states(layout)
        if states > room:
            self._too_large(layout, states, cluster.usable_bytes / room)
            return None
        best: Choice | None = None
        fitted = slow = False
        share = self.sequences // layout.data
        for size in MICRO_BATCHES:
            if share % size:
                continue
            for interleaved in self._interleavings(layout, share // size):
                schedule = self._fitting(
                    layout, Schedule(work.sequence_length, size, share // size, interleaved), room - states
                )
                if schedule is None:
                    continue
                fitted = True
                self.looked_at += 1
                step = step_time(work, layout, schedule, cluster.links, cluster.peak_flops, cluster.share)
                found = Choice(layout, schedule, step, states + self._beside(layout, schedule))
                if best is None or found.rank() < best.rank():
                    best = found
            if best and best.step.compute_seconds + best.step.bubble_seconds > EXCESS * self.quickest:
                slow = True
                break
        if not fitted:
            self._too_large(layout, states, cluster.usable_bytes / room)
        if best and not slow:
            self.quickest = min(self.quickest, best.step.seconds)
        return None if slow else best

    def _interleavings(self, layout: Layout, micro_batches: int) -> list[int]:
        """Chunks of layers a device: 1F1B interleaved takes micro-batches by whole rounds of the pipeline."""
        layers = math.ceil(self.work.layers / layout.pipeline)
        if layout.pipeline == 1 or micro_batches % layout.pipeline:
            return [1]
        return [chunks for chunks in (1, 2, 4, 8) if layers % chunks == 0]

    def _fitting(self, layout: Layout, schedule: Schedule, room: float) -> Schedule | None:
        """With the least checkpointing that leaves room."""
        for mode in MODES:
            tried = schedule if mode == "none" else replace(schedule, checkpointing=mode)
            if self._beside(layout, tried) <= room:
                return tried
        return None

    def _beside(self, layout: Layout, schedule: Schedule) -> float:
        return self.memory.activations(layout, schedule) + self.memory.working

    def _too_large(self, layout: Layout, states: float, factor: float) -> None:
        """`factor`: what the careful estimate is over the quick one, where it is known."""
        micro_batches = self.sequences // layout.data
        least = factor * (
            states + self._beside(layout, Schedule(self.work.sequence_length, 1, micro_batches, 1, "block"))
        )
        name = Choice(layout, Schedule(1), StepTime(0, 0, (), 0), 0).name()
        self.too_large += 1
        if least < self.least_memory[0]:
            self.least_memory = (least, name)


def _rule(message: str) -> str:
    """What a broken rule of Layout.check says in general."""
    if "attention heads" in message:
        return "tensor parallelism divides the attention heads"
    if "longer than" in message:
        return "a pipeline has no more stages than the model has layers"
    return message


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
