"""The events of a run folded into what holds now: each stage's state, progress, curves and samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..events import Event

PROGRESS_WINDOW = 60  # progress events, of which there are two a second, over which the rate is taken
KEPT_SAMPLES = 40


@dataclass
class StageState:
    """What the log says of one stage. `state` is waiting, running, done, fresh (kept from before) or failed."""

    state: str = "waiting"
    started: float | None = None
    seconds: float | None = None
    error: str | None = None
    unit: str | None = None
    total: float | None = None
    open_ended: bool = False  # the total moves with what is done, so it says nothing of what is left
    progress: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=PROGRESS_WINDOW))  # (time, done)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> its quantities
    samples: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))

    def copy(self) -> StageState:
        """A copy that later events leave as it is; the values in `metrics` are never changed in place."""
        return replace(
            self,
            progress=deque(self.progress, PROGRESS_WINDOW),
            metrics=dict(self.metrics),
            samples=deque(self.samples, KEPT_SAMPLES),
            notes=deque(self.notes, KEPT_SAMPLES),
        )

    def rate(self) -> float | None:
        """Units per second over the last progress events; None until two of them differ."""
        if len(self.progress) < 2:
            return None
        (first_time, first_done), (last_time, last_done) = self.progress[0], self.progress[-1]
        if last_time <= first_time or last_done <= first_done:
            return None
        return (last_done - first_done) / (last_time - first_time)


@dataclass
class RunState:
    """What the log says of the run. `state` is empty (no log), running, finished or failed."""

    seq: int = 0
    state: str = "empty"
    recipe: str | None = None
    started: float | None = None
    seconds: float | None = None
    last_event: float | None = None
    error: str | None = None
    stages: dict[str, StageState] = field(default_factory=dict)

    def stage(self, name: str) -> StageState:
        return self.stages.setdefault(name, StageState())

    def copy(self) -> RunState:
        return replace(self, stages={name: stage.copy() for name, stage in self.stages.items()})

    def apply(self, event: Event) -> None:
        """Fold one event in. Events of unknown types or with missing fields change nothing but `seq`."""
        self.seq = event["seq"]
        time = event.get("time")
        if isinstance(time, (int, float)):
            self.last_event = float(time)
        name = event.get("stage")
        if isinstance(name, str):
            self._apply_stage(self.stage(name), event)
        else:
            self._apply_run(event)

    def _apply_run(self, event: Event) -> None:
        match event["type"]:
            case "run_started":
                self.state, self.started = "running", self.last_event
                self.seconds = self.error = None
                recipe = event.get("recipe")
                self.recipe = recipe if isinstance(recipe, str) else None
                for stage in self.stages.values():  # what a killed run left behind is not running any more
                    if stage.state in ("running", "failed"):
                        stage.state, stage.error = "waiting", None
            case "run_finished":
                self.state, self.seconds = "finished", _number(event.get("seconds"))
            case "run_failed":
                self.state, self.error = "failed", str(event.get("error", ""))
                for stage in self.stages.values():
                    if stage.state == "running":
                        stage.state, stage.error = "failed", self.error

    def _apply_stage(self, stage: StageState, event: Event) -> None:
        match event["type"]:
            case "stage_started":
                stage.state, stage.started, stage.error = "running", self.last_event, None
                stage.seconds = stage.unit = stage.total = None
                stage.progress.clear()
                if not event.get("resumed"):
                    stage.metrics.clear()
                    stage.samples.clear()
                    stage.notes.clear()
            case "stage_skipped":
                stage.state, stage.error = "fresh", None
            case "stage_finished":
                stage.state, stage.seconds = "done", _number(event.get("seconds"))
            case "stage_failed":
                stage.state, stage.error = "failed", str(event.get("error", ""))
            case "progress":
                self._apply_progress(stage, event)
            case "metric":
                self._apply_metric(stage, event)
            case "sample":
                sample = {key: event[key] for key in event if key not in ("seq", "time", "stage", "type")}
                again = [old for old in stage.samples if "step" in old and _same(old, sample)]
                if again:
                    stage.samples.remove(again[0])
                stage.samples.append(sample)
            case "note":
                stage.notes.append(str(event.get("message", "")))

    def _apply_progress(self, stage: StageState, event: Event) -> None:
        done, total, unit = _number(event.get("done")), _number(event.get("total")), str(event.get("unit", ""))
        if done is None or total is None:
            return
        if unit != stage.unit or (stage.progress and done < stage.progress[-1][1]):  # the next part counts anew
            stage.progress.clear()
            stage.open_ended = False
        elif total != stage.total:
            stage.open_ended = True
        stage.unit, stage.total = unit, total
        stage.progress.append((self.last_event or 0.0, done))

    def _apply_metric(self, stage: StageState, event: Event) -> None:
        step = event.get("step")
        if not isinstance(step, int):
            return
        skipped = ("seq", "time", "stage", "type", "step")
        values = {
            key: float(value) for key, value in event.items() if key not in skipped and _number(value) is not None
        }
        # A stage that is resumed, or goes back to a checkpoint, computes the steps after it again: the later lines
        # hold, and what was ahead of them is no part of the run.
        while stage.metrics and next(reversed(stage.metrics)) > step:
            stage.metrics.popitem()
        for sample in [sample for sample in stage.samples if (_number(sample.get("step")) or 0) > step]:
            stage.samples.remove(sample)
        stage.metrics[step] = {**values, "time": self.last_event or 0.0}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two samples are of one step and one prompt: of a resumed stage the later holds."""
    return (one.get("step"), one.get("prompt")) == (other.get("step"), other.get("prompt"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
