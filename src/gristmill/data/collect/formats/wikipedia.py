"""Dumps of MediaWiki sites (`*-pages-articles.xml`): one document per article, in bounded memory.

Source: the MediaWiki XML export format. Redirects, talk, templates and all other namespaces are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .base import BadInput, Extracted, language_code
from .wikitext import LEFT_OUT, wikitext_to_text
from .xml import stream_events

_WANTED = {"title", "ns", "id", "text", "base", "namespace"}
_MAX_PAGE_CHARACTERS = 16 << 20  # MediaWiki's own limit is 2 MB of wikitext
# Sites of the Wikimedia Foundation, whose texts are under this licence since June 2023.
_WIKIMEDIA = re.compile(r"//[a-z-]+\.(?:m\.)?wik(?:ipedia|tionary|ibooks|isource|iversity|ivoyage|iquote)\.org/")
_WIKIMEDIA_LICENSE = "CC-BY-SA-4.0"
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig|dab|hndis|geodis|begriffsklärung|homonymie|desambiguaci)", re.IGNORECASE
)
_DROPPED_NAMESPACES = {"-2", "-1", "2", "6", "8", "10", "12", "14", "100", "828"}


def read(stream: BinaryIO, name: str) -> Iterator[Extracted]:
    """The articles in the dump's order; `part` is the page's number. A disambiguation page has that as its flag."""
    pages = _Pages()
    yield from stream_events(stream, pages.start, pages.end, pages.characters, pages.finished)
    if not pages.seen:
        raise BadInput("holds no page of a MediaWiki dump")


class _Pages:
    """Handlers of the parser; `finished` collects the articles."""

    def __init__(self) -> None:
        self.finished: list[Extracted] = []
        self.seen = False
        self._language: str | None = None
        self._license: str | None = None
        self._left_out = set(LEFT_OUT)
        self._namespace_key = ""
        self._field = ""
        self._pieces: list[str] = []
        self._size = 0
        self._page: dict[str, str] = {}
        self._redirect = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "mediawiki":
            self._language = language_code(attributes.get("xml:lang", ""))
        elif tag == "page":
            self.seen = True
            self._page, self._redirect = {}, False
        elif tag == "redirect":
            self._redirect = True
        elif tag in _WANTED:
            self._field, self._pieces, self._size = tag, [], 0
            self._namespace_key = attributes.get("key", "")

    def characters(self, data: str) -> None:
        if self._field:
            self._size += len(data)
            if self._size <= _MAX_PAGE_CHARACTERS:
                self._pieces.append(data)

    def end(self, tag: str) -> None:
        if tag == self._field:
            value = "".join(self._pieces)
            self._field = ""
            if tag == "namespace":
                if self._namespace_key in _DROPPED_NAMESPACES and value:
                    self._left_out.add(value.lower())
            elif tag == "base":
                self._license = _WIKIMEDIA_LICENSE if _WIKIMEDIA.search(value) else None
            else:
                self._page.setdefault(tag, value)  # the first <id> is the page's, the next one the revision's
        elif tag == "page":
            self._finish()

    def _finish(self) -> None:
        page = self._page
        source = page.get("text", "")
        if (
            self._redirect
            or page.get("ns", "0") != "0"
            or not source.strip()
            or source.lstrip()[:9].upper() == "#REDIRECT"
        ):
            return
        text = wikitext_to_text(source, frozenset(self._left_out))
        if text:
            flags = "disambiguation" if _DISAMBIGUATION.search(source) else ""
            title = f"# {page.get('title', '')}\n\n"
            self.finished.append(Extracted(title + text, page.get("id", ""), self._license, self._language, flags))
