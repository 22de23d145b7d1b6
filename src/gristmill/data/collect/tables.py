"""Documents out of the rows of tables: JSON lines, JSON arrays, CSV, TSV, Parquet, and text with a document a line.

Every reader yields (place to go on behind the row, row). A bad row is counted and passed over. Rows are numbered from 1
and named by their number, or by the value of `id_field`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from ..config import LimitsConfig, PathSource
from .formats.base import BadInput, read_whole
from .formats.decode import decode
from .tally import Tally, printable

Place = tuple[int, ...]
BATCH_BYTES = 4 << 20  # of a Parquet row group about so much is decoded at a time
_DOMAIN_LETTERS = re.compile(r"[^a-z0-9_-]+")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")


class NoTextField(BadInput):
    """A table without the field that holds the text."""

    kind = "no_text"


class Row(NamedTuple):
    """A document out of a table; what its row does not state is None."""

    text: str
    part: str
    license: str | None = None
    language: str | None = None
    domain: str | None = None


class Table:
    """What the readers of tables share: the fields that the recipe names, and where bad rows are counted."""

    def __init__(self, name: str, source: PathSource, limits: LimitsConfig, tally: Tally):
        self.name, self.source, self.limits, self.tally = name, source, limits, tally

    @property
    def optional_fields(self) -> tuple[str, ...]:
        source = self.source
        named = (source.id_field, source.license_field, source.language_field, source.domain_field)
        return tuple(field for field in named if field is not None)

    def row(self, values: Any, number: int) -> Row | None:
        """The document of a row (a dict), or None for a bad one, which is counted."""
        text = values.get(self.source.text_field) if isinstance(values, dict) else None
        if isinstance(text, bytes):
            text = self.decode(text, number)
        if not isinstance(text, str):
            kind = "no text" if text is None else f"a {type(text).__name__}"
            self.bad("no_text", number, f"{kind} under {self.source.text_field!r}")
            return None
        source = self.source
        return Row(
            text,
            _word(values, source.id_field) or str(number),
            _word(values, source.license_field),
            _language(_word(values, source.language_field)),
            _domain(_word(values, source.domain_field)),
        )

    def bad(self, kind: str, number: int, detail: object = "") -> None:
        self.tally.problem(kind, f"{self.name}, row {number}", detail)

    def decode(self, data: bytes, number: int) -> str:
        text, repaired = decode(data)
        if repaired:
            self.bad("repaired", number)
        return text

    def check_fields(self, present: list[str]) -> None:
        """Count the optional fields that a table with a header lacks."""
        for field in self.optional_fields:
            if field not in present:
                self.tally.problem("missing_field", self.name, f"{field!r}; it has {', '.join(present)}")


def read_lines(table: Table, stream: BinaryIO, start: Place, end: int | None) -> Iterator[tuple[Place, Row]]:
    """A document a line. A place is (bytes, lines) before it; lines that begin before byte `end` are read."""
    for place, number, line in _lines(table, stream, start, end, table.limits.max_document_bytes):
        text = table.decode(line, number)
        if text.strip():
            yield place, Row(text.rstrip("\r\n"), str(number))


def read_jsonl(table: Table, stream: BinaryIO, start: Place, end: int | None) -> Iterator[tuple[Place, Row]]:
    """A JSON object a line; places as in `read_lines`."""
    for place, number, line in _lines(table, stream, start, end, table.limits.max_document_bytes):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
        except UnicodeDecodeError:
            values = _decoded_json(table, line, number)
        except (ValueError, RecursionError) as error:
            table.bad("broken", number, f"not JSON: {error}")
            continue
        row = table.row(values, number) if values is not None else None
        if row is not None:
            yield place, row


def read_json(table: Table, stream: BinaryIO, start: Place) -> Iterator[tuple[Place, Row]]:
    """The objects of a JSON array, or the one object of a file; held in memory. A place is (rows,) before it."""
    data = read_whole(stream, table.limits.max_in_memory_bytes)
    try:
        values = json.loads(decode(data)[0])
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON: {error}") from None
    for number, item in enumerate(values if isinstance(values, list) else [values], 1):
        row = table.row(item, number) if number > sum(start) else None
        if row is not None:
            yield (number,), row


def read_csv(table: Table, stream: BinaryIO, start: Place, separators: str) -> Iterator[tuple[Place, Row]]:
    """Rows of a CSV file (RFC 4180) with a header. The separator is the one that sets the text field apart in the
    header. A place is (rows,) before it."""
    csv.field_size_limit(table.limits.max_document_bytes)
    tally, table.tally = table.tally, Tally() if start else table.tally  # what is skipped was counted before
    # A row may have several long fields; the limit of one is csv's.
    counted = _lines(table, stream, (), None, 4 * table.limits.max_document_bytes)
    lines = (table.decode(line, number) for _, number, line in counted)
    header_line = next(lines, "")
    for separator in separators:
        try:
            header = next(csv.reader([header_line], delimiter=separator), [])
        except csv.Error as error:
            raise BadInput(f"has no header: {error}") from None
        if table.source.text_field in header:
            break
    else:
        raise NoTextField(f"has no column {table.source.text_field!r} in its header; name one as text_field")
    if not start:
        table.check_fields(header)
    rows = csv.reader(lines, delimiter=separator)
    number = 0
    while True:
        number += 1
        if number > sum(start):
            table.tally = tally
        try:
            values = next(rows, None)
        except csv.Error as error:
            table.bad("too_large" if "limit" in str(error) else "broken", number, error)
            continue
        if values is None:
            return
        row = table.row(dict(zip(header, values, strict=False)), number) if values and number > sum(start) else None
        if row is not None:
            yield (number,), row


def read_parquet(
    table: Table, stream: BinaryIO, start: Place, groups: tuple[int, int] | None
) -> Iterator[tuple[Place, Row]]:
    """Rows of a Parquet file, or of its row groups from `groups[0]` to before `groups[1]`.

    A place is (row group, rows of it)."""
    import pyarrow as pa

    file = open_parquet(stream)
    columns = _parquet_columns(table, file, first=not start and (groups is None or groups[0] == 0))
    first, last = groups or (0, file.num_row_groups)
    begun, done = (start[0], start[1]) if start else (first, 0)
    before = sum(file.metadata.row_group(i).num_rows for i in range(begun))
    for group in range(begun, last):
        about = file.metadata.row_group(group)
        rows = max(1, min(1024, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
        number = 0
        try:
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    if number > done and (row := table.row(values, before + number)):
                        yield (group, number), row
        except (pa.ArrowException, OSError, ValueError) as error:
            table.tally.problem("broken", f"{table.name}, row group {group}", error)
        before += about.num_rows
        done = 0


def open_parquet(stream: BinaryIO) -> Any:
    """A Parquet file as pyarrow has it. BadInput for what is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream, buffer_size=1 << 20)  # else it holds a whole column of a row group
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"is no whole Parquet file: {error}") from None


def _parquet_columns(table: Table, file: Any, first: bool) -> list[str]:
    import pyarrow as pa

    schema = file.schema_arrow
    field = table.source.text_field
    kind = schema.field(field).type if field in schema.names else None
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary")
    if kind is None or not any(getattr(pa.types, check, lambda _: False)(kind) for check in checks):
        present = ", ".join(f"{name} ({type})" for name, type in zip(schema.names, schema.types, strict=True))
        raise NoTextField(f"has no text column {field!r}; name one as text_field; it has {present}")
    if first:
        table.check_fields(schema.names)
    return [field, *(name for name in table.optional_fields if name in schema.names)]


def _lines(
    table: Table, stream: BinaryIO, start: Place, end: int | None, limit: int
) -> Iterator[tuple[Place, int, bytes]]:
    """(place behind a line, its number, the line) for the lines that begin before byte `end`; those of more than
    `limit` bytes are counted, and never held in memory whole."""
    offset, number = (start[0], start[1]) if start else (0, 0)
    skip_bytes(stream, offset)
    while (end is None or offset < end) and (line := stream.readline(limit + 1)):
        offset += len(line)
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield (offset, number), number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(limit)
            offset += len(line)
        table.bad("too_large", number, f"a line of more than {limit:,} bytes")


def skip_bytes(stream: BinaryIO, size: int) -> None:
    """Go to byte `size` of a stream that stands at its beginning."""
    if size and stream.seekable():
        stream.seek(size)
        return
    while size > 0 and (data := stream.read(min(size, 1 << 20))):
        size -= len(data)


def _decoded_json(table: Table, line: bytes, number: int) -> Any:
    """The value of a line that is not UTF-8; None, counted, if it is not JSON either."""
    text, repaired = decode(line)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        table.bad("broken", number, f"not JSON: {error}")
        return None
    if repaired:
        table.bad("repaired", number)
    return values


def _word(values: dict[str, Any], field: str | None) -> str | None:
    """A field's value as a word or number of a few characters."""
    value = values.get(field) if field is not None else None
    return printable(str(value).strip()[:1000]) or None if isinstance(value, str | int) else None


def _language(value: str | None) -> str | None:
    """A language tag in its usual case; None for what is none."""
    if value is None or not _LANGUAGE.fullmatch(value):
        return None
    first, *rest = value.replace("_", "-").split("-")
    return "-".join([first.lower(), *rest])


def _domain(value: str | None) -> str | None:
    """A domain's name with the characters that domains may have."""
    return _DOMAIN_LETTERS.sub("_", value.lower()).strip("_") or None if value is not None else None
