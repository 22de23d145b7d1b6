"""`Checkpoints`: what the training loop saves to and loads from."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import GristmillError
from .directory import Name, explain, last_serial, list_names, sweep
from .exchange import Exchange
from .loading import compare_identity, load, whole_state
from .saving import begin, copied, finish, probe, prune
from .shards import Piece

if TYPE_CHECKING:
    from ..parallel.processes import Processes

Template = Callable[[], dict[str, Tensor]]


class Checkpoints:
    """The checkpoints of one run under `directory`, which all its processes share. Every method is called by all
    processes alike; errors are raised in all of them alike.

    `keep` newest checkpoints stay and, among those saved with `golden=True`, the `keep_golden` newest.
    `asynchronous`: `save` returns when this process's share of the state is copied to host memory (which it occupies
    until it is written: with AdamW 12 bytes a parameter over all processes); a thread writes it.
    `identity`: JSON values that must be the same when a checkpoint is loaded, such as the tokenizer's hash.
    `note` is told, always in the caller's thread, what the user should know and nothing fails over.

    A context manager: leaving it waits for what is being written.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        keep_golden: int,
        asynchronous: bool,
        processes: Processes,
        *,
        identity: Mapping[str, Any] | None = None,
        note: Callable[[str], object] = warnings.warn,
    ) -> None:
        assert keep > 0, keep
        self.directory = directory
        self._keep = keep
        self._keep_golden = keep_golden
        self._asynchronous = asynchronous
        self._identity = json.loads(json.dumps(dict(identity or {})))  # as it will be read back
        self._note = note
        self._exchange = Exchange(processes)
        self._damaged: set[Name] = set()
        self._serial = 0  # of the last save, this run's or an earlier one's; the first process counts
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._notes: list[str] = []

    def check_writable(self, expected_bytes: int = 0) -> None:
        """Make the directory, clear it of what a killed run left half written, and try whether every process can write.

        GristmillError says who cannot and why; also where less than `expected_bytes` are free.
        """
        problem = None
        if self._exchange.main:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                sweep(self.directory)
            except OSError as error:
                problem = explain(error, self.directory)
        problem = self._exchange.problem(problem)
        if problem is None:
            problem = self._exchange.problem(probe(self.directory, self._exchange, expected_bytes))
        if problem is not None:
            raise GristmillError(f"checkpoints cannot be written to {self.directory}: {problem}")

    def save(self, step: int, tensors: dict[str, Tensor], extra: Any, golden: bool = False) -> None:
        """Save `tensors` and `extra` (JSON) as the state after `step` steps; the new newest one, whatever `step` is.

        A tensor is a DTensor, or the same in all processes that give one of its name. Waits for the save before; its
        error, where it had one, is raised here, and then nothing is saved.
        GristmillError says why it could not be saved; checkpoints from before stand.
        """
        self.wait()
        extra = json.loads(json.dumps(extra, allow_nan=False))  # a copy too: the caller goes on writing its history
        name = self._exchange.from_main(Name(step, self._next_serial(), golden) if self._exchange.main else None)
        assert name is not None
        pieces = begin(self.directory, name, tensors, self._exchange)
        if self._asynchronous:
            self._thread = threading.Thread(
                target=self._write_behind, args=(name, copied(pieces), extra), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._write(name, pieces, extra)
            self._tell()

    def wait(self) -> None:
        """Return when the last save stands; its GristmillError where it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._tell()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> None:
        """`wait`, where the last save has ended in all processes; else return at once. So a disk that is full is told
        in one of the next steps, and not when the next checkpoint is due."""
        if self._thread is not None and self._exchange.everywhere(not self._thread.is_alive()):
            self.wait()

    def load_latest(self, template: Template) -> tuple[dict[str, Tensor], Any] | None:
        """Load the checkpoint that was saved last: `template()`'s tensors, filled in place, and what was saved with
        them; None where nothing was ever saved.

        `template` is called where there is something to load; a process may give the tensors it needs alone.
        A damaged checkpoint is passed over for the one before, with a note. GristmillError where all are damaged, or
        where the tensors' names, shapes or types or the identity differ.
        """
        return self._load(template, golden=False)

    def load_golden(self, template: Template) -> tuple[dict[str, Tensor], Any] | None:
        """`load_latest` among the golden checkpoints. Those saved after it stay the latest ones until the next `save`,
        so a run that goes back saves at once."""
        return self._load(template, golden=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def _next_serial(self) -> int:
        self._serial = max(self._serial, last_serial(self.directory)) + 1
        return self._serial

    def _write_behind(self, name: Name, pieces: list[Piece], extra: Any) -> None:
        try:
            self._write(name, pieces, extra)
        except BaseException as error:
            self._error = error

    def _write(self, name: Name, pieces: list[Piece], extra: Any) -> None:
        finish(self.directory, name, pieces, self._identity, extra, self._exchange)
        if self._exchange.main:
            note = prune(self.directory, self._keep, self._keep_golden, self._damaged)
            if note is not None:
                self._notes.append(note)

    def _tell(self) -> None:
        notes, self._notes = self._notes, []
        for note in notes:
            self._note(note)

    def _load(self, template: Template, golden: bool) -> tuple[dict[str, Tensor], Any] | None:
        self.wait()
        names = self._exchange.from_main(list_names(self.directory) if self._exchange.main else [])
        names = [name for name in names if name.golden or not golden]
        tensors = None
        for name in names:
            path = self.directory / str(name)
            state = whole_state(self.directory, name, self._exchange)
            problem: str | None
            if isinstance(state, str):
                problem = state
            else:
                compare_identity(path, state["identity"], self._identity)
                tensors = template() if tensors is None else tensors
                problem = load(self.directory, name, state["files"], tensors, self._exchange)
                if problem is None:
                    return tensors, state["extra"]
            self._damaged.add(name)
            if self._exchange.main:
                self._note(f"checkpoint {path} is damaged and passed over: {problem}")
        if names:
            raise GristmillError(
                f"every {'golden ' if golden else ''}checkpoint in {self.directory} is damaged ({len(names)} of them); "
                "remove the directory to start over"
            )
        return None
