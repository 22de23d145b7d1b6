"""The document table: its columns, its ids, and the writer that gives the same bytes for the same rows.

Every table of documents in gristmill has the columns of `DOCUMENTS`, in this order; the corpus adds scores and the
split, and the removed documents the reason. The schema is fixed before the first row is seen, so a column that is null
in one file and text in the next cannot change its type halfway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
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
SPLIT = pa.field("split", pa.string(), nullable=False)
SIGNED = (pa.field("digest", pa.binary(16)), pa.field("signature", pa.binary()))  # these stand in `signatures/`
_BYTES = pa.field("bytes", pa.int64(), nullable=False)
CLUSTER = (pa.field("cluster", pa.string(), nullable=False), pa.field("cluster_size", pa.int32(), nullable=False))
_REASON = (
    pa.field("reason", pa.string(), nullable=False),
    pa.field("duplicate_of", pa.string()),
    pa.field("similarity", pa.float32()),
)
_REPEATING = (
    *("source", "domain", "language", "license", "flags", "detected_language", "rule_language", "contaminated"),
    *("reason", "split"),
)

# A row group is what a worker takes at a time; a part is one file. Both end at whichever limit comes first.
ROW_GROUP_BYTES = 2 << 20
ROW_GROUP_ROWS = 1024


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


def annotated_schema(written: pa.Schema) -> pa.Schema:
    """The columns of documents with all that the steps have written, from the schema that the chain gives: the
    documents' first, then `bytes`, then the others in the order of the steps."""
    fixed = {*DOCUMENTS.names, "bytes"}
    return pa.schema([*DOCUMENTS, _BYTES, *(field for field in written if field.name not in fixed)])


def scores(annotated: pa.Schema) -> list[pa.Field]:
    """The columns of an annotated table that say something of a document, beside its own."""
    other = {*DOCUMENTS.names, *(field.name for field in SIGNED)}
    return [field for field in annotated if field.name not in other]


def corpus_schema(annotated: pa.Schema) -> pa.Schema:
    """`documents/` of a corpus: the scores, the id of the document that stands for its cluster of duplicates (its own),
    the cluster's size, and the split."""
    return pa.schema([*DOCUMENTS, *scores(annotated), *CLUSTER, SPLIT])


def removed_schema(annotated: pa.Schema) -> pa.Schema:
    """`removed/` of a corpus: the scores, the cluster, the reason; for a duplicate the id of what it repeats and how
    similar the two are."""
    return pa.schema([*DOCUMENTS, *scores(annotated), *CLUSTER, *_REASON])


def parquet_writer(path: Path, schema: pa.Schema, compression_level: int = 3) -> pq.ParquetWriter:
    """A Parquet file to write to, compressed with zstd; only the columns whose values repeat get a dictionary. Text has
    no statistics: they would keep the smallest and the largest document of every page in memory."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=compression_level,
        use_dictionary=[name for name in schema.names if name in _REPEATING],
        write_statistics=[name for name in schema.names if name != "text"],
    )


class TableWriter:
    """Writes record batches as one Parquet file. Row groups are cut by size, however the rows arrive: the same rows in
    the same order give the same bytes.

    A batch may have more columns than `schema`; where the schema has `text`, its column `bytes` counts towards a row
    group's size.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = parquet_writer(path, schema)
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def note(self, notes: dict[str, str]) -> None:
        """Keep key-value pairs in the file's metadata."""
        self._file.add_key_value_metadata(notes)

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        if "text" in self._schema.names:
            ends = np.cumsum(batch["bytes"].to_numpy(zero_copy_only=False))
        else:
            ends = np.zeros(batch.num_rows, np.int64)
        batch = batch.select(self._schema.names)
        start = 0
        while start < batch.num_rows:
            done = int(ends[start - 1]) if start else 0
            full = int(np.searchsorted(ends, done + ROW_GROUP_BYTES - self._bytes)) + 1
            end = min(full, start + ROW_GROUP_ROWS - self._rows, batch.num_rows)
            self._waiting.append(batch.slice(start, end - start))
            self._rows += end - start
            self._bytes += int(ends[end - 1]) - done
            if self._bytes >= ROW_GROUP_BYTES or self._rows >= ROW_GROUP_ROWS:
                self._flush()
            start = end

    def _flush(self) -> None:
        if self._waiting:
            columns = [pa.concat_arrays([batch[name] for batch in self._waiting]) for name in self._schema.names]
            self._file.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._waiting.clear()
        self._rows = self._bytes = 0


def part_files(directory: Path) -> list[Path]:
    """The Parquet files of a document table, in order. GristmillError when there is none."""
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        raise GristmillError(f"{directory} holds no part-*.parquet; run the stage that writes it again")
    return files


def read_columns(path: Path | str, columns: list[str]) -> pa.Table:
    """Some columns of one Parquet file. (`pyarrow.parquet.read_table` would load pyarrow.dataset, and pandas where that
    is installed: tens of megabytes in every worker.)"""
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def row_groups(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, number of the row group in it, its rows) for every row group of a document table, in order."""
    for path in part_files(directory):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            yield path, group, metadata.row_group(group).num_rows
