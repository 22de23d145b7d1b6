"""Reading evaluation sets: from files of several formats to items, each a list of texts."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_FIELD = "corpus.contamination.sets"


def find_sets(patterns: tuple[str, ...]) -> dict[str, Path]:
    """The files that the patterns name, by the name of their set: the file's without its endings, with the directory's
    before it where two would be called alike. GristmillError for a pattern without files, or a file of another kind."""
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not found:
            raise GristmillError(f"{_FIELD}: there is no file {pattern}")
        files += found
    files = list(dict.fromkeys(files))
    stems = [_stem(path) for path in files]
    sets: dict[str, Path] = {}
    for path, stem in zip(files, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}"
        if name in sets:
            raise GristmillError(f"{_FIELD}: {sets[name]} and {path} have the same name; rename one")
        sets[name] = path
    return sets


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.endswith(suffix) and path.is_file():
            return name.removesuffix(suffix)
    raise GristmillError(f"{_FIELD}: {path} is no {', '.join(SUFFIXES)} file, packed with .gz or not")


def read_items(path: Path, fields: tuple[str, ...] | None) -> Iterator[list[str]]:
    """The items of a set, each as its texts, in order: the named `fields` of a row, or all of it. GristmillError names
    the file that cannot be read, and a field that no row has."""
    seen: set[str] = set()
    missing = set(fields or ())
    try:
        for row in _rows(path):
            if fields is not None and isinstance(row, dict):
                seen |= row.keys()
                missing -= row.keys()
                row = [row.get(field) for field in fields]
            yield list(_texts(row))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise GristmillError(f"{_FIELD}: {path} cannot be read: {error}") from None
    if missing and seen:
        raise GristmillError(
            f"corpus.contamination.fields: no row of {path} has {', '.join(sorted(missing))}; "
            f"there are {', '.join(sorted(seen))}"
        )


def _rows(path: Path) -> Iterator[Any]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as binary:
        file = io.TextIOWrapper(binary, encoding="utf-8", errors="replace", newline="")
        if name.endswith(".jsonl"):
            yield from _json_lines(file)
        elif name.endswith(".json"):
            rows = json.load(file)
            yield from rows if isinstance(rows, list) else [rows]
        elif name.endswith(".txt"):
            yield from re.split(r"\n\s*\n", file.read().replace("\r\n", "\n"))
        else:
            csv.field_size_limit(min(sys.maxsize, 1 << 31))
            yield from csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ",")


def _json_lines(file: io.TextIOWrapper) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        try:
            yield json.loads(line) if line.strip() else ""
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(error) from None


def _texts(value: Any) -> Iterator[str]:
    """All strings in a value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
