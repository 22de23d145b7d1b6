"""Text to train a reference model or a classifier on, from the paths that a user names.

A path is a Parquet file, a JSONL file, any other file of text (one document; both plain, .gz, .zst or .bz2), an
artifact (`collected` or `corpus`), or a directory, of which every file below it is read, in the order of their names,
but for hidden ones and what hidden directories hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

SCHEMA = pa.schema(
    [pa.field("text", pa.large_string(), nullable=False), pa.field("source", pa.string(), nullable=False)]
)
_ROWS = 1024
_HEAD = 8192  # bytes in which a NUL gives binary data away
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def read_paths(paths: Iterable[Path | str]) -> Iterator[pa.RecordBatch]:
    """Batches of `text` and `source`. The source is what a row says it is (column or field `source`), else the path's
    name, so that each path is one source. GristmillError names a path that is missing, or a file that is broken."""
    found = [(Path(path), _files(Path(path))) for path in paths]
    return (batch for path, files in found for batch in _read_files(files, path.name))


def prepare_out(out: Path) -> None:
    """Make the directory of a file to be written. GristmillError when there cannot be such a file, said before the
    training and not after it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise GristmillError(f"{out} cannot be written: {out.parent} is no directory") from None
    if out.is_dir():
        raise GristmillError(f"{out} is a directory; name a file to write the model to")


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise GristmillError(f"{path} does not exist; name a file or a directory of text")
    root = path / "documents" if (path / "documents").is_dir() else path
    files = [root] if root.is_file() else sorted(filter(Path.is_file, root.rglob("*")))
    files = [file for file in files if not any(part[0] == "." for part in file.relative_to(root).parts)]
    if not files:
        raise GristmillError(f"{path} holds no file; name a file or a directory of text")
    return files


def _read_files(files: list[Path], name: str) -> Iterator[pa.RecordBatch]:
    for file in files:
        try:
            if file.suffix == ".parquet":
                yield from _parquet(file, name)
            elif ".jsonl" in file.suffixes:
                yield from _json_lines(file, name)
            else:
                yield _batch([_text(file)], [name])
        except (OSError, pa.ArrowException) as error:
            raise GristmillError(f"{file} cannot be read: {error}") from None


def _parquet(file: Path, name: str) -> Iterator[pa.RecordBatch]:
    table = pq.ParquetFile(file)
    if "text" not in table.schema_arrow.names:
        raise GristmillError(f"{file} has no column 'text' but {', '.join(table.schema_arrow.names)}")
    columns = [column for column in ("text", "source") if column in table.schema_arrow.names]
    for batch in table.iter_batches(_ROWS, columns=columns):
        texts = batch.column("text").cast(pa.large_string()).fill_null("")
        sources = batch.column("source").cast(pa.string()).fill_null(name) if len(columns) > 1 else None
        yield pa.record_batch([texts, pa.array([name] * len(texts)) if sources is None else sources], schema=SCHEMA)


def _json_lines(file: Path, name: str) -> Iterator[pa.RecordBatch]:
    texts: list[str] = []
    sources: list[str] = []
    for number, line in enumerate(_read(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            text = row["text"]
        except (ValueError, KeyError, TypeError):
            raise GristmillError(f"{file}, line {number}: no JSON object with a field 'text'") from None
        source = row.get("source")
        texts.append("" if text is None else str(text))
        sources.append(name if source is None else str(source))
        if len(texts) >= _ROWS:
            yield _batch(texts, sources)
            texts, sources = [], []
    if texts:
        yield _batch(texts, sources)


def _text(file: Path) -> str:
    data = _read(file)
    if b"\0" in data[:_HEAD]:
        raise GristmillError(f"{file} is no text: it holds binary data; name text in UTF-8, .jsonl or .parquet files")
    return data.decode("utf-8", "replace")


def _read(file: Path) -> bytes:
    compression = _COMPRESSED.get(file.suffix)
    if compression is None:
        return file.read_bytes()
    with pa.input_stream(str(file), compression=compression) as stream:
        return bytes(stream.read())


def _batch(texts: list[str], sources: list[str]) -> pa.RecordBatch:
    whole = [text.encode("utf-8", "replace").decode() for text in texts]  # a lone surrogate from JSON is no text
    return pa.record_batch([pa.array(whole, pa.large_string()), pa.array(sources, pa.string())], schema=SCHEMA)
