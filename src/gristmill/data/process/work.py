"""What the phases of the stage share: the scratch directory, how a file gets there whole, and how tasks are handed out.

    units/NNNNNNN.npy           lines or paragraphs of a row group, where repeated ones are removed
    repeated/                   what each row group has to drop of them
    models/, MODEL.json         models that score documents, and the figures of their making
    annotated/NNNNNNN.parquet   one row group of the input with all its columns
    reused/NNNNN.parquet        the same of one part of the artifact that is about to be replaced
    judged/NNNNN.npy            what the decisions need to know of the documents of one part (`judge.RECORD`)
    exact/, near/               sorted hashes, signatures, sets of n-grams
    decided.npy                 what was decided for every document (`decide.DECISION`)
    written/NNNNN.json          the part is in place; its counts for the report

Every file is written under another name and renamed when it is whole, so a killed stage goes on with what is there. A
task carries the name of the run that it belongs to: a worker that outlived its run cannot put a file into the next.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.artifact import StageRun, write_text

from ..config import CorpusConfig
from ..dedup.tables import DocumentFiles
from ..pool import Mapper, Result, Task

DIRECTORIES = ("units", "repeated", "models", "annotated", "reused", "judged", "exact", "near", "written")


@dataclass(frozen=True)
class Place:
    """A scratch directory and the run that works in it."""

    scratch: Path
    run: str

    @classmethod
    def begin(cls, scratch: Path, key: str) -> Place:
        """Make the directory ready for a run. What was done under another `key` is removed."""
        place = cls(scratch, uuid.uuid4().hex)
        write_text(scratch / "run", place.run)
        mark = scratch / "key"
        if not mark.exists() or mark.read_text() != key:
            for name in DIRECTORIES:
                shutil.rmtree(scratch / name, ignore_errors=True)
            for path in scratch.glob("*.json"):
                path.unlink()
            write_text(mark, key)
        for name in DIRECTORIES:
            (scratch / name).mkdir(exist_ok=True)
        for torn in scratch.glob(".*.writing"):
            torn.unlink(missing_ok=True)
        return place

    @classmethod
    def of(cls, task: Task) -> Place:
        """The place that a task was given."""
        return cls(Path(task["scratch"]), task["run"])

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A name to write under; at the end of the block the file is put at `path`, unless a newer run has begun."""
        temporary = self.scratch / f".{path.parent.name}-{path.name}.{self.run[:8]}-{os.getpid()}.writing"
        try:
            yield temporary
            if (self.scratch / "run").read_text() != self.run:
                raise RuntimeError(f"another run has begun in {self.scratch}")
            path.parent.mkdir(exist_ok=True)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass
class Work:
    """One run of the stage."""

    config: CorpusConfig
    run: StageRun
    place: Place
    mapper: Mapper

    @cached_property
    def settings(self) -> str:
        """The configuration as JSON."""
        return self.config.model_dump_json()

    def path(self, *names: str) -> Path:
        """A file or directory in scratch."""
        return self.place.scratch.joinpath(*names)

    def task(self, **fields: Any) -> Task:
        """A task that carries the configuration and its place."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
        return {"config": self.settings, "scratch": str(self.place.scratch), "run": self.place.run, **plain}

    def each(self, target: str, numbers: Sequence[int], task: Callable[[int], Task]) -> Iterator[tuple[int, Result]]:
        """(number, result) of the numbered tasks of this package that `task` makes."""
        yield from zip(numbers, self.mapper(f"gristmill.data.process.{target}", map(task, numbers)), strict=True)


class Part(NamedTuple):
    """A fixed run of row groups of the input, and what becomes one file of the corpus. `first` and `last` (behind it)
    number its annotated files. `input` is what was read: `read` (documents and bytes by domain) and `problems`."""

    number: int
    first: int
    last: int
    input: dict[str, Any]


@dataclass(frozen=True)
class Annotated:
    """All annotated documents. `seconds` are CPU seconds by step."""

    files: DocumentFiles
    parts: list[Part]
    seconds: dict[str, float]

    def paths(self, part: Part) -> list[str]:
        return [str(path) for path in self.files.paths[part.first : part.last]]

    def rows(self, part: Part) -> slice:
        """The numbers of a part's documents."""
        return slice(int(self.files.starts[part.first]), int(self.files.starts[part.last]))
