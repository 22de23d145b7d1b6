"""The document table: its columns, its ids, and the writer that gives the same bytes for the same rows.

Every table of documents in gristmill has the columns of `DOCUMENTS`, in this order; the corpus adds the split, and the
removed documents the reason. The schema is fixed before the first row is seen, so a column that is null in one file
and text in the next cannot change its type halfway.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

DOCUMENTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("flags", pa.string(), nullable=False),
    ]
)
CORPUS = DOCUMENTS.append(pa.field("split", pa.string(), nullable=False))
REMOVED = DOCUMENTS.append(pa.field("reason", pa.string(), nullable=False)).append(
    pa.field("duplicate_of", pa.string())
)

# A row group is what a worker takes at a time; a part is one file. Both end at whichever limit comes first.
ROW_GROUP_BYTES = 2 << 20
ROW_GROUP_ROWS = 1024
PART_BYTES = 256 << 20


class Document(NamedTuple):
    """One row before it has an id. `origin` is where it stands inside `source`; what follows a `#` in it is a part of
    one work, and the parts of a work go to the same split. `flags` are words joined by commas, in alphabetical order,
    such as `generated` or `vendored`."""


    text: str
    source: str
    domain: str
    language: str
    license: str
    origin: str
    flags: str = ""

    @property
    def id(self) -> str:
        return document_id(self.source, self.origin)


def document_id(source: str, origin: str) -> str:
    """16 hex digits of sha256 over the source and the position in it: the same wherever and whenever it is read."""
    return hashlib.sha256(f"{source}\0{origin}".encode()).hexdigest()[:16]


def work_of(origin: str) -> str:
    """The work that a document is a part of: `Genesis#3` and `Genesis#4` are parts of `Genesis`."""
    return origin.partition("#")[0]


class DocumentWriter:
    """Writes rows as `directory/part-NNNNN.parquet`; an earlier `directory` is removed first.

    Row groups are cut by size, not by how the rows happened to arrive, so any way of producing the same rows in the
    same order gives the same bytes.
    """

    def __init__(self, directory: Path, schema: pa.Schema):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.rows = self.bytes = 0
        self._directory, self._schema = directory, schema
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._group_bytes = self._part_bytes = self._parts = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            if not self._parts:  # an empty table is still a table
                self._open()
        if self._file is not None:
            self._file.close()

    def add(self, text_bytes: int, **row: Any) -> None:
        """Append one row; `text_bytes` is the UTF-8 length of its text."""
        for name, values in self._columns.items():
            values.append(row[name])
        self.rows += 1
        self.bytes += text_bytes
        self._group_bytes += text_bytes
        if self._group_bytes >= ROW_GROUP_BYTES or len(self._columns["id"]) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._columns["id"]:
            return
        if self._file is not None and self._part_bytes >= PART_BYTES:
            self._file.close()
            self._file = None
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write_table(pa.table(self._columns, schema=self._schema))
        self._part_bytes += self._group_bytes
        self._group_bytes = 0
        for values in self._columns.values():
            values.clear()

    def _open(self) -> None:
        path = self._directory / f"part-{self._parts:05d}.parquet"
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=3)
        self._parts += 1
        self._part_bytes = 0


def part_files(directory: Path) -> list[Path]:
    """The Parquet files of a document table, in order. GristmillError when there is none."""
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        raise GristmillError(f"{directory} holds no part-*.parquet; run the stage that writes it again")
    return files


def row_groups(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, number of the row group in it, its rows) for every row group of a document table, in order."""
    for path in part_files(directory):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            yield path, group, metadata.row_group(group).num_rows
