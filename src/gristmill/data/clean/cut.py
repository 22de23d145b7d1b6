"""Cutting long documents into pieces, at the best borders there are, in time and memory linear in the text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..kernel.layout import I64, Texts, texts_of
from ..schema import document_id
from ..step import Step, set_columns

_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("origin", pa.string(), nullable=False),
    pa.field("bytes", pa.int64()),
)


def cut_step(max_document_bytes: int) -> Step:
    """Cuts clean documents of more bytes into pieces of about equal length. A piece's origin ends in `#` and its
    number, and its id follows from that."""

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = texts_of(batch.column("text"))
        if (np.diff(texts.offsets) > max_document_bytes).any():
            batch = _cut(batch, texts, max_document_bytes)
        return set_columns(batch, {"bytes": pc.binary_length(batch.column("text"))}, _FIELDS[-1:])

    return Step("cut", ("id", "text", "source", "origin"), _FIELDS, apply)


def _cut(batch: pa.RecordBatch, texts: Texts, max_bytes: int) -> pa.RecordBatch:
    rows, starts, ends = _borders(texts, max_bytes)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    data = np.empty(offsets[-1], np.uint8)
    for start, end, place in zip(starts.tolist(), ends.tolist(), offsets.tolist(), strict=False):
        data[place : place + end - start] = texts.data[start:end]
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    columns = {"text": pa.Array.from_buffers(pa.string(), len(rows), buffers)}
    taken = pa.array(rows)
    for name in batch.schema.names:
        if name != "text":
            columns[name] = batch.column(name).take(taken)
    _number(columns, rows)
    return pa.RecordBatch.from_arrays([columns[name] for name in batch.schema.names], schema=batch.schema)


def _number(columns: dict[str, pa.Array], rows: I64) -> None:
    """Give every piece of a document that has several its origin and id."""
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    ids: list[str | None] = [None] * len(rows)
    origins: list[str | None] = [None] * len(rows)
    for begin, count in zip(first[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        source, origin = columns["source"][begin].as_py(), columns["origin"][begin].as_py()
        for number in range(count):
            origins[begin + number] = f"{origin}#{number + 1}"
            ids[begin + number] = document_id(source, f"{origin}#{number + 1}")
    columns["id"] = pc.coalesce(pa.array(ids, pa.string()), columns["id"])
    columns["origin"] = pc.coalesce(pa.array(origins, pa.string()), columns["origin"])


def _borders(texts: Texts, max_bytes: int) -> tuple[I64, I64, I64]:
    """(row, start, end) of every piece; a text that fits is one piece, as it is."""
    from .borders import find_borders

    lengths = np.diff(texts.offsets)
    # A piece is longer than a quarter of the limit before its blanks go, so this is room enough.
    room = int(np.sum(4 * lengths // max_bytes + 2))
    out = np.empty((3, room), np.int64)
    found = find_borders(texts.data, texts.offsets, max_bytes, out)
    return out[0, :found], out[1, :found], out[2, :found]
