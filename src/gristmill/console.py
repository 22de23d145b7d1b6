"""What a run shows on the terminal: one line a stage, a progress bar with rate and time left while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .events import Event

PLAIN_SECONDS = 15.0  # without a terminal, progress is a line every so often
FIGURES_SHOWN = 4


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f} {task.fields['unit']}/s", style="cyan")


class RunConsole:
    """Subscribes to a run's events (`EventLog.subscribers`) and shows them. A context manager: it owns the live bar."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metric]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._unit = ""
        self._metric = ""
        self._began = self._spoke = time.monotonic()
        self._done = 0.0  # what was done when the bar began: a resumed stage begins above zero

    def __enter__(self) -> RunConsole:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        kind, stage = event["type"], event["stage"]
        if kind == "stage_started":
            self._drop_bar()
            self._spoke = time.monotonic()
            if event["resumed"]:
                self._line(stage, "goes on where it was cut")
            elif not self.console.is_terminal:
                self._line(stage, "...")
        elif kind == "stage_skipped":
            self._line(stage, f"fresh  {event['hash'][:12]}")
        elif kind == "stage_finished":
            self._drop_bar()
            self._line(stage, f"{event['seconds']:7.1f} s  {event['hash'][:12]}  {brief(event['figures'])}")
        elif kind == "note":
            self._line(stage, event["message"])
        elif kind == "metric":
            self._metric = brief({key: value for key, value in event.items() if key in ("loss", "margin_accuracy")})
        elif kind == "progress":
            self._show_progress(stage, event)

    def _show_progress(self, stage: str, event: Event) -> None:
        if self._task is None or event["unit"] != self._unit:
            self._drop_bar()
            self._unit, self._began, self._done = event["unit"], time.monotonic(), event["done"]
            self._task = self.progress.add_task(stage, total=event["total"], unit=event["unit"], metric="")
        self.progress.update(self._task, completed=event["done"], total=event["total"], metric=self._metric)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._spoke > PLAIN_SECONDS:
            self._spoke = now
            rate = (event["done"] - self._done) / max(now - self._began, 1e-9)
            speed = f", {rate:,.1f}/s, {(event['total'] - event['done']) / rate:.0f} s left" if rate else ""
            metric = f", {self._metric}" if self._metric else ""
            self._line(stage, f"{event['done']:,.0f}/{event['total']:,.0f} {event['unit']}{speed}{metric}")

    def _drop_bar(self) -> None:
        if self._task is not None:
            self.progress.remove_task(self._task)
        self._task, self._unit, self._metric = None, "", ""

    def _line(self, stage: str | None, text: str) -> None:
        self.console.print(f"{stage or '':<11} {text}", markup=False, soft_wrap=True)
        sys.stderr.flush()


def brief(figures: Mapping[str, Any]) -> str:
    """The first few plain figures as `name value`, for one line."""
    shown = [f"{key} {number(value)}" for key, value in figures.items() if isinstance(value, int | float | str)]
    return ", ".join(shown[:FIGURES_SHOWN])


def number(value: float | str) -> str:
    """A figure as a person reads it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
