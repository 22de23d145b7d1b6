"""LaTeX sources, as arXiv has them: one document per main file, with what it inputs, without preamble and bibliography.

The rest of the reader: `latex_macros.py` expands the document's own macros, `latex_text.py` turns its body into text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .base import REPAIRED, BadInput, Extracted, read_whole
from .decode import decode
from .latex_macros import Braces, Expander, collect_macros
from .latex_tables import HEADINGS, REFERENCES, SKIPPED_ARGUMENTS, VERBATIM
from .latex_text import CONTROLS, latex_text

_MAX_SOURCE_BYTES = 32 << 20  # of a document with all that it inputs
_MAX_INPUTS, _MAX_DEPTH = 2000, 30  # files that a document may be made of, and how deep they may input each other
_WHOLE = re.compile(r"\\begin\s*\{document\}|\\bye\b|\\input\s+(?:amstex|amsppt)\b")
_PART = re.compile(r"\\documentclass\s*(?:\[[^\]]{0,500}\])?\s*\{(?:subfiles|standalone)\}")
# What is no LaTeX to be read, and the pairs that only look like it: a comment, a verbatim environment, inline verbatim.
_RAW = re.compile(
    r"\\[\\%]|(?P<line>^[ \t]*%[^\n]*(?:\n|\Z))|(?P<comment>%[^\n]*(?:\n(?![ \t]*\n)[ \t]*)?)"
    r"|\\begin\{(?P<block>(?:"
    + "|".join(VERBATIM)
    + r"|comment)\*?)\}(?:[ \t]*\[[^\]\n]{0,300}\])?(?:\{[^}\n]{0,50}\})?"
    r"|\\(?:verb|lstinline)\*?(?:\[[^\]\n]{0,300}\])?(?P<quote>[^a-zA-Z\s*\[{])(?P<inline>[^\n]{0,300}?)(?P=quote)",
    re.MULTILINE,
)
_INPUT = re.compile(
    r"\\(?:input|include|subfile|subfileinclude)\s*(?:\{\s*([^{}]+?)\s*\}|[ \t]+([^\s{}\\]+))"
    r"|\\(?:sub)?(?:import|inputfrom|includefrom)\*?\s*\{([^{}]*)\}\s*\{([^{}]+)\}"
)
_STORED = re.compile("\x00(\\d{1,9})\x00")
# Names whose redefinition a document may not force on the reader: it knows better what they mean.
_KEPT = frozenset(
    {*HEADINGS, *REFERENCES, *SKIPPED_ARGUMENTS, "begin", "end", "item", "caption", "footnote", "label", "cite",
     "title", "maketitle", "par", "textbf", "textit", "emph", "\\", "abstract", "appendix", "today", "and"}
    - {"phantom", "tag", "Hy@raisedlink", "keywords"}
)  # fmt: skip


def read(
    stream: BinaryIO,
    name: str,
    siblings: Callable[[str], bytes | None] | None = None,
    parts: bool = False,
    limit: int = _MAX_SOURCE_BYTES,
) -> Iterator[Extracted]:
    """The one document of a main file.

    `siblings` gives the bytes of another file by its path relative to `name`'s directory (it may begin with `../`), or
    None: it resolves `\\input`, `\\include`, `\\subfile` and `\\import`. A file that is no whole document, without
    `\\begin{document}`, is BadInput unless `parts`: it is read where another file inputs it.
    """
    text, repaired = decode(read_whole(stream, min(limit, _MAX_SOURCE_BYTES)))
    source = _Source(siblings)
    text = source.prepare(text)
    is_part = _PART.search(text) is not None
    text = source.include(text, "")
    if not parts and (is_part or not _WHOLE.search(text)):
        raise BadInput("is no whole LaTeX document: it has no \\begin{document}")
    preamble, body = _cut(text)
    body, macros, swallowed = collect_macros(preamble + "\x04" + body, _KEPT)
    preamble, _, body = body.partition("\x04")
    body = _title(preamble) + Expander(macros).expand(body)
    text = latex_text(body, frozenset(swallowed), preamble)
    if source.stored:
        text = _STORED.sub(lambda match: source.stored[int(match.group(1)) % len(source.stored)], text)
        text = text.replace("\x00", "")  # a number that a broken command took a half of
    if not text:
        raise BadInput("holds no text", "empty")
    yield Extracted(text, flags=REPAIRED if repaired or source.repaired else "")


class _Source:
    """A document's files. What stands in verbatim is stored away, so that nothing later takes it for LaTeX."""

    def __init__(self, siblings: Callable[[str], bytes | None] | None):
        self.stored: list[str] = []
        self.repaired = False
        self._siblings = siblings
        self._room = _MAX_SOURCE_BYTES
        self._inputs = 0
        self._known: dict[bytes, str] = {}
        self._open: list[str] = []  # the files that are being read, each input by the one before

    def prepare(self, text: str) -> str:
        """One file without its comments, its verbatim replaced by numbers."""
        text = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        pieces: list[str] = []
        position = 0
        unclosed: set[str] = set()
        for match in _RAW.finditer(text):
            if match.start() < position or match.lastgroup is None:
                continue
            end, replacement = match.end(), ""
            if block := match.group("block"):
                close = -1 if block in unclosed else text.find(f"\\end{{{block}}}", end)
                if close < 0:
                    unclosed.add(block)
                    continue
                if block != "comment":
                    replacement = self._store(f"```\n{text[end:close].strip(chr(10)).rstrip()}\n```", "\n\n")
                end = close + len(block) + 6
            elif match.group("quote"):
                replacement = self._store(match.group("inline"), "")
            pieces += (text[position : match.start()], replacement)
            position = end
        pieces.append(text[position:])
        return _without_false("".join(pieces))

    def _store(self, text: str, around: str) -> str:
        self.stored.append(text)
        return f"{around}\x00{len(self.stored) - 1}\x00{around}"

    def include(self, text: str, directory: str) -> str:
        """The text with the files that it inputs in their places."""
        if self._siblings is None or ("\\i" not in text and "\\sub" not in text):
            return text
        return _INPUT.sub(lambda match: self._included(match, directory), text)

    def _included(self, match: re.Match[str], directory: str) -> str:
        braced, plain, folder, inside = match.groups()
        name = (braced or plain or posixpath.join(folder or "", inside or "")).strip().strip('"')
        if name.startswith("/") or self._siblings is None:
            return ""
        for path in (f"{name}.tex", name):
            path = posixpath.normpath(posixpath.join(directory, path))
            if path in self._open or len(self._open) >= _MAX_DEPTH or self._inputs >= _MAX_INPUTS:
                return ""  # a file that inputs itself, or too many
            data = self._siblings(path)
            if data is None:
                continue
            text = self._prepared(data)
            self._inputs += 1
            self._room -= len(text)
            if self._room < 0:
                raise BadInput(f"inputs files of more than {_MAX_SOURCE_BYTES:,} bytes", "too_large")
            if _PART.search(text):  # a document of its own when it is not a part of this one
                text = _cut(text)[1]
            self._open.append(path)
            text = self.include(text, posixpath.join(directory, folder) if folder else directory)
            self._open.pop()
            return text
        return ""

    def _prepared(self, data: bytes) -> str:
        """A file's text; one that is input again and again, as macros are, is prepared once."""
        if data not in self._known:
            text, repaired = decode(data)
            self.repaired |= repaired
            self._known[data] = self.prepare(text)
        return self._known[data]


def _without_false(text: str) -> str:
    """Without what stands between `\\iffalse` and `\\fi`, which is a comment too."""
    pieces: list[str] = []
    position = 0
    while (start := text.find("\\iffalse", position)) >= 0:
        end = text.find("\\fi", start + 8)
        if end < 0:
            break
        pieces.append(text[position:start])
        position = end + 3
    return "".join(pieces) + text[position:] if pieces else text


def _cut(text: str) -> tuple[str, str]:
    """(preamble, body); the body ends at the document's end, and is all of it where no document begins."""
    begin = re.search(r"\\begin\s*\{document\}", text)
    preamble, body = (text[: begin.start()], text[begin.end() :]) if begin else ("", text)
    end = re.search(r"\\end\s*\{document\}|\\bye\b", body)
    return preamble, body[: end.start()] if end else body


def _title(preamble: str) -> str:
    """The title, where the preamble sets it."""
    match = re.search(r"\\title\s*(?:\[[^\]]{0,500}\])?\s*(?=\{)", preamble)
    end = Braces(preamble).end(match.end()) if match else None
    return f"\\title{preamble[match.end() : end + 1]}\n\n" if match and end is not None else ""
