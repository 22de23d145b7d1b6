"""Reading what was collected, however badly it is broken: batches of sound rows, and a list of what was not sound.

A row group that cannot be read, or that has a column of the wrong type, is left out whole; a row with a null is left
out; bytes that are no UTF-8 are replaced by U+FFFD. Each is a `Problem` of the report, none ends the stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..schema import DOCUMENTS, document_id, part_files

BATCH_BYTES = 2 << 20  # text that goes through the steps at a time
SLICE_BYTES = 4 << 20  # a longer document goes through them as several
_SEARCHED = 64 << 10  # how far back from a slice's end a border is looked for
_ID = re.compile(r"[0-9a-f]{16}")


class Group(NamedTuple):
    """One row group of what was collected."""

    file: str
    group: int
    rows: int


class Problem(NamedTuple):
    """Something broken in the input: where (`part-00000.parquet, row group 3`), what, and how many rows it touched."""

    where: str
    what: str
    rows: int


@dataclass
class Counts:
    """What one row group held: documents and bytes by domain, and its problems."""

    read: dict[str, list[int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def list_groups(directory: Path) -> tuple[list[Group], list[Problem]]:
    """Every row group of a document table, in order, and the files that are no Parquet."""
    groups: list[Group] = []
    problems: list[Problem] = []
    for path in part_files(directory):
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            _raise_if_sound(error)
            problems.append(Problem(path.name, "the file cannot be read", 0))
            continue
        groups += [Group(str(path), i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    return groups, problems


def read_rows(group: Group, counts: Counts) -> Iterator[pa.RecordBatch]:
    """The sound rows of a row group, in order, in batches of about `BATCH_BYTES` of text; `counts` is filled in."""
    batch = _read(group, counts)
    if not batch.num_rows:
        return
    batch = _without_nulls(_valid_utf8(batch, group, counts), group, counts)
    batch = _with_ids(batch, group, counts)
    sizes = pc.binary_length(batch["text"])
    lengths = sizes.to_numpy(zero_copy_only=False)
    domains = batch["domain"].dictionary_encode()
    places = domains.indices.to_numpy(zero_copy_only=False)
    totals = zip(domains.dictionary.to_pylist(), np.bincount(places), np.bincount(places, lengths), strict=True)
    counts.read |= {domain: [int(rows), int(size)] for domain, rows, size in totals}
    yield from _portions(batch, lengths)


def _read(group: Group, counts: Counts) -> pa.RecordBatch:
    """The eight columns of a row group as bytes; no rows when it has to be left out."""
    try:
        with pq.ParquetFile(group.file, memory_map=True) as file:
            missing = [name for name in DOCUMENTS.names if name not in file.schema_arrow.names]
            if missing:
                return _left_out(group, counts, f"column {missing[0]} is missing")
            for name in DOCUMENTS.names:
                if not _is_text(kind := file.schema_arrow.field(name).type):
                    return _left_out(group, counts, f"column {name} is {kind}, not text")
            table = file.read_row_group(group.group, columns=DOCUMENTS.names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        _raise_if_sound(error)
        return _left_out(group, counts, "the row group cannot be read")
    columns = [_plain(table[name]) for name in DOCUMENTS.names]
    return pa.RecordBatch.from_arrays(columns, names=DOCUMENTS.names)


def _raise_if_sound(error: Exception) -> None:
    """Raise an error that says nothing of the file's contents: too little memory, a disk that does not answer."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def _left_out(group: Group, counts: Counts, what: str) -> pa.RecordBatch:
    counts.problems.append(Problem(_where(group), f"{what}: its rows are left out", group.rows))
    return pa.RecordBatch.from_pylist([], DOCUMENTS)


def _where(group: Group) -> str:
    return f"{Path(group.file).name}, row group {group.group}"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
                                       pa.types.is_binary, pa.types.is_large_binary))  # fmt: skip


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array of type binary: whether it is UTF-8 is looked at afterwards."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    chunks = column.cast(pa.binary()).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], pa.binary())])


def _valid_utf8(batch: pa.RecordBatch, group: Group, counts: Counts) -> pa.RecordBatch:
    """The columns as strings; values that are no UTF-8 have U+FFFD in the place of each wrong byte."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        text = column.view(pa.string())
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            values: list[bytes | None] = column.to_pylist()
            mended = [None if value is None else value.decode("utf-8", "replace") for value in values]
            wrong = sum(b is not None and a != b.encode() for a, b in zip(values, mended, strict=True))
            counts.problems.append(
                Problem(_where(group), f"column {name} holds bytes that are no UTF-8: U+FFFD takes their place", wrong)
            )
            text = pa.array(mended, pa.string())
        columns.append(text)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _without_nulls(batch: pa.RecordBatch, group: Group, counts: Counts) -> pa.RecordBatch:
    sound = np.ones(batch.num_rows, np.bool_)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            null = column.is_null().to_numpy(zero_copy_only=False)
            counts.problems.append(
                Problem(_where(group), f"column {name} is null: the row is left out", int(null.sum()))
            )
            sound &= ~null
    return batch if sound.all() else batch.filter(pa.array(sound))


def _with_ids(batch: pa.RecordBatch, group: Group, counts: Counts) -> pa.RecordBatch:
    """Ids that are not 16 hexadecimal digits are made anew from source and origin."""
    wrong = pc.invert(pc.match_substring_regex(batch["id"], f"^{_ID.pattern}$"))
    number = pc.sum(wrong).as_py() or 0
    if not number:
        return batch
    counts.problems.append(Problem(_where(group), "column id is not 16 hexadecimal digits: made anew", number))
    rows = zip(*(batch[name].to_pylist() for name in ("id", "source", "origin")), strict=True)
    ids = [id if _ID.fullmatch(id) else document_id(source, origin) for id, source, origin in rows]
    return batch.set_column(0, DOCUMENTS.field("id"), pa.array(ids))


def _portions(batch: pa.RecordBatch, sizes: np.ndarray[Any, Any]) -> Iterator[pa.RecordBatch]:
    """The batch in order, about `BATCH_BYTES` at a time; a document longer than `SLICE_BYTES` comes in slices."""
    start, held = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if size > SLICE_BYTES:
            if row > start:
                yield batch.slice(start, row - start)
            yield from _slices(batch.slice(row, 1))
            start, held = row + 1, 0
        else:
            held += size
            if held >= BATCH_BYTES:
                yield batch.slice(start, row + 1 - start)
                start, held = row + 1, 0
    if start < batch.num_rows:
        yield batch.slice(start)


def _slices(row: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """One long document as several of at most `SLICE_BYTES`, cut at a line's or a word's end where there is one."""
    _, offsets, values = row["text"].buffers()  # as a scalar the text would be copied
    first, last = np.frombuffer(offsets, np.int32, 2, 4 * row["text"].offset).tolist()
    data = memoryview(values)[first:last]
    source, origin = row["source"][0].as_py(), row["origin"][0].as_py()
    start = number = 0
    while start < len(data):
        end = _border(data, start, min(start + SLICE_BYTES, len(data)))
        number += 1
        named = f"{origin}#{number}"
        replaced = {
            "id": pa.array([document_id(source, named)]),
            "text": pa.array([bytes(data[start:end])], pa.binary()).view(pa.string()),
            "origin": pa.array([named]),
        }
        yield pa.RecordBatch.from_arrays([replaced.get(n, row[n]) for n in row.schema.names], names=row.schema.names)
        start = end


def _border(data: memoryview, start: int, end: int) -> int:
    if end == len(data):
        return end
    low = max(start, end - _SEARCHED)
    tail = bytes(data[low:end])
    for border in (b"\n\n", b"\n", b" "):
        place = tail.rfind(border)
        if place > 0:
            return low + place + len(border)
    while data[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end
