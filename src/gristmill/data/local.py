"""Documents out of the user's own files: text and code, .jsonl, .parquet, .html, .warc and .warc.gz."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

from .config import LocalSource
from .schema import Document
from .web import extract, read_warc


def local_files(source: LocalSource) -> list[tuple[str, Path]]:
    """(name, file) of every file that a local source means, sorted. The name begins at the last directory that the
    source names without a pattern, so no document's id depends on where a checkout lies. GristmillError when nothing
    matches."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        base, found = path, list(path.rglob("*"))
    else:
        base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    below = {file: file.relative_to(base) for file in found if file.is_file()}
    files = {
        (Path(base.name) / name).as_posix(): file
        for file, name in below.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if not files:
        raise GristmillError(f"local path {source.path!r} matches no file (looked in {Path.cwd()}); correct it")
    return sorted(files.items())


def local_documents(source: LocalSource) -> Iterator[Document]:
    """The documents of one local source, file by file."""
    for name, file in local_files(source):
        for part, text in _texts(file, source):
            origin = name if part is None else f"{name}/{part}"
            yield Document(text, "local", source.domain, source.language, source.license, origin)


def _texts(file: Path, source: LocalSource) -> Iterator[tuple[str | int | None, str]]:
    """(part of the file or None, text) pairs."""
    name = file.name.lower()
    if name.endswith(".jsonl"):
        yield from _jsonl(file, source.text_field)
    elif name.endswith(".parquet"):
        yield from _parquet(file, source.text_field)
    elif name.endswith((".warc", ".warc.gz")):
        yield from read_warc(file)
    elif name.endswith((".html", ".htm")):
        yield None, extract(file.read_bytes())
    else:
        yield None, _utf8(file)


def _utf8(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GristmillError(
            f"{file} is not UTF-8 text (byte {error.start}); convert it, or narrow the local path to text files"
        ) from None


def _jsonl(file: Path, field: str) -> Iterator[tuple[int, str]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise GristmillError(f"{file}, line {number}: not JSON ({error})") from None
            yield number, _text_of(row, field, f"{file}, line {number}")


def _text_of(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise GristmillError(f"{place}: no text under {field!r}; name the field that holds it as text_field")
    return str(row[field])


def _parquet(file: Path, column: str) -> Iterator[tuple[int, str]]:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise GristmillError(f"{file} is not a Parquet file ({error})") from None
    schema = table.schema_arrow
    kinds = (pa.types.is_string, pa.types.is_large_string)
    if column not in schema.names or not any(kind(schema.field(column).type) for kind in kinds):
        raise GristmillError(
            f"{file} has no text column {column!r}; name one as text_field (columns: {', '.join(schema.names)})"
        )
    number = 0
    for batch in table.iter_batches(columns=[column], batch_size=1024):
        for text in batch.column(0).to_pylist():
            number += 1
            if text is not None:
                yield number, text
