"""Project Gutenberg's plain texts without their header, licence and the notes of those who made the file.

All generations of the header are known: the marked ones since 2001 (`*** START OF ...`), and the older ones that end
with "The Small Print". Title and author stay where the book itself prints them; those of the header go with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .base import REPAIRED, BadInput, Extracted, join_flags, read_whole
from .decode import decode

_MAX_BOOK_BYTES = 64 << 20
_HEAD_CHARACTERS = 60_000  # no header is longer
_START = re.compile(
    r"^[ \t]*\*{2,3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]{0,400}\*{3}[^\n]*\n"
    r"|^[ \t]*\*?END ?\*? ?THE SMALL PRINT![^\n]*\n(?:[^\n]*\*END\*[^\n]*\n)?"
    r"|^[ \t]*\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*(?:\*{2,3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|\*{3} ?START: FULL LICENSE"
    r"|\W{0,5}(?:The )?End of (?:the |this )?Project Gutenberg(?:['’]s)?\b)",
    re.MULTILINE | re.IGNORECASE,
)
_FIELD = re.compile(r"^(Language|Character set encoding|ISO-8859-1 for|Author|Title):[ \t]*([^\n\r]+)", re.MULTILINE)
_DECLARED = re.compile(rb"Character set encoding:[ \t]*([\w-]+)", re.IGNORECASE)
_COPYRIGHTED = re.compile(r"\bCOPYRIGHTED Project Gutenberg|^[ \t]*\** ?This is a COPYRIGHTED", re.MULTILINE)
# Paragraphs about the file, not of the book; they stand between the header and the title.
_ABOUT_FILE = re.compile(
    r"^\W*(?:(?:this|the) )?(?:produced by|prepared by|scanned (?:and|by)|scanning by|proofread by|"
    r"transcribed (?:from|by)|"
    r"(?:this )?(?:e-?text|e-?book|electronic text|edition|digital edition|html version|updated)\b[^\n]{0,80}"
    r"(?:prepared|produced|scanned|transcribed|created|provided|was|by)\b|"
    r"\[?(?:transcriber['’]?s?|editor['’]s|etext|illustration note|note)['’]?s? ?(?:note|comment|e-?text)?s?\b"
    r"[^\n]{0,60}"
    r"(?:project gutenberg|transcri|e-?text|:)|note: ?(?:project gutenberg|images|many of)|"
    r"(?:images|scans) of the original|project gutenberg|html version|"
    r"(?:from|using) (?:images|scans)|file was produced|\(?this file was|https?://|www\.)",
    re.IGNORECASE,
)
_NOTES_HEADING = re.compile(
    r"^[^\w\n]*transcriber['’]?s['’]? (?:end)?notes?\b[^\n]{0,20}$", re.IGNORECASE | re.MULTILINE
)
_BLANK_LINES = re.compile(r"\n{4,}")
_LOOKED_AT = 12  # paragraphs after the header
_NOTES_SHARE = 0.1  # of the text, at its end: where the transcriber's notes may stand
_LANGUAGES = {
    "afrikaans": "af", "arabic": "ar", "bulgarian": "bg", "catalan": "ca", "chinese": "zh", "czech": "cs",
    "danish": "da", "dutch": "nl", "english": "en", "esperanto": "eo", "estonian": "et", "finnish": "fi",
    "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hungarian": "hu", "icelandic": "is",
    "irish": "ga", "italian": "it", "japanese": "ja", "korean": "ko", "latin": "la", "norwegian": "no",
    "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "serbian": "sr", "slovenian": "sl",
    "spanish": "es", "swedish": "sv", "tagalog": "tl", "welsh": "cy",
}  # fmt: skip


def read(stream: BinaryIO, name: str, limit: int = _MAX_BOOK_BYTES) -> Iterator[Extracted]:
    """The book as one document; its lines are left as they are. `language` is the header's; `license` is
    `public-domain` (in the USA), or `copyrighted` where the header says so."""
    data = read_whole(stream, min(limit, _MAX_BOOK_BYTES))
    declared = _DECLARED.search(data[:_HEAD_CHARACTERS])
    text, repaired = decode(data, declared.group(1).decode("ascii") if declared else None)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    header, body = _split(text)
    known = "Project Gutenberg" in header
    fields = dict(reversed(_FIELD.findall(header)))
    book = _without_notes(body)
    if not book:
        raise BadInput("holds no text besides the header", "empty")
    yield Extracted(
        book,
        license="copyrighted" if _COPYRIGHTED.search(header) else "public-domain" if known else None,
        language=_LANGUAGES.get(re.split(r"[\s,;(]", fields.get("Language", "").strip().lower())[0]),
        flags=join_flags(REPAIRED if repaired else ""),
    )


def _split(text: str) -> tuple[str, str]:
    """(header, what stands between header and licence)."""
    start = 0
    for match in _START.finditer(text, 0, _HEAD_CHARACTERS):
        start = match.end()
    footer = _END.search(text, start)
    return text[:start] or text[:2000], text[start : footer.start() if footer else len(text)]


def _without_notes(body: str) -> str:
    """Without the paragraphs about who made the file, before the book and behind it."""
    paragraphs = re.split(r"\n[ \t]*\n", body.strip("\n"), maxsplit=3 * _LOOKED_AT)
    head: list[str] = []
    looked_at = 0
    while paragraphs and looked_at < _LOOKED_AT:
        paragraph = paragraphs.pop(0)
        if not paragraph.strip():
            head.append(paragraph)
            continue
        looked_at += 1
        if len(paragraph) < 1500 and _ABOUT_FILE.match(paragraph):
            head = []  # what stood before it was the header's title once more
        else:
            head.append(paragraph)
    book = "\n\n".join(head + paragraphs)
    for match in _NOTES_HEADING.finditer(book, int(len(book) * (1 - _NOTES_SHARE))):
        book = book[: match.start()]
        break
    return _BLANK_LINES.sub("\n\n\n", "\n".join(line.rstrip() for line in book.split("\n"))).strip("\n")
