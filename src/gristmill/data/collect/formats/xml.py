"""XML that cannot hurt: small documents as trees, large ones as a stream of events, no entity of their own in either.

What a document declares itself (`<!ENTITY`) is how a few bytes grow to gigabytes, and no format here needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar
from xml.etree import ElementTree
from xml.parsers import expat

from .base import READ_ERRORS, BadInput
from .decode import decode

_ENCODING = re.compile(rb"<\?xml[^>]{0,100}?encoding=[\"']([\w.:-]+)")
_CHUNK_BYTES = 1 << 16
_MAX_TOKEN_BYTES = 8 << 20  # between two events, as of a single tag with its attributes
_MAX_DEPTH = 100  # of elements in elements; those that are open cost memory

T = TypeVar("T")


def parse_small(data: bytes) -> ElementTree.Element:
    """The root of a small document. BadInput for what is not well-formed, or declares entities."""
    match = _ENCODING.search(data[:200])
    text, _ = decode(data, match.group(1).decode("ascii") if match else None)
    if "<!ENTITY" in text:
        raise BadInput("declares XML entities, which are not read")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadInput(f"is not well-formed XML: {error}") from None


def local_name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def stream_events(
    stream: BinaryIO,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    text: Callable[[str], None],
    finished: list[T],
) -> Iterator[T]:
    """Feed a document to the three handlers and yield what they put into `finished`, in bounded memory.

    BadInput at the first place that is not well-formed; what was finished before it has been yielded."""
    depth = 0

    def opened(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise BadInput(f"nests its elements more than {_MAX_DEPTH} deep")
        start(tag, attributes)

    def closed(tag: str) -> None:
        nonlocal depth
        depth -= 1
        end(tag)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = opened, closed, text
    parser.EntityDeclHandler = _refuse_entity
    position = 0
    while True:
        try:
            chunk = stream.read(_CHUNK_BYTES)
        except READ_ERRORS as error:
            raise BadInput(f"breaks off after {position:,} bytes: {error}") from None
        try:
            parser.Parse(chunk, not chunk)
        except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            yield from finished
            finished.clear()
            raise BadInput(f"is not well-formed XML: {error}") from None
        yield from finished
        finished.clear()
        if not chunk:
            return
        position += len(chunk)
        if position - max(parser.CurrentByteIndex, 0) > _MAX_TOKEN_BYTES:
            raise BadInput(f"holds a single tag of more than {_MAX_TOKEN_BYTES:,} bytes", "too_large")


def _refuse_entity(name: str, *_: object) -> None:
    raise BadInput(f"declares the XML entity {name!r}, which is not read")
