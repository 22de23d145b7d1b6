"""Which of the formats here a file has, by its name and its first bytes."""

from __future__ import annotations

import re

from .code_languages import code_language

HEAD_BYTES = 16 << 10  # what `detect` wants to see of a file: old Gutenberg headers are long
_ENDINGS = {
    "epub": "epub",
    "ipynb": "notebook",
    "latex": "latex",
    "ltx": "latex",
    "man": "man",
    "mdoc": "man",
    "pdf": "pdf",
    "rest": "rst",
    "rst": "rst",
    "tex": "latex",
}
_MAN_SECTION = re.compile(r"\.[0-9](?:[a-z]\w{0,6})?$|\.[nl]$")
_MAN = re.compile(rb"(?:\A|\n)(?:'\\\"|\.\\\"|\.TH[ \t]|\.Dd[ \t]|\.so[ \t]+man)")
_GUTENBERG = re.compile(
    rb"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG|Project Gutenberg(?:'s|&#39;s|\xe2\x80\x99s)? E", re.I
)
_LATEX = re.compile(rb"^[ \t]*\\document(?:class|style)\b", re.MULTILINE)


def detect(name: str, head: bytes) -> str | None:
    """`epub`, `pdf`, `wikipedia`, `stackexchange`, `gutenberg`, `notebook`, `rst`, `man`, `latex` or `code`; None for
    everything else: tables, web pages, Markdown, plain text, and what is not text.

    `name` is the name of the file itself, without the ending of a compression; `head` its first `HEAD_BYTES` bytes.
    """
    base = name.replace("\\", "/").rpartition("/")[2].lower()
    ending = base.rpartition(".")[2] if "." in base else ""
    if head.startswith(b"%PDF-") or (ending == "pdf" and b"%PDF-" in head[:1024]):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return "epub" if ending == "epub" or head[30:58] == b"mimetypeapplication/epub+zip" else None
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if ending == "xml" or head.lstrip()[:1] == b"<":
        return _xml(base, head)
    if b"\0" in head[:1024]:
        return None
    return _text(base, ending, head)


def _xml(base: str, head: bytes) -> str | None:
    if b"<mediawiki" in head[:4096]:
        return "wikipedia"
    if base.endswith("posts.xml") or b"<posts>" in head[:1024]:
        return "stackexchange"
    return "code" if code_language(base, head) else None


def _text(base: str, ending: str, head: bytes) -> str | None:
    if ending in ("", "txt", "text") and _GUTENBERG.search(head):
        return "gutenberg"
    if _MAN_SECTION.search(base) and _MAN.search(head):
        return "man"
    if code_language(base, head):
        return "code"
    if not ending and _LATEX.search(head):  # arXiv's single-file sources have no ending
        return "latex"
    return None
