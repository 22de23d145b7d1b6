"""Documents out of the rows of tables: JSON lines, JSON arrays, CSV, TSV, Parquet, and text with a document a line.

Every reader yields (place to go on behind the row, row). A bad row is counted and passed over. Rows are numbered from 1
and named by their number, or by the value of `id_field`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..config import LimitsConfig, PathSource
from .formats.base import REPAIRED, BadInput, Extracted, read_whole
from .formats.decode import decode
from .tally import Tally, printable

Place = tuple[int, ...]
BATCH_BYTES = 4 << 20  # of a Parquet row group about so much is decoded at a time
_DOMAIN_LETTERS = re.compile(r"[^a-z0-9_-]+")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")


class Table:
    """What the readers of tables share: the fields that the recipe names, and where bad rows are counted."""

    def __init__(self, name: str, source: PathSource, limits: LimitsConfig, tally: Tally):
        self.name, self.source, self.limits, self.tally = name, source, limits, tally

    @property
    def optional_fields(self) -> tuple[str, ...]:
        source = self.source
        named = (source.id_field, source.license_field, source.language_field, source.domain_field)
        return tuple(field for field in named if field is not None)

    def row(self, values: Any, number: int, repaired: bool = False) -> Extracted | None:
        """The document of a row (a dict), or None for a bad one, which is counted. `repaired` says whether its bytes
        had to be, before they were taken apart."""
        text = values.get(self.source.text_field) if isinstance(values, dict) else None
        if isinstance(text, bytes):
            text, repaired = decode(text)
        elif isinstance(text, str) and "\0" in text:
            text, repaired = text.replace("\0", ""), True
        if not isinstance(text, str):
            kind = "no text" if text is None else f"{type(text).__name__} instead of text"
            self.bad("no_text", number, f"{kind} under {self.source.text_field!r}")
            return None
        source = self.source
        return Extracted(
            text,
            part=_word(values, source.id_field) or str(number),
            license=_word(values, source.license_field),
            language=_language(_word(values, source.language_field)),
            flags=REPAIRED if repaired else "",
            domain=_domain(_word(values, source.domain_field)),
        )

    def bad(self, kind: str, number: int, detail: object, unit: str = "row") -> None:
        self.tally.problem(kind, f"{self.name}, {unit} {number}", detail)

    def check_fields(self, present: list[str]) -> None:
        """Count the optional fields that a table with a header lacks."""
        for field in self.optional_fields:
            if field not in present:
                self.tally.problem("missing_field", self.name, f"{field!r}; it has {', '.join(present)}")


def as_utf8(table: Table, stream: BinaryIO, start: Place) -> BinaryIO:
    """A table in UTF-16 as a stream in UTF-8, for the readers that look for line ends in bytes; held in memory."""
    text, repaired = decode(read_whole(stream, table.limits.max_in_memory_bytes))
    if repaired and not start:
        table.tally.problem("repaired", table.name)
    return io.BytesIO(text.encode())


def read_lines(table: Table, stream: BinaryIO, start: Place, end: int | None) -> Iterator[tuple[Place, Extracted]]:
    """A document a line. A place is (bytes, lines) before it; lines that begin before byte `end` are read."""
    for place, number, line in _lines(table, stream, start, end, table.limits.max_document_bytes):
        text, repaired = decode(line)
        if text.strip():
            yield place, Extracted(text.rstrip("\r\n"), str(number), flags=REPAIRED if repaired else "")


def read_jsonl(table: Table, stream: BinaryIO, start: Place, end: int | None) -> Iterator[tuple[Place, Extracted]]:
    """A JSON object a line; places as in `read_lines`."""
    for place, number, line in _lines(table, stream, start, end, table.limits.max_document_bytes):
        if line.isspace():
            continue
        try:
            values, repaired = _loaded(line)
        except (ValueError, RecursionError) as error:
            table.bad("broken", number, f"not JSON: {error}")
            continue
        row = table.row(values, number, repaired)
        if row is not None:
            yield place, row


def read_json(table: Table, stream: BinaryIO, start: Place) -> Iterator[tuple[Place, Extracted]]:
    """The objects of a JSON array, or the one object of a file; held in memory. A place is (rows,) before it."""
    text, repaired = decode(read_whole(stream, table.limits.max_in_memory_bytes))
    if repaired and not start:
        table.tally.problem("repaired", table.name)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON: {error}") from None
    del text  # as long as the values
    for number, item in enumerate(values if isinstance(values, list) else [values], 1):
        row = table.row(item, number) if number > sum(start) else None
        if row is not None:
            yield (number,), row


def read_csv(table: Table, stream: BinaryIO, start: Place, separators: str) -> Iterator[tuple[Place, Extracted]]:
    """Rows of a CSV file (RFC 4180) with a header. The separator is the one that sets the text field apart in the
    header. A place is (rows,) before it."""
    csv.field_size_limit(table.limits.max_document_bytes)
    tally, table.tally = table.tally, Tally() if start else table.tally  # what is skipped was counted before
    # A row may have several long fields; the limit of one is csv's.
    counted = _lines(table, stream, (), None, 4 * table.limits.max_document_bytes, "line")
    lines = _CsvLines(line for _, _, line in counted)
    header_line = next(lines, "")
    for separator in separators:
        try:
            header = next(csv.reader([header_line], delimiter=separator), [])
        except csv.Error as error:
            raise BadInput(f"has no header: {_csv_problem(error)}") from None
        if table.source.text_field in header:
            break
    else:
        raise BadInput(f"has no column {table.source.text_field!r} in its header; name one as text_field", "no_text")
    if not start:
        table.check_fields(header)
    rows = csv.reader(lines, delimiter=separator)
    number = 0
    while True:
        number += 1
        if number > sum(start):
            table.tally = tally
        lines.begin_row()
        try:
            values = next(rows, None)
        except csv.Error as error:
            table.bad("too_large" if "limit" in str(error) else "broken", number, _csv_problem(error))
            lines.end_quotation()
            continue
        if values is None:
            return
        if not values or number <= sum(start):
            continue
        if any(values[len(header) :]):
            table.bad("broken", number, f"{len(values)} fields, but the header has {len(header)}")
            continue
        if lines.ended:  # before the row did
            table.bad("broken", number, "a quotation mark is never closed: the rest of the file is in this row")
        if (row := table.row(dict(zip(header, values, strict=False)), number, lines.repaired)) is not None:
            yield (number,), row


class _CsvLines:
    """The lines of a CSV file as text, and what there is to know of those of a row."""

    def __init__(self, lines: Iterator[bytes]):
        self._lines = lines
        self.ended = False
        self.begin_row()

    def begin_row(self) -> None:
        self.repaired = self._in_quotation = False

    def end_quotation(self) -> None:
        """Go to the end of a field of which only the beginning was read: csv would take the rest for rows."""
        while self._in_quotation and next(self, None) is not None:
            pass

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        try:
            text, repaired = decode(next(self._lines))
        except StopIteration:
            self.ended = True
            raise
        self.repaired |= repaired
        self._in_quotation ^= text.count('"') % 2 == 1
        return text


def read_parquet(
    table: Table, stream: BinaryIO, start: Place, groups: tuple[int, int] | None
) -> Iterator[tuple[Place, Extracted]]:
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
                for values in _batch_rows(batch, table.source.text_field, table.limits.max_document_bytes):
                    number += 1
                    if number <= done:
                        continue
                    if isinstance(values, int):
                        table.bad("too_large", before + number, f"{values:,} bytes")
                    elif (row := table.row(values, before + number)) is not None:
                        yield (group, number), row
        except (pa.ArrowException, OSError, ValueError) as error:
            lost = f"{table.name}, rows {before + number + 1} to {before + about.num_rows}"
            table.tally.problem("broken", lost, error)
        before += about.num_rows
        done = 0


def open_parquet(stream: BinaryIO) -> Any:
    """A Parquet file as pyarrow has it. BadInput for what is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without these two it would hold a whole column of a row group.
        return pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"is no whole Parquet file: {error}") from None


def _batch_rows(batch: Any, field: str, limit: int) -> Iterator[dict[str, Any] | int]:
    """The rows of a batch as dicts. Of one whose text has more than `limit` bytes only that size comes: as a string it
    would be held several times."""
    import pyarrow as pa

    texts = batch[field]
    if texts.nbytes <= limit or pa.types.is_dictionary(texts.type) or "view" in str(texts.type):
        yield from batch.to_pylist()
        return
    import pyarrow.compute as pc

    for number, size in enumerate(pc.binary_length(texts).to_pylist()):
        yield size if size is not None and size > limit else batch.slice(number, 1).to_pylist()[0]


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
        raise BadInput(f"has no text column {field!r}; name one as text_field; it has {present}", "no_text")
    if first:
        table.check_fields(schema.names)
    return [field, *(name for name in table.optional_fields if name in schema.names)]


def _lines(
    table: Table, stream: BinaryIO, start: Place, end: int | None, limit: int, unit: str = "row"
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
        table.bad("too_large", number, f"a line of more than {limit:,} bytes", unit)


def skip_bytes(stream: BinaryIO, size: int) -> None:
    """Go to byte `size` of a stream that stands at its beginning."""
    if size and stream.seekable():
        stream.seek(size)
        return
    while size > 0 and (data := stream.read(min(size, 1 << 20))):
        size -= len(data)


def _loaded(line: bytes) -> tuple[Any, bool]:
    """(the value of a line of JSON, whether its bytes had to be repaired). ValueError if it is none."""
    try:
        return json.loads(line), False
    except UnicodeDecodeError:
        text, repaired = decode(line)
        return json.loads(text), repaired


def _csv_problem(error: csv.Error) -> str:
    """What is wrong, in words that are not about how to call csv."""
    if "limit" in str(error):
        return "a field longer than max_document_bytes"
    return "a carriage return outside of quotation marks" if "new-line" in str(error) else str(error)


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
