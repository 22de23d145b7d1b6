"""The main text of an HTML page, and prose out of plain text and Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from gristmill.errors import GristmillError

from .formats.base import REPAIRED, BadInput, Extracted
from .formats.decode import decode
from .tables import Place, skip_bytes

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([\w.:-]+)")
_META_BYTES = 4096  # browsers look at the first 1024 bytes (HTML standard, 13.2.3.2); pages declare it later too
_FRONT_MATTER = re.compile(r"\A---[ \t\r]*\n(?:[^\n]*\n){0,200}?(?:---|\.\.\.)[ \t\r]*(?:\n|\Z)")
_FRONT_KEY = re.compile(r"^[\w-]+[ \t]*:", re.MULTILINE)
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


def main_text(html: bytes, engine: str = "resiliparse", charset: str | None = None) -> tuple[str, bool]:
    """(the main text of a page, whether its bytes had to be repaired).

    `charset` is what the server said. Navigation, headers and footers are left out. "" for a page without main text."""
    page, repaired = decode(html, charset or _declared(html))
    if engine == "trafilatura":
        return _trafilatura(page), repaired
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(page, main_content=True)), repaired


def check_engine(engine: str) -> None:
    """GristmillError with the command to run when an engine for HTML is asked for that is not installed."""
    if engine == "trafilatura":
        try:
            import trafilatura  # noqa: F401
        except ImportError as error:  # lxml has its cleaner in a package of its own, which trafilatura does not ask for
            raise GristmillError(
                f"html: trafilatura is not installed ({error}); run `pip install 'gristmill[trafilatura]'`, or use "
                "html: resiliparse"
            ) from None


def read_html(stream: BinaryIO, engine: str, limit: int) -> Iterator[Extracted]:
    """The one document of an HTML file of at most `limit` bytes."""
    html = stream.read(limit + 1)
    if len(html) > limit:
        raise BadInput(f"is a page of more than {limit:,} bytes", "too_large")
    text, repaired = main_text(html, engine)
    yield Extracted(text, flags=REPAIRED if repaired else "")


def read_text(
    stream: BinaryIO, limit: int, start: Place = (), markdown: bool = False
) -> Iterator[tuple[Place, Extracted | None]]:
    """A text file as one document, or in parts `#1`, `#2`, ... of at most `limit` bytes, cut at line ends. None stands
    for a line that is too long by itself. A place is (bytes, parts) before it.

    Front matter (YAML between two lines of three dashes) is taken off Markdown files: it is about the text, not of it.
    """
    offset, number = start or (0, 0)
    skip_bytes(stream, offset)
    data = stream.read(limit + 1)
    if not offset and len(data) <= limit:
        yield (len(data), 1), _text(data, "", markdown)
        return
    if not offset and data.startswith(WIDE_MARKS):
        raise BadInput(f"is UTF-16 text of more than {limit:,} bytes", "too_large")
    while data:
        cut = data.rfind(b"\n", 0, limit) + 1 if len(data) > limit else len(data)
        number += 1
        if cut:
            offset += cut
            yield (offset, number), _text(data[:cut], f"#{number}", markdown and number == 1)
            data = data[cut:]
        else:
            while data and b"\n" not in data:
                offset += len(data)
                data = stream.read(limit)
            cut = data.find(b"\n") + 1
            offset, data = offset + cut, data[cut:]
            yield (offset, number), None
        data += stream.read(limit + 1 - len(data))


def _text(data: bytes, part: str, markdown: bool) -> Extracted:
    text, repaired = decode(data)
    if markdown and text.startswith("---"):
        found = _FRONT_MATTER.match(text)
        if found and _FRONT_KEY.search(found.group()):
            text = text[found.end() :]
    return Extracted(text, part, flags=REPAIRED if repaired else "")


def _declared(html: bytes) -> str | None:
    head = html[:_META_BYTES]
    found = _META_CHARSET.search(head) or _XML_ENCODING.match(head)
    return found.group(1).decode("ascii", "ignore") if found else None


def _trafilatura(page: str) -> str:
    import trafilatura

    return trafilatura.extract(page, include_comments=False, favor_precision=True) or ""
