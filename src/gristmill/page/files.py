"""A run directory as the page sees it: its artifacts, its recipe, its log, any of which may be missing or half written.

Nothing here raises for what a run has not produced yet: a missing or unreadable file is None, and the caller shows an
empty state. What is written by a stage is read when it is asked for, so that the page shows what is on the disk.
"""

from __future__ import annotations

import fcntl
import json
import struct
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from ..artifact import Manifest, read_manifest
from ..errors import GristmillError
from .log import LogTail, loads
from .state import RunState, StageState

MAX_JSON_BYTES = 32_000_000
MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors format itself


class Run:
    """A run directory. Several threads may ask at once; the log is folded once, as it grows."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._tail = LogTail(directory / "events.jsonl")
        self._state = RunState()
        self._restarts = 0
        self._lock = Lock()

    def state(self) -> RunState:
        """The log up to now, folded; the caller's own copy."""
        with self._lock:
            events = self._tail.read()
            if self._tail.restarts != self._restarts:
                self._restarts, self._state = self._tail.restarts, RunState()
            for event in events:
                self._state.apply(event)
            return self._state.copy()

    def abandoned(self) -> bool:
        """Whether nobody works in the directory any more. A pipeline holds `.lock` while it runs, and the system
        drops the lock of a killed one; without such a file nothing is known and the log is believed."""
        try:
            with open(self.directory / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        except OSError:
            return False

    def is_running(self) -> bool:
        return self.state().state == "running" and not self.abandoned()

    def stage(self, name: str) -> StageState:
        return self.state().stage(name)

    def artifact(self, stage: str) -> Path | None:
        """The directory of a finished artifact."""
        path = self.directory / "artifacts" / stage
        return path if (path / "manifest.json").is_file() else None

    def manifest(self, stage: str) -> Manifest | None:
        try:
            return read_manifest(self.directory / "artifacts" / stage)
        except (GristmillError, OSError):
            return None

    def figures(self, stage: str) -> dict[str, Any]:
        """The headline figures in an artifact's manifest."""
        manifest = self.manifest(stage)
        return as_dict(manifest.figures) if manifest else {}

    def json(self, stage: str, name: str) -> Any:
        """A JSON file of an artifact, or None."""
        path = self.artifact(stage)
        return read_json(path / name) if path else None

    def json_lines(self, stage: str, name: str, limit: int) -> list[dict[str, Any]]:
        """The first objects of a JSON lines file of an artifact."""
        path = self.artifact(stage)
        if path is None:
            return []
        try:
            with open(path / name, "rb") as file:
                return [as_dict(loads(line)) for line in islice(file, limit)]
        except (OSError, ValueError):
            return []

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, or {} where there is none yet."""
        try:
            return as_dict(yaml.safe_load((self.directory / "recipe.yaml").read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError):
            return {}

    def stage_config(self, stage: str) -> dict[str, Any]:
        """A stage's configuration: what its artifact was made with, else what the recipe says."""
        manifest = self.manifest(stage)
        if manifest and self.stage(stage).state != "running":
            return as_dict(manifest.config)
        recipe = self.recipe()
        return as_dict(recipe.get(stage) or as_dict(recipe.get("stages")).get(stage))


def is_run_directory(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("recipe.yaml", "events.jsonl", "artifacts"))


def read_json(path: Path) -> Any:
    """A JSON file, or None where it is missing, unreadable or too large for a page."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        return loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def tensor_shapes(directory: Path) -> dict[str, dict[str, Any]]:
    """Names, dtypes, shapes and byte counts of the tensors in a model directory, from the safetensors headers alone.

    The format: 8 bytes little-endian length, then that much JSON (huggingface/safetensors, README, "Format").
    """
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        except (OSError, ValueError, struct.error):
            continue
        for name, entry in as_dict(header).items():
            if name != "__metadata__" and isinstance(entry, dict):
                start, end = entry["data_offsets"]
                tensors[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "bytes": end - start}
    return tensors


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is an object, else {}: files of other versions must not break a panel."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else []."""
    return value if isinstance(value, list) else []


def as_number(value: Any) -> float | int | None:
    """The value if it is a number, else None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def total(value: Any) -> float | int | None:
    """A number, or the sum of the numbers in an object (a figure by domain, reason or kind)."""
    if isinstance(value, dict):
        numbers = [number for number in map(as_number, value.values()) if number is not None]
        return sum(numbers) if numbers else None
    return as_number(value)
