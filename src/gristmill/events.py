"""A run's event log: append-only JSON lines that the page, `status` and the progress bars read.

Every event is one object on one line of `events.jsonl`:

    {"seq": 17, "time": 1795311232.5, "stage": "base", "type": "metric", ...}

`seq` counts from 1 without gaps over the life of the run, so a reader that was cut off asks for `after=seq`.
`time` is Unix time in seconds. `stage` is an artifact's name, or null for events of the run itself. The types are
listed in `EVENT_TYPES` with the fields each one carries; docs/architecture.md says why.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]

EVENT_TYPES: dict[str, str] = {
    "run_started": "recipe, stages",
    "run_finished": "seconds",
    "run_failed": "error",
    "stage_started": "fingerprint, resumed (whether earlier work was found)",
    "stage_skipped": "hash",
    "stage_finished": "hash, seconds, figures",
    "stage_failed": "error",
    "progress": "done, total, unit",
    "metric": "step, and one field per quantity",
    "sample": "prompt, text, and any label such as score",
    "note": "message",
}
PROGRESS_SECONDS = 0.5


class EventLog:
    """Appends events to a file and hands each one to the subscribers (progress bars).

    One process writes a log at a time. A line is written by a single `write`, and a line torn by a crash is cut off
    when the log is opened again, so that every line that a reader sees whole stays as it is.
    """

    def __init__(self, path: Path | str | None):
        self.subscribers: list[Callable[[Event], None]] = []
        self._fd: int | None = None
        self._seq = 0
        if path is not None:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._seq = _repair(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def emit(self, type: str, stage: str | None = None, **fields: Any) -> Event:
        """Append one event. `fields` must be JSON values."""
        assert type in EVENT_TYPES, type
        assert not fields.keys() & {"seq", "time", "stage", "type"}, fields
        event: Event = {"seq": self._seq + 1, "time": round(time.time(), 3), "stage": stage, "type": type}
        event |= {key: _json_value(value) for key, value in fields.items()}
        if self._fd is not None:
            self._append((json.dumps(event, ensure_ascii=False) + "\n").encode())
        self._seq += 1
        for subscriber in self.subscribers:
            subscriber(event)
        return event

    def _append(self, line: bytes) -> None:
        """Write one line whole or not at all: a full disk must not leave half a line for the next one to follow."""
        assert self._fd is not None
        end = os.fstat(self._fd).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, end)
            raise

    def stage(self, name: str) -> StageLog:
        return StageLog(self, name)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class StageLog:
    """What a stage uses to say how far it is. `StageLog.silent()` writes nowhere."""

    def __init__(self, log: EventLog, stage: str):
        self._log, self._stage = log, stage
        self._last_progress = 0.0

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self._stage

    @classmethod
    def silent(cls, stage: str = "stage") -> StageLog:
        return cls(EventLog(None), stage)

    def emit(self, type: str, **fields: Any) -> None:
        self._log.emit(type, self._stage, **fields)

    def progress(self, done: float, total: float, unit: str) -> None:
        """How much is done, e.g. `progress(3_000, 20_000, "documents")`; at most two events a second are kept,
        and always the last. A stage with several parts starts each part's count anew under its own `unit`."""
        now = time.monotonic()
        if done < total and now - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = now
        self.emit("progress", done=done, total=total, unit=unit)

    def metric(self, step: int, **values: float) -> None:
        self.emit("metric", step=step, **values)

    def sample(self, prompt: str, text: str, **labels: Any) -> None:
        self.emit("sample", prompt=prompt, text=text, **labels)

    def note(self, message: str) -> None:
        self.emit("note", message=message)


def read_events(path: Path | str, after: int = 0) -> Iterator[Event]:
    """The events of a log with `seq > after`, in order; a torn last line is left out."""
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                event = json.loads(line)
                if event["seq"] > after:
                    yield event
    except FileNotFoundError:
        return


def _repair(path: Path) -> int:
    """Cut the log back to its last whole line; return the last sequence number in it."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if data[end - 1 : end] == b"\n":
            try:
                seq = int(json.loads(data[start:end])["seq"])
                break
            except (ValueError, KeyError, TypeError):
                pass
        end = start
    else:
        seq = 0
    if end < len(data):
        os.truncate(path, end)
    return seq


def _json_value(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
