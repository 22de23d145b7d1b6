"""The step `clean`: a column examined in compiled code, and only what needs more handed to Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.filters import CleanConfig
from ..kernel.layout import Texts, texts_of
from ..step import Step, set_columns
from .repair import decode_entities, mend_encoding

_FIELDS = (pa.field("text", pa.string(), nullable=False), pa.field("bytes", pa.int64()))
_PART = 1 << 20  # how much of a text is decoded at a time


def clean_step(config: CleanConfig) -> Step:
    """Cleans the texts and writes their length in bytes. The repairs leave domain `code` alone: a program's strings may
    be wrong, or escaped, on purpose."""
    from .kernel import DAMAGED, ENTITIES, FOREIGN, UNCLEAN, UNTRIMMED, examine, rewrite

    repaired = (DAMAGED if config.repair_encoding else 0) | (ENTITIES if config.decode_entities else 0)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.column("text")
        texts = texts_of(column)
        flags = examine(texts)
        rows = np.flatnonzero(flags & repaired)
        if len(rows):
            column = _repair(column, batch.column("domain"), rows, flags)
            texts = texts_of(column)
            flags = examine(texts)
        if (flags & (UNTRIMMED | UNCLEAN)).any():
            data, offsets = rewrite(texts)
            column, texts = _strings(data, offsets), Texts(data, offsets)
        column = _normalize(column, texts, np.flatnonzero(flags & FOREIGN))
        return set_columns(batch, {"text": column, "bytes": pc.binary_length(column)}, _FIELDS)

    def _repair(column: pa.Array, domains: pa.Array, rows: np.ndarray, flags: np.ndarray) -> pa.Array:
        changed: list[str | None] = [None] * len(column)
        for row in rows.tolist():
            if domains[row].as_py() == "code":
                continue
            text = column[row].as_py()
            if flags[row] & repaired & DAMAGED:
                text = mend_encoding(text)
            if config.decode_entities and "&" in text:
                text = decode_entities(text)
            changed[row] = text
        return pc.coalesce(pa.array(changed, column.type), column)

    return Step("clean", ("text", "domain"), _FIELDS, apply)


def _strings(data: np.ndarray, offsets: np.ndarray) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


def _normalize(column: pa.Array, texts: Texts, rows: np.ndarray) -> pa.Array:
    """The column with those of the rows in normal form C that are not; most are."""
    changed: dict[int, bytes] = {}
    for row in rows.tolist():
        text = texts.data[texts.offsets[row] : texts.offsets[row + 1]].data
        normal = _normal_form(text)
        if normal is not None:
            changed[row] = normal
    if not changed:
        return column
    values = pa.array([changed.get(row) for row in range(len(column))], pa.binary()).cast(pa.string())
    return pc.coalesce(values, column)


def _normal_form(text: memoryview) -> bytes | None:
    """The text in normal form C, or None where it is."""
    if all(unicodedata.is_normalized("NFC", part) for part in _parts(text)):
        return None
    return b"".join(unicodedata.normalize("NFC", part).encode() for part in _parts(text))


def _parts(text: memoryview) -> Iterator[str]:
    """The text decoded in parts that end before an ASCII character, which nothing before it can change."""
    start = 0
    while start < len(text):
        end = min(start + _PART, len(text))
        while end < len(text) and text[end] >= 0x80:
            end += 1
        yield str(text[start:end], "utf-8")
        start = end
