"""One task of stage `collected`: reads its share of the input and writes row groups into a directory of its own.

Beside the row groups lie the ids of their documents, their sizes, and `progress.json`: how many row groups there are,
the place in the input behind the last document of the last one, and the counts up to there. All are put in place after
each row group, so a task that was killed goes on there and writes the same bytes as one that was not.
"""

from __future__ import annotations

import importlib
import json
import os
import posixpath
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from ..config import BooksConfig, CodeConfig, DocsConfig, LimitsConfig, PathSource, WebConfig
from ..schema import DOCUMENTS, ROW_GROUP_BYTES, ROW_GROUP_ROWS, Document, parquet_writer
from . import packages
from .archives import SIBLING_BYTES
from .discover import open_file, without_compression
from .reader import Found, Input, Part, Reader
from .tables import Place
from .tally import Tally
from .warc import WarcReader

PROGRESS = "progress.json"
IDS = "ids.bin"  # 8 bytes for each document, most significant first
SIZES = "sizes.bin"  # rows and bytes of each row group, as int64
_PACKAGES: dict[str, tuple[Any, Callable[[Any], Iterator[Document]]]] = {
    "books": (BooksConfig, packages.books),
    "code": (CodeConfig, packages.code),
    "docs": (DocsConfig, packages.docs),
}


def collect_task(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task, or what is left of it. It gives `out` (its directory), `kind` (`books`, `code`, `docs`, `web`,
    `files`), the configuration, `files` and `part` for kind `files`, and `limit` (documents, or None)."""
    output, limit = _Output(Path(task["out"])), task["limit"]
    if not output.done and (limit is None or output.tally.documents < limit):
        for place, document, format in _documents(task, output):
            output.add(place, document, format)
            if limit is not None and output.tally.documents == limit:
                break
    output.finish()
    return {}


def load(task: dict[str, Any]) -> dict[str, Any]:
    """Load what nearly every task needs beside this module: the process that workers are forked from begins with it."""
    for parser in ("fastwarc.warc", "resiliparse.extract.html2text", "resiliparse.parse.encoding"):
        importlib.import_module(parser)
    return {}


def read_progress(directory: Path) -> dict[str, Any] | None:
    """What a task has noted down: `groups`, `place`, `tally`, `read_bytes`, `seconds` (of a processor), `done`; None
    before its first row group."""
    try:
        progress: dict[str, Any] = json.loads((directory / PROGRESS).read_bytes())
    except FileNotFoundError:
        return None
    return progress


class Group(NamedTuple):
    """A row group that a task wrote: its file, its rows, and the bytes of their texts."""

    file: Path
    rows: int
    bytes: int


def read_groups(directory: Path) -> list[Group]:
    """The row groups of a task that is done, in order."""
    sizes = np.fromfile(directory / SIZES, "<i8").reshape(-1, 2).tolist() if (directory / SIZES).exists() else []
    return [Group(_group_file(directory, number), rows, size) for number, (rows, size) in enumerate(sizes)]


def _group_file(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.parquet"


class _Output:
    """The row groups of a task and its progress."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.tally = Tally()
        self.place: Place = ()  # behind the last document
        self.done = False
        self.position: Callable[[], int] = lambda: 0  # how many bytes of input were read
        self._directory, self._groups, self._seconds = directory, 0, 0.0
        if (progress := read_progress(directory)) is not None:
            self.tally = Tally.from_json(progress["tally"])
            self.place, self.done = tuple(progress["place"]), progress["done"]
            self._groups = progress["groups"]
            self._seconds = progress["seconds"]
        self._seconds -= time.process_time()
        self._columns: list[list[bytes]] = [[] for _ in DOCUMENTS]
        self._bytes = 0

    def add(self, place: Place, document: Document, format: str) -> None:
        # A file may hold lone surrogates in an escape; UTF-8, and so the table, cannot.
        text = document.text.encode("utf-8", "ignore")
        words = [word.encode() for word in (document.id, *document[1:])]
        for values, value in zip(self._columns, (words[0], text, *words[1:]), strict=True):
            values.append(value)
        self.place = place
        self.tally.document(document.source, format, document.license, len(text))
        self._bytes += len(text)
        if self._bytes >= ROW_GROUP_BYTES or len(self._columns[0]) >= ROW_GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        if not self.done:
            self.done = True
            self._flush()

    def _flush(self) -> None:
        if self._columns[0]:
            arrays = [strings(values) for values in self._columns]
            file = _group_file(self._directory, self._groups)
            temporary = file.with_name(f".{file.name}.{os.getpid()}.writing")
            with parquet_writer(temporary, DOCUMENTS, compression_level=1) as writer:
                writer.write_table(pa.Table.from_arrays(arrays, schema=DOCUMENTS))
            os.replace(temporary, file)
            ids = bytes.fromhex(b"".join(self._columns[0]).decode())
            self._append(IDS, 8 * self.tally.documents, ids)
            sizes = np.array([len(self._columns[0]), self._bytes], "<i8").tobytes()
            self._groups += 1
            self._append(SIZES, 16 * self._groups, sizes)
        for values in self._columns:
            values.clear()
        self._bytes = 0
        progress = {
            "groups": self._groups,
            "place": self.place,
            "tally": self.tally.to_json(),
            "read_bytes": self.position(),
            "seconds": self._seconds + time.process_time(),
            "done": self.done,
        }
        temporary = self._directory / f".{PROGRESS}.{os.getpid()}.writing"
        temporary.write_text(json.dumps(progress))
        os.replace(temporary, self._directory / PROGRESS)

    def _append(self, name: str, end: int, data: bytes) -> None:
        """Write `data` so that the file is `end` bytes long: a run that was killed may have written some of it."""
        with open(self._directory / name, "ab") as file:
            file.truncate(end - len(data))
            file.write(data)


def strings(values: list[bytes]) -> pa.Array:
    """A string column. `pa.array` of a list would import pandas where it is installed: 50 MB in every worker."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def _documents(task: dict[str, Any], output: _Output) -> Iterator[tuple[Place, Document, str]]:
    """(place behind it, document, its format) for what is left of a task."""
    kind = task["kind"]
    if kind == "files":
        yield from _files(task, output)
    elif kind == "web":
        yield from _web(task, output)
    else:
        config, read = _PACKAGES[kind]
        skipped = sum(output.place)
        for number, document in zip(count(1), read(config.model_validate(task["config"])), strict=False):
            if number > skipped:
                yield (number,), document, "package"


def _web(task: dict[str, Any], output: _Output) -> Iterator[tuple[Place, Document, str]]:
    """The pages of the web source: rendered into a WARC file unless it is there, and read back from it."""
    from . import pages

    warc = Path(task["warc"])
    if not warc.exists():
        pages.render_web(WebConfig.model_validate(task["config"]), warc, Path(task["out"]))
    reader = WarcReader(warc.name, "resiliparse", LimitsConfig.model_validate(task["limits"]), output.tally)
    with open(warc, "rb") as stream:
        for place, found in reader.read(stream, output.place):
            yield place, Document(found.text, "python", "web", "en", "PSF-2.0", found.part), "warc"


def _files(task: dict[str, Any], output: _Output) -> Iterator[tuple[Place, Document, str]]:
    source = PathSource.model_validate(task["config"])
    limits = LimitsConfig.model_validate(task["limits"])
    reader = Reader(source, limits, output.tally)
    part = Part(*task["part"]) if task["part"] is not None else None
    first = output.place[0] if output.place else 0
    before = sum(size or 0 for _, _, size, _ in task["files"][:first])
    for number, (name, path, size, license) in enumerate(task["files"][first:], first):
        opened: list[BinaryIO] = []
        output.position = partial(_position, before, opened, size, part)
        file = Input(
            name, without_compression(name), partial(_open, path, opened), license,
            siblings=partial(_sibling, name, path),
        )  # fmt: skip
        start = output.place[1:] if number == first else ()
        for found in reader.read(file, start, part):
            if (document := _document(found, source, limits, output.tally)) is not None:
                yield (number, *found.place), document, found.format
        before += size or 0


def _document(found: Found, source: PathSource, limits: LimitsConfig, tally: Tally) -> Document | None:
    """The document that was found, with what the source declares where the file is silent; None if it is empty or too
    long, which is counted."""
    if not found.text or found.text.isspace():
        tally.problem("empty", found.origin)
        return None
    limit = limits.max_document_bytes
    if len(found.text) * 4 > limit and (size := len(found.text.encode("utf-8", "ignore"))) > limit:
        tally.problem("too_large", found.origin, f"{size:,} bytes")
        return None
    return Document(
        found.text,
        source.name,
        found.domain or source.domain,
        found.language or source.language,
        found.license or source.license,
        found.origin,
        found.flags,
    )


def _open(path: str, opened: list[BinaryIO]) -> BinaryIO:
    opened[:] = [open_file(path)]
    return opened[0]


def _position(before: int, opened: list[BinaryIO], size: int | None, part: Part | None) -> int:
    """How many bytes of a task's files were read, for the progress bar."""
    if not opened or opened[0].closed:
        return before
    here = opened[0].tell() - (part.first if part is not None else 0)
    return before + max(0, min(here, size if size is not None else here))


def _sibling(name: str, path: str, other: str) -> bytes | None:
    """The bytes of another file, by its path from a file's directory; None outside the source's own directory."""
    place = posixpath.normpath(other)
    if place.startswith("/") or place.split("/").count("..") >= max(name.count("/"), 1):
        return None
    directory = posixpath.dirname(path)
    while place.startswith("../"):
        directory, place = posixpath.dirname(directory), place[3:]
    try:
        with open_file(f"{directory}/{place}") as file:
            return file.read(SIBLING_BYTES)
    except Exception:  # it is not there, cannot be read, or cannot be reached
        return None
