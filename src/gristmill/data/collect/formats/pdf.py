"""PDF files with a text layer, by PDFium (package `pypdfium2`, extra `pdf`).

Lines are joined to paragraphs, words that were hyphenated at a line's end to words; headers, footers and page numbers,
which repeat from page to page, are left out. A scan without text is refused, not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from gristmill.errors import GristmillError

from .base import MAX_WHOLE_BYTES, BadInput, Extracted, read_whole

_MAX_PAGES = 20_000
_MAX_PAGE_CHARACTERS = 1 << 20
_EDGE_LINES = 3  # lines at the top and at the bottom of a page that may be a header or a footer
_NEIGHBOURS, _REPEATS = 4, 2  # it is one when it stands in the same place on so many of so many pages before and behind
_LEADERS = re.compile(r"(?:[.·…] ?){5,}\s*[\divxlc]*$")  # an entry of a table of contents
_MIN_CHARACTERS_PER_PAGE = 20  # fewer on average: a scan with a stamp or a signature on it
_NUMBERS = re.compile(r"\d+|\b[ivxlc]+\b")
_PAGE_NUMBER = re.compile(r"\W*(?:page\W+)?(?:\d{1,4}|[ivxlc]{1,7})(?:\W+(?:of|/)\W+\d{1,4})?\W*", re.IGNORECASE)
_NUMBERED_LINES = 5  # so many numbers in a row, each on its own line, number the lines of a manuscript
_EDGE_NUMBER = re.compile(r"^\d{1,4}(?= )|(?<= )\d{1,4}$")
_HEADING = re.compile(
    r"(?:\d{1,2}(?:\.\d{1,2})*\.?|[A-Z]\.\d{1,2}|Chapter \d+\W?|Appendix [A-Z]\W?) [A-Z“\"][^.]{2,70}[^.,;:]$"
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010\u0002\ufffe]$")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\u00ad\ufffe\uffff\ufeff]")
_ENDS_SENTENCE = re.compile(r"[.!?:;][\"'”’)\]]*$")
_STARTS_ITEM = re.compile(r"(?:[•◦▪‣·*–—-]|\(?(?:\d{1,3}|[a-z])[.)])\s")
_BLANK_LINES = re.compile(r"\n{3,}")
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_FULL_LINE = 0.8  # of the page's usual line; a shorter one ends a paragraph, a list's item, a heading


def read(stream: BinaryIO, name: str, limit: int = MAX_WHOLE_BYTES) -> Iterator[Extracted]:
    """The document's text. BadInput when it is encrypted, damaged, or has no text layer, and after the text where it
    has too many pages; the file is held in memory, its pages one at a time. GristmillError when pypdfium2 is not
    installed."""
    try:
        import pypdfium2
    except ImportError:
        raise GristmillError(
            "PDF files are read by package pypdfium2: run `pip install gristmill[pdf]`, or exclude *.pdf"
        ) from None
    data = read_whole(stream, min(limit, MAX_WHOLE_BYTES))
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error) or "ecurity" in str(error):
            raise BadInput("is encrypted", "encrypted") from None
        raise BadInput(f"is no whole PDF: {error}") from None
    try:
        count = len(document)
        pages = _pages(document, pypdfium2.PdfiumError)
    finally:
        document.close()
    characters = sum(len(line) for page in pages for line in page)
    if characters < _MIN_CHARACTERS_PER_PAGE * max(len(pages), 1):
        raise BadInput("has no text layer; it is a scan, and would need character recognition", "empty")
    yield Extracted(_paragraphs(_without_edges(pages)))
    if count > _MAX_PAGES:
        raise BadInput(f"has {count:,} pages; those behind page {_MAX_PAGES:,} are left out", "too_large")


def _pages(document: Any, error_type: type[Exception]) -> list[list[str]]:
    """The lines of every page; a damaged page is an empty one."""
    pages: list[list[str]] = []
    for number in range(min(len(document), _MAX_PAGES)):
        try:
            page = document[number]
            text_page = page.get_textpage()
            text = text_page.get_text_range(0, min(text_page.count_chars(), _MAX_PAGE_CHARACTERS))
            text_page.close()
            page.close()
        except (error_type, ValueError, MemoryError):
            text = ""
        text = text.translate(_LIGATURES).encode("utf-8", "ignore").decode("utf-8")
        lines = (" ".join(line.split()) for line in re.split(r"\r\n|\r|\n", text))
        pages.append(_without_line_numbers([line for line in lines if line and not _LEADERS.search(line)]))
    return pages


def _without_line_numbers(lines: list[str]) -> list[str]:
    """Manuscripts number their lines in the margin; the text layer has those numbers one below the other."""
    kept: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        number = int(line) if line.isascii() and line.isdigit() and len(line) < 5 else None
        if number is not None and (not run or number == int(run[-1]) + 1):
            run.append(line)
            continue
        if len(run) < _NUMBERED_LINES:
            kept += run
        run = [line] if number is not None else []
        if number is None and line:
            kept.append(line)
    return kept


def _without_edges(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the lines at their top and bottom that repeat but for their numbers, and without page numbers."""
    keys = [{place: _edge_key(page[place]) for place in _edges(page)} for page in pages]
    kept: list[list[str]] = []
    for number, page in enumerate(pages):
        around = keys[max(number - _NEIGHBOURS, 0) : number] + keys[number + 1 : number + 1 + _NEIGHBOURS]
        dropped = {place for place, key in keys[number].items() if key and _count(key, place, around) >= _REPEATS}
        dropped |= {place for place in (0, -1) if page and _is_numbered_edge(pages, number, place)}
        size = len(page)
        kept.append([line for i, line in enumerate(page) if i not in dropped and i - size not in dropped])
    return kept


def _is_numbered_edge(pages: list[list[str]], number: int, place: int) -> bool:
    """A page number, alone or in a header: a line whose number goes up by one with the next page, or did so."""
    line = pages[number][place]
    if _PAGE_NUMBER.fullmatch(line):
        return True
    shown = _EDGE_NUMBER.findall(line)
    for step in (-1, 1):
        if 0 <= number + step < len(pages) and pages[number + step]:
            other = _EDGE_NUMBER.findall(pages[number + step][place])
            if any(str(int(one) + step) in other for one in shown):
                return True
    return False


def _count(key: str, place: int, pages: list[dict[int, str]]) -> int:
    return sum(page.get(place) == key for page in pages)


def _edges(page: list[str]) -> list[int]:
    """Places at the edges: from the top 0, 1, 2, from the bottom -1, -2, -3."""
    size = min(_EDGE_LINES, len(page))
    return [*range(size), *range(-size, 0)]


def _edge_key(line: str) -> str:
    """What is the same in a header from page to page; "" for a line too short to be one."""
    key = _NUMBERS.sub("#", line.lower())
    return key if sum(character.isalpha() for character in key) >= 4 else ""


def _paragraphs(pages: list[list[str]]) -> str:
    """Lines joined: a full line goes on in the next one, over the end of the page too; a short one does not."""
    out: list[str] = []
    for page in pages:
        lengths = sorted(len(line) for line in page)
        usual = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
        for line in page:
            if _HEADING.match(line):
                out += ("", f"{line}\n\n")
                continue
            if out and _HYPHEN.search(out[-1]) and line[:1].islower():
                out[-1] = out[-1][:-1] + line
            elif out and out[-1] and out[-1][-1] != "\n" and not _STARTS_ITEM.match(line):
                out[-1] += f" {line}"
            else:
                out.append(line)
            if len(line) < _FULL_LINE * usual and not _HYPHEN.search(line):
                out[-1] += "\n\n" if _ENDS_SENTENCE.search(line) else "\n"
    text = "\n".join(piece.rstrip("\n") + ("\n" if piece.endswith("\n\n") else "") for piece in out)
    return _BLANK_LINES.sub("\n\n", _CONTROLS.sub("", text)).strip()
