"""Documents out of web archives: WARC (ISO 28500), plain or compressed, and its forerunner ARC.

Of a crawl, successful HTTP responses with HTML or plain text are read, and resources and conversions (the extracted
text of `.wet` files). Damage costs the record that it hits: the reader goes on at the next one that it finds.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from ..config import LimitsConfig
from .formats.base import REPAIRED, BadInput, Extracted
from .formats.decode import decode
from .pagetext import main_text
from .tables import Place
from .tally import Tally

_HTTP = ("Content-Type", "Content-Encoding", "Transfer-Encoding")
_OTHER = "responses other than HTML and plain text"
_FIRST_RECORD_BYTES = 16 << 20
_SCAN_BYTES = 1 << 20
_GZIP, _PLAIN = b"\x1f\x8b\x08", b"\r\n\r\nWARC/"
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_HTML = re.compile(rb"\s*(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")


class Payload(NamedTuple):
    """What a record holds: its body as sent, and what the HTTP header says of it, in lower case."""

    body: bytes
    content_type: str
    content_encoding: str = ""
    transfer_encoding: str = ""


class _Cut(Exception):
    """A record that ends before its stated length."""


class WarcReader:
    """Reads the records of one archive called `name`; `engine` finds the main text of its pages."""

    def __init__(self, name: str, engine: str, limits: LimitsConfig, tally: Tally):
        self.name, self.engine, self.limits, self.tally = name, engine, limits, tally

    def read(
        self, stream: BinaryIO, start: Place, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[Place, Extracted]]:
        """(place, document) pairs of a WARC file, or of its records that begin from byte `first` to before byte `end`.

        A place is (byte where the document's record begins,)."""
        after = start[0] if start else -1
        seekable = stream.seekable()
        position: int | None = max(after, first)
        # Whether a record was read since the last damage: the search for a next one may need several tries.
        fresh = after >= 0 or first == 0
        if not fresh:
            position = _next_record(stream, first)
        while position is not None and (end is None or position < end):
            last = position
            if seekable:
                stream.seek(position)
            try:
                for last, record in _records(stream):
                    fresh = True
                    if end is not None and last >= end:
                        return
                    if last > after and (found := self._document(record)):
                        yield (last,), found
                break
            except (OSError, _Cut) as error:
                if fresh:
                    kind = "truncated" if isinstance(error, _Cut) else "broken"
                    self.tally.problem(kind, self.name, f"record at byte {last}: {error}")
                fresh = False
                position = _next_record(stream, last + 1) if seekable else None
        if seekable and fresh and _is_cut(stream, last):
            self.tally.problem("truncated", self.name)

    def read_arc(self, stream: BinaryIO, start: Place) -> Iterator[tuple[Place, Extracted]]:
        """(place, document) pairs of an ARC file. A place is (records before it,)."""
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed

        skipped = start[0] if start else 0
        try:
            for number, record in enumerate(ArchiveIterator(stream, arc2warc=True), 1):
                if number <= skipped or record.rec_type != "response":
                    continue
                headers = record.http_headers
                body = record.content_stream().read(self.limits.max_document_bytes + 1)
                status = headers.get_statuscode() if headers else "200"
                payload = Payload(body, (headers.get_header("Content-Type") or "" if headers else "").lower())
                url = record.rec_headers.get_header("WARC-Target-URI") or str(number)
                if self._is_success(status) and (found := self._text(url, payload)):
                    yield (number,), found
        except (ArchiveLoadFailed, OSError, EOFError, ValueError, zlib.error) as error:
            raise BadInput(f"is no whole ARC file: {error}") from None

    def _document(self, record: Any) -> Extracted | None:
        from fastwarc.warc import WarcRecordType

        if record.record_type not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion):
            return None
        url = (record.headers.get("WARC-Target-URI") or str(record.stream_pos)).strip("<>")
        if record.content_length > self.limits.max_in_memory_bytes:
            self.tally.problem("too_large", f"{self.name}/{url}", f"{record.content_length:,} bytes")
            return None
        encodings = ["", ""]
        content_type = record.headers.get("Content-Type") or ""
        if record.is_http:
            record.parse_http()
            headers = record.http_headers
            if not self._is_success(headers.status_code):
                return None
            content_type, *encodings = (headers.get(name) or "" for name in _HTTP)
        if content_type and not _is_text(content_type):
            self.tally.pass_over(_OTHER)
            return None
        expected = record.content_length
        body = record.reader.read()
        if len(body) < expected:
            raise _Cut(f"{len(body):,} of {expected:,} bytes")
        return self._text(url, Payload(body, content_type.lower(), *(word.lower() for word in encodings)))

    def _is_success(self, status: object) -> bool:
        if str(status).startswith("2"):
            return True
        self.tally.pass_over("responses without success")
        return False

    def _text(self, url: str, payload: Payload) -> Extracted | None:
        """The document of a response, None where it has none."""
        limit = self.limits.max_document_bytes
        name = f"{self.name}/{url}"
        try:
            body = _decoded(payload, limit)
        except (BadInput, zlib.error, OSError, ImportError) as error:
            self.tally.problem("broken", name, error)
            return None
        kind = payload.content_type.partition(";")[0].strip()
        if not _is_text(kind) and not (not kind and _HTML.match(body)):
            self.tally.pass_over(_OTHER)
            return None
        if len(body) > limit:
            self.tally.problem("too_large", name)
            return None
        found = _CHARSET.search(payload.content_type)
        charset = found.group(1) if found else None
        text, repaired = decode(body, charset) if kind == "text/plain" else main_text(body, self.engine, charset)
        return Extracted(text, url, flags=REPAIRED if repaired else "")


def is_packed_by_record(stream: BinaryIO) -> bool:
    """Whether a gzip file that can be sought in is compressed record by record, as the standard recommends: only then
    can a reader go on in the middle of it. Looks at the first record and the beginning of the next."""
    try:
        first, following = _first_member(stream), b""
        if first is not None and (data := first.unused_data + stream.read(_SCAN_BYTES)):
            following = zlib.decompressobj(wbits=31).decompress(data, len(b"WARC/"))
    except zlib.error:
        following = b"WARC/"  # damaged at once: only a reader of records can find its way behind that
    stream.seek(0)
    return following == b"WARC/"


def _first_member(stream: BinaryIO) -> Any:
    """The decompressor at the end of the first gzip member, or None if that is long or holds several records."""
    inflate = zlib.decompressobj(wbits=31)
    left, window = _FIRST_RECORD_BYTES, b""
    while not inflate.eof and (data := inflate.unconsumed_tail or stream.read(_SCAN_BYTES)):
        window = window[-len(_PLAIN) :] + inflate.decompress(data, _SCAN_BYTES)
        left -= _SCAN_BYTES
        if left < 0 or _PLAIN in window:
            return None
    return inflate if inflate.eof else None


def _is_text(content_type: str) -> bool:
    return "html" in content_type.lower() or content_type.lower().startswith("text/plain")


class _Forward:
    """A stream that knows where it stands, as FastWARC wants it, though it can only go on."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._place = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._place += len(data)
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        if (offset, whence) not in ((0, 1), (self._place, 0)):
            raise OSError("this stream can only be read on")
        return self._place

    def close(self) -> None:
        """The stream is closed by whoever opened it."""


def _records(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    from fastwarc.warc import ArchiveIterator

    for record in ArchiveIterator(stream if stream.seekable() else _Forward(stream), parse_http=False):
        yield record.stream_pos, record


def _decoded(payload: Payload, limit: int) -> bytes:
    """The body without the encodings of HTTP; crawlers often take these off and leave the headers. At most `limit` + 1
    bytes come out of compressed data."""
    body = payload.body
    if "chunked" in payload.transfer_encoding:
        body = _dechunked(body)
    if "gzip" in payload.content_encoding and body.startswith(_GZIP):
        return zlib.decompressobj(wbits=31).decompress(body, limit + 1)
    if "deflate" in payload.content_encoding and body[:1] == b"\x78":
        return zlib.decompressobj().decompress(body, limit + 1)
    if payload.content_encoding == "br" and not _HTML.match(body):
        from fastwarc.stream_io import BrotliReader

        return bytes(BrotliReader(io.BytesIO(body)).read(limit + 1))
    return body


def _dechunked(body: bytes) -> bytes:
    """The data of a chunked transfer (RFC 9112, 7.1), as far as it goes; what is not chunked is given back."""
    parts: list[bytes] = []
    position = 0
    while match := _CHUNK.match(body, position):
        size = int(match.group(1), 16)
        if not size:
            return b"".join(parts)
        parts.append(body[match.end() : match.end() + size])
        position = match.end() + size + 2
    return b"".join(parts) if parts else body


def _next_record(stream: BinaryIO, position: int) -> int | None:
    """Where the next record may begin, from a byte on; None where no more is found."""
    stream.seek(0)
    head = stream.read(5)
    magic, lead = (_GZIP, 0) if head.startswith(_GZIP) else (_PLAIN, _PLAIN.find(b"WARC"))
    begin = max(0, position - lead)
    stream.seek(begin)
    window = b""
    while data := stream.read(_SCAN_BYTES):
        window += data
        found = window.find(magic)
        if found >= 0:
            return begin + found + lead
        begin += len(window) - len(magic) + 1
        window = window[-(len(magic) - 1) :]
    return None


def _is_cut(stream: BinaryIO, position: int) -> bool:
    """Whether the file ends in the middle of the record that begins at a byte: FastWARC ends in silence there."""
    stream.seek(0)
    head = stream.read(5)
    if head == b"WARC/":
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 4))
        return stream.read(4) != b"\r\n\r\n"
    if not head.startswith(_GZIP):
        return False  # FastWARC does tell for other kinds of compression
    stream.seek(position)
    inflate = zlib.decompressobj(wbits=31)
    data = stream.read(_SCAN_BYTES)
    while data:
        try:
            inflate.decompress(data, _SCAN_BYTES)
        except zlib.error:
            return True
        data = inflate.unconsumed_tail or inflate.unused_data.lstrip(b"\0") or stream.read(_SCAN_BYTES)
        if inflate.eof and data:
            inflate = zlib.decompressobj(wbits=31)
    return not inflate.eof
