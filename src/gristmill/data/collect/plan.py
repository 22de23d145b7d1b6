"""Cuts the input into tasks. The cut depends on the input alone, never on how many workers there are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.errors import GristmillError

from ..config import CollectConfig, PathSource
from ..pool import Mapper
from .discover import File, find_files, is_url, open_file
from .formats.base import BadInput
from .formats.licenses import nearest_license, tree_licenses
from .pagetext import WIDE_MARKS
from .streams import compression_of
from .tables import open_parquet
from .tally import Tally
from .warc import is_packed_by_record

SMALL_BYTES = 16 << 20  # small files are read so many bytes a task
SMALL_FILES = 2000
SPLIT_BYTES = 32 << 20  # large tables and web archives are cut into pieces of about this size
_PACKAGES = ("books", "code", "docs", "web")
_LICENSE_FILE_BYTES = 1 << 18

Task = dict[str, Any]
Counted = dict[str, list[dict[str, Any]]]


class Plan(NamedTuple):
    """The tasks of one source, in the order of its documents, and how many documents are kept of it."""

    name: str
    tasks: list[Task]
    max_documents: int | None

    @property
    def is_cut(self) -> bool:
        """Whether the tasks may find more documents than are kept; a single task stops by itself."""
        return self.max_documents is not None and len(self.tasks) > 1


def file_lists(config: CollectConfig, tally: Tally) -> list[list[File]]:
    """The files of every source under `paths`. `tally` counts what cannot be looked at."""
    seen: set[tuple[str, str]] = set()
    lists = []
    for source in config.paths:
        files = find_files(source, tally)
        _check_names(source, files, seen)
        lists.append(files)
    return lists


def most_tasks(config: CollectConfig, lists: list[list[File]]) -> int:
    """No more than so many tasks will be made: it is no use to have more workers."""
    found = sum(getattr(config, name).enabled for name in _PACKAGES)
    for files in lists:
        sizes = [file.size for file in files]
        found += 1 + sizes.count(None) + sum(size or 0 for size in sizes) // SMALL_BYTES + len(files) // SMALL_FILES
    return found


def make_plans(
    config: CollectConfig, lists: list[list[File]], warc: Path, directory: Path, mapper: Mapper
) -> list[Plan]:
    """The tasks of every enabled source; each has a directory of its own below `directory`."""
    limits = {"limits": config.limits.model_dump(mode="json")}
    plans = []
    for name in _PACKAGES:
        section = getattr(config, name)
        if section.enabled:
            task = {"kind": name, "config": section.model_dump(mode="json"), "bytes": 0, "warc": str(warc.absolute())}
            plans.append(Plan(name, [task | limits], section.max_documents))
    counted = _count_lines(config, lists, mapper)
    for source, files in zip(config.paths, lists, strict=True):
        shared = {"kind": "files", "config": source.model_dump(mode="json")} | limits
        tasks = [shared | task for task in _file_tasks(source, files, counted)]
        plans.append(Plan(source.name, tasks, source.max_documents))
    number = 0
    for plan in plans:
        for task in plan.tasks:
            task |= {"out": str(directory.absolute() / f"{number:06d}"), "limit": plan.max_documents}
            number += 1
    return plans


def _check_names(source: PathSource, files: list[File], seen: set[tuple[str, str]]) -> None:
    """Two files of one name in one source would give documents of one id."""
    for file in files:
        if (source.name, file.name) in seen:
            raise GristmillError(
                f"two files of source {source.name!r} are both called {file.name!r}: the paths overlap, or lead to "
                f"directories of the same name; leave one out, or give {source.path!r} a name of its own (name: ...)"
            )
        seen.add((source.name, file.name))


def _file_tasks(source: PathSource, files: list[File], counted: Counted) -> Iterator[Task]:
    licenses = tree_licenses((file.name for file in files), _reader_of(files))
    small: list[list[Any]] = []
    size = 0
    for file in files:
        entry = [file.name, file.path, file.size, nearest_license(file.name, licenses)]
        if file.size is not None and file.size <= SMALL_BYTES:
            small.append(entry)
            size += file.size
            if size < SMALL_BYTES and len(small) < SMALL_FILES:
                continue
        if small:
            yield _task(small)
        small, size = [], 0
        if file.size is None or file.size > SMALL_BYTES:
            yield from _large_file(source, file, entry, counted)
    if small:
        yield _task(small)


def _task(entries: list[list[Any]], part: list[int] | None = None) -> Task:
    return {"files": entries, "part": part, "bytes": sum(size or 0 for _, _, size, _ in entries)}


def _large_file(source: PathSource, file: File, entry: list[Any], counted: Counted) -> Iterator[Task]:
    if file.path in counted:
        parts = _line_parts(counted[file.path])
    elif _is_of(source, file, "parquet", (".parquet",)):
        parts = _row_group_parts(file)
    elif _is_of(source, file, "warc", (".warc", ".warc.gz", ".wet", ".wet.gz")) and not is_url(file.path):
        parts = _record_parts(file)
    else:
        parts = []
    if len(parts) < 2:
        yield _task([entry])
        return
    for size, part in parts:
        yield _task([[*entry[:2], size, entry[3]]], part)


def _is_of(source: PathSource, file: File, format: str, endings: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(endings) if source.format == "auto" else source.format == format


def _count_lines(config: CollectConfig, lists: list[list[File]], mapper: Mapper) -> Counted:
    """Path -> the ranges of bytes of a large file with a record a line, and the lines in each."""
    large: dict[str, int] = {}
    for source, files in zip(config.paths, lists, strict=True):
        for file in files:
            lines = _is_of(source, file, "jsonl", (".jsonl", ".ndjson")) or source.format == "lines"
            if lines and file.size is not None and file.size > max(SMALL_BYTES, SPLIT_BYTES) and _is_plain(file):
                large[file.path] = file.size
    tasks = [
        {"path": path, "first": first, "last": last}
        for path, size in large.items()
        for first, last in pairwise([*range(0, size, SPLIT_BYTES), size])
    ]
    counted: Counted = {}
    for task, found in zip(tasks, mapper("gristmill.data.collect.plan:count_lines", tasks), strict=True):
        counted.setdefault(task["path"], []).append(task | found)
    return counted


def _is_plain(file: File) -> bool:
    """Whether a file lies on this machine, can be opened, and is neither compressed, whatever it is called, nor UTF-16:
    whether its line ends can be sought as bytes."""
    if is_url(file.path):
        return False
    try:
        with open_file(file.path) as stream:
            head = stream.read(8)
            return compression_of(head) is None and not head.startswith(WIDE_MARKS)
    except OSError:
        return False


def _line_parts(ranges: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    """(bytes, [first byte, byte behind, lines before]) of the pieces of a file with a record a line."""
    parts: list[tuple[int, list[int]]] = []
    lines = 0
    for here in ranges:
        size = here["last"] - here["first"]
        if here["first"] == 0:
            parts.append((size, [0, here["last"] + 1, 0]))
        elif here["newline"] is not None:  # the first line that begins in the range, behind that newline
            parts.append((size, [here["newline"] + 1, here["last"] + 1, lines + 1]))
        else:
            parts[-1] = (parts[-1][0] + size, parts[-1][1])
        lines += here["lines"]
    return parts


def _record_parts(file: File) -> list[tuple[int, list[int]]]:
    """(bytes, [first byte, byte behind]) of the pieces of a WARC file; [] where it is compressed as a whole."""
    assert file.size is not None
    try:
        with open_file(file.path) as stream:
            plain = stream.read(5) == b"WARC/"
            stream.seek(0)
            if not plain and not is_packed_by_record(stream):
                return []
    except OSError:
        return []
    return [(last - first, [first, last]) for first, last in pairwise([*range(0, file.size, SPLIT_BYTES), file.size])]


def count_lines(task: dict[str, Any]) -> dict[str, Any]:
    """How many lines end in a range of bytes, and where the first of them does (None: nowhere)."""
    lines, newline = 0, None
    place = task["first"]
    with open(task["path"], "rb") as file:
        file.seek(place)
        while place < task["last"] and (data := file.read(min(1 << 20, task["last"] - place))):
            if newline is None and (found := data.find(b"\n")) >= 0:
                newline = place + found
            lines += data.count(b"\n")
            place += len(data)
    return {"lines": lines, "newline": newline}


def _row_group_parts(file: File) -> list[tuple[int, list[int]]]:
    """(bytes, [first row group, the one behind the last]) of the pieces of a Parquet file; [] where it is damaged: its
    reader will say so."""
    try:
        with open_file(file.path) as stream:
            metadata = open_parquet(stream).metadata
    except (BadInput, OSError):
        return []
    parts: list[tuple[int, list[int]]] = []
    first = size = 0
    left = file.size or 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        size += sum(about.column(i).total_compressed_size for i in range(about.num_columns))
        last = group == metadata.num_row_groups - 1
        if size >= SPLIT_BYTES or last:
            parts.append((left if last else size, [first, group + 1]))
            first, size, left = group + 1, 0, left - size
    return parts


def _reader_of(files: list[File]) -> Any:
    paths = {file.name: file.path for file in files}

    def read(name: str) -> bytes | None:
        try:
            with open_file(paths[name]) as file:
                return file.read(_LICENSE_FILE_BYTES)
        except Exception:  # then it tells no licence; its reader will say what is wrong with it
            return None

    return read
