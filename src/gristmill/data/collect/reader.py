"""From a file to its documents: finds out what a file is, opens what is packed, and hands it to the format's reader.

A place is a tuple of numbers that says where to go on behind a document: (member of an archive, ..., what the reader of
the format makes of it). So a stage that was cut goes on in the middle of the largest file.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from gristmill.errors import GristmillError

from ..config import LimitsConfig, PathSource
from . import tables
from .archives import Member, Tree, archive_of, tar_members, tar_tree, zip_members, zip_tree
from .discover import is_wanted, without_compression
from .formats.base import REPAIRED, BadInput, Extracted, read_whole
from .formats.detect import HEAD_BYTES, detect
from .formats.zips import open_zip
from .pagetext import WIDE_MARKS, read_html, read_text
from .streams import Budget, compression_of, problem_of, unpack
from .tables import Place, Table
from .tally import Tally, printable
from .warc import WarcReader, is_packed_by_record

# Formats with a module of that name in `formats`.
MODULES = ("code", "epub", "gutenberg", "latex", "man", "notebook", "pdf", "rst", "stackexchange", "wikipedia")
_STREAMED = ("stackexchange", "wikipedia")  # those of them that hold no file whole
_BY_ENDING = {
    "arc": "arc", "csv": "csv", "htm": "html", "html": "html", "jsonl": "jsonl", "markdown": "markdown",
    "md": "markdown", "ndjson": "jsonl", "parquet": "parquet", "tsv": "tsv", "warc": "warc", "wet": "warc",
    "xhtml": "html",
}  # fmt: skip
_OFFICE = re.compile(r"\.(?:docx|pptx|xlsx|od[pst])$", re.IGNORECASE)  # zip archives of XML that is no prose
_HTML = re.compile(rb"\s*(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\f\r\x1b")
_MOST_CONTROLS = 0.02  # of the first bytes of a text file


class Found(NamedTuple):
    """A document, and the place behind it. What the file does not state of it is None."""

    place: Place
    origin: str
    format: str
    text: str
    license: str | None
    language: str | None
    domain: str | None
    flags: str


class Part(NamedTuple):
    """Where a file is read in several tasks: the lines or WARC records that begin from byte `first` to before byte
    `last`, with so many lines before them; or the row groups of a Parquet file from `first` to before `last`."""

    first: int
    last: int
    lines_before: int = 0


class Input(NamedTuple):
    """A file on disk, in an archive, or unpacked. `inner` is its name without the endings of compression; `again`
    says whether `open` may be called more than once; `license` is that of the tree that it lies in."""

    name: str
    inner: str
    open: Callable[[], BinaryIO]
    license: str | None = None
    siblings: Callable[[str], bytes | None] | None = None  # other files, by their path from this one's directory
    again: bool = True
    unpacked: bool = False  # whether it came out of a compression


class Reader:
    """Reads the files of one source; everything that cannot be read is counted in `tally`."""

    def __init__(self, source: PathSource, limits: LimitsConfig, tally: Tally):
        self.source, self.limits, self.tally = source, limits, tally

    def read(self, file: Input, start: Place, part: Part | None = None) -> Iterator[Found]:
        """The documents of a file, or of a part of it, behind place `start`."""
        yield from self._read(file, start, part, Budget(self.limits), depth=0)

    def _read(self, file: Input, start: Place, part: Part | None, budget: Budget, depth: int) -> Iterator[Found]:
        try:
            stream = file.open()
        except Exception as error:  # also what the file systems behind URLs raise
            kind = error.kind if isinstance(error, BadInput) else "unreadable"
            self.tally.problem(kind, file.name, getattr(error, "strerror", None) or error)
            return
        told, is_empty = self.tally.told, not start and part is None
        with closing(stream):
            try:
                for found in self._opened(file, stream, start, part, budget, depth):
                    is_empty = False
                    yield found
            except BadInput as error:
                if problem_of(stream) is None:
                    self.tally.problem(error.kind, file.name, error)
            except GristmillError as error:
                self.tally.problem("missing_package", file.name, error)
            except OSError as error:
                self.tally.problem("unreadable", file.name, error.strerror or error)
            except BaseException as error:  # a defect of a reader, or of a library below it, shall not end the run
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, from PyO3
                    raise
                self.tally.problem("reader_failed", file.name, f"{type(error).__name__}: {error}")
            if (problem := problem_of(stream)) is not None:
                self.tally.problem(problem[0], file.name, problem[1])
        if is_empty and self.tally.told == told:  # an archive without files, a table without rows
            self.tally.problem("empty", file.name)

    def _opened(
        self, file: Input, stream: BinaryIO, start: Place, part: Part | None, budget: Budget, depth: int
    ) -> Iterator[Found]:
        head = _head(stream)
        if not head:
            if problem_of(stream) is None:
                self.tally.problem("empty", file.name)
            return
        packed, archive = compression_of(head), archive_of(head)
        format = self._format(file.inner, head)
        if packed is not None and not (packed == "gz" and format == "warc" and _can_seek_records(stream)):
            yield from self._unpacked(file, stream, packed, start, budget, depth)
        elif archive is not None and format != "epub":
            yield from self._members(file, stream, archive, start, budget, depth + 1)
        elif not is_wanted(file.name, self.source):
            self.tally.pass_over("excluded")
        elif format is None:
            self.tally.problem("unknown_format", file.name)
        else:
            if not start and (part is None or part.first == 0):
                self.tally.files += 1
            yield from self._documents(file, stream, format, start, part)

    def _unpacked(
        self, file: Input, stream: BinaryIO, packed: str, start: Place, budget: Budget, depth: int
    ) -> Iterator[Found]:
        """What a compressed file holds. An archive in it is of the same depth, a compressed file in it one deeper."""
        inner = without_compression(file.inner) if file.unpacked else file.inner
        depth += file.unpacked
        if depth > self.limits.max_depth:
            self.tally.problem("too_deep", file.name)
            return
        first = [stream]

        def unpacked() -> BinaryIO:
            return unpack(first.pop() if first else file.open(), packed, budget)

        content = Input(file.name, inner, unpacked, file.license, file.siblings, file.again, True)
        yield from self._read(content, start, None, budget, depth)

    def _members(
        self, file: Input, stream: BinaryIO, archive: str, start: Place, budget: Budget, depth: int
    ) -> Iterator[Found]:
        if depth > self.limits.max_depth:
            self.tally.problem("too_deep", file.name)
            return
        if _OFFICE.search(file.inner):
            self.tally.problem("unknown_format", file.name)
            return
        if not file.again or (archive == "zip" and not stream.seekable()):  # it is looked at twice
            stream = io.BytesIO(read_whole(stream, self.limits.max_in_memory_bytes))
        first = start[0] if start else 0
        if archive == "zip":
            opened = open_zip(stream, self.limits.max_members, self.limits.max_in_memory_bytes)
            tree, members = zip_tree(opened), zip_members(opened, file.name, first, budget, self.tally)
        else:
            tree = self._tar_tree(file, stream, budget)
            members = tar_members(stream, file.name, first, budget, self.tally)
        for member in members:
            inside = start[1:] if start and member.number == start[0] else ()
            for found in self._member(file, member, tree, inside, budget, depth):
                yield found._replace(place=(member.number, *found.place))

    def _member(
        self, file: Input, member: Member, tree: Tree, start: Place, budget: Budget, depth: int
    ) -> Iterator[Found]:
        if self.source.max_file_bytes is not None and member.size > self.source.max_file_bytes:
            self.tally.problem("too_large", member.name, f"{member.size:,} bytes")
            return
        inner = without_compression(member.name)
        license = tree.license(member.inner) or file.license
        siblings = partial(tree.sibling, member.inner)
        content = Input(member.name, inner, member.open, license, siblings, again=False)
        yield from self._read(content, start, None, budget, depth)

    def _tar_tree(self, file: Input, stream: BinaryIO, budget: Budget) -> Tree:
        """What members of a tar archive need to know of others. One that is compressed is unpacked once more for it, as
        far as its members may be later; that spends nothing."""
        if stream.seekable():
            tree = tar_tree(stream)
            stream.seek(0)
            return tree
        left = budget.bytes
        with closing(file.open()) as once_more:
            tree = tar_tree(once_more)
        budget.bytes = left
        return tree

    def _format(self, name: str, head: bytes) -> str | None:
        """The format of a file: as the recipe says, else by its name and its first bytes; None for an unknown one."""
        if self.source.format != "auto":
            return self.source.format
        ending = name.lower().rpartition(".")[2]
        if head.startswith(b"PAR1"):
            return "parquet"
        if head.startswith((b"WARC/", b"filedesc://")):
            return "warc" if head.startswith(b"W") else "arc"
        array = _ARRAY.match(head) is not None
        if ending == "json" and (array or f'"{self.source.text_field}"'.encode() in head):
            return "jsonl" if not array and _is_json_lines(head) else "json"
        format = _BY_ENDING.get(ending) or detect(name, head)
        if format is not None or not _is_text(head):
            return format
        return "html" if _HTML.match(head) else "text"

    def _documents(
        self, file: Input, stream: BinaryIO, format: str, start: Place, part: Part | None
    ) -> Iterator[Found]:
        for place, document in self._rows(file, stream, format, start, part):
            if document is None:
                self.tally.problem("too_large", file.name, "a line longer than max_document_bytes")
                continue
            separator = "/" if document.part and not document.part.startswith("#") else ""
            origin = printable(f"{file.name}{separator}{document.part}")
            if REPAIRED in document.flags.split(","):
                self.tally.problem("repaired", origin)
            text, _, license, language, flags, domain = document
            yield Found(place, origin, format, text, license or file.license, language, domain, flags)

    def _rows(
        self, file: Input, stream: BinaryIO, format: str, start: Place, part: Part | None
    ) -> Iterator[tuple[Place, Extracted | None]]:
        limit = self.limits.max_document_bytes
        if format in ("text", "markdown"):
            return read_text(stream, limit, start, markdown=format == "markdown")
        if format == "html":
            return _numbered(read_html(stream, self.source.html, limit), start)
        if format in MODULES:
            module: Any = importlib.import_module(f".formats.{format}", __package__)
            options: dict[str, dict[str, Any]] = {
                "latex": {"siblings": file.siblings},
                "notebook": {"outputs": self.source.notebook_outputs},
                "stackexchange": {"answers": self.source.stackexchange_answers},
            }
            bound = {} if format in _STREAMED else {"limit": self.limits.max_in_memory_bytes}
            return _numbered(module.read(stream, file.inner, **options.get(format, {}), **bound), start)
        if format in ("warc", "arc"):
            archive = WarcReader(file.name, self.source.html, self.limits, self.tally)
            if format == "arc":
                return archive.read_arc(stream, start)
            return archive.read(stream, start, part.first if part else 0, part.last if part else None)
        return self._table_rows(file, stream, format, start, part)

    def _table_rows(
        self, file: Input, stream: BinaryIO, format: str, start: Place, part: Part | None
    ) -> Iterator[tuple[Place, Extracted]]:
        table = Table(file.name, self.source, self.limits, self.tally)
        if format == "parquet":
            if not stream.seekable():
                stream = io.BytesIO(read_whole(stream, self.limits.max_in_memory_bytes))
            return tables.read_parquet(table, stream, start, part and (part.first, part.last))
        if format == "json":
            return tables.read_json(table, stream, start)
        if _head(stream).startswith(WIDE_MARKS):
            stream = tables.as_utf8(table, stream, start)
        if format in ("csv", "tsv"):
            return tables.read_csv(table, stream, start, "\t" if format == "tsv" else ",;\t|")
        read = tables.read_jsonl if format == "jsonl" else tables.read_lines
        if part is None:
            return read(table, stream, start, None)
        return read(table, stream, start or (part.first, part.lines_before), part.last)


def _can_seek_records(stream: BinaryIO) -> bool:
    return stream.seekable() and is_packed_by_record(stream)


def _numbered(documents: Iterator[Extracted], start: Place) -> Iterator[tuple[Place, Extracted]]:
    """With places that count the documents of a file."""
    for number, document in enumerate(documents, 1):
        if number > sum(start):
            yield (number,), document


def _head(stream: BinaryIO) -> bytes:
    if isinstance(stream, io.BufferedReader):
        return stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    return head


def _is_json_lines(head: bytes) -> bool:
    """Whether a file that begins with a JSON object has one a line, not a single one over many lines."""
    return head.split(b"\n", 1)[0].rstrip().endswith(b"}") or b"\n" not in head


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file look like text, in any encoding; a few NULs do no harm."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls <= _MOST_CONTROLS * len(head):
        return True
    even, odd = head[0::2].count(0), head[1::2].count(0)  # UTF-16 without a mark: a NUL in every second byte
    return max(even, odd) > 0.35 * len(head) and min(even, odd) < 0.03 * len(head)
