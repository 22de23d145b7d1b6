"""Manual pages: roff with the macros of man(7) or mdoc(7), as readable text. No groff is needed.

Headings become `##` lines, paragraphs are filled, examples keep their lines in fences. Conditions are decided as for a
terminal; the page's own macros are not run. `roff_escapes.py` knows the characters, `mdoc.py` the macros of mdoc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .base import REPAIRED, BadInput, Extracted, language_code, read_whole
from .decode import decode
from .mdoc import Mdoc
from .roff_escapes import plain

_MAX_PAGE_BYTES = 16 << 20
_CONTROL = re.compile(r"[.'][ \t]*(\S*)[ \t]*(.*)", re.DOTALL)
_ARGUMENT = re.compile(r'[ \t]*(?:"((?:[^"]|"")*)"?|((?:\\.|[^ \t"\\]|(?<!^)")+))', re.DOTALL)
_LINK = re.compile(r"\A(?:[.'][ \t]*\\\".*\n|\s)*\.so[ \t]+(\S+)\s*(?:\n|\Z)(?:[.'][ \t]*\\\".*\n?|\s)*\Z")
_CODING = re.compile(rb"-\*-.{0,80}?coding:[ \t]*([\w.-]+)", re.IGNORECASE)
_FONTS = {"B", "I", "BI", "BR", "IB", "IR", "RB", "RI", "SB", "SM", "CW", "R"}
_ALTERNATING = {"BI", "BR", "IB", "IR", "RB", "RI"}
_PARAGRAPH = {"PP", "P", "LP", "HP", "sp", "Sp"}
_DEFINITIONS = {"de", "am", "ig", "de1", "am1"}
_MAX_CONDITIONS = 20
_SILENT = {"AS", "BE", "BS", "IX", "VE", "VS"}  # macros that pages define for an index or a bar in the margin
_TERMINAL = {"n": True, "t": False, "e": False, "o": True, "\\n(.g": False, "\\n(.H": False}


class _Page:
    """The text so far: lines being filled into a paragraph, and finished blocks."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.filled: list[str] = []
        self.verbatim: list[str] | None = None
        self.indent = 0

    def add(self, text: str) -> None:
        """A line of text, in the paragraph or in the example that is open."""
        if self.verbatim is not None:
            self.verbatim.append(text.rstrip())
        elif text.strip():
            if text[0] in " \t":  # a line that begins with a space breaks
                self.break_line()
            self.filled.append(" ".join(text.split()))

    def break_line(self) -> None:
        if self.filled:
            self.filled.append("\n")

    def end_paragraph(self) -> None:
        if self.verbatim is not None:
            if self.verbatim and self.verbatim[-1]:
                self.verbatim.append("")
            return
        text = re.sub(r" *\n[ \n]*", "\n", " ".join(self.filled)).strip()
        self.filled = []
        if text:
            self.blocks.append(text)

    def heading(self, level: int, text: str) -> None:
        self.end_verbatim()
        self.end_paragraph()
        if text.strip():
            self.blocks.append(f"{'#' * level} {' '.join(text.split())}")

    def begin_verbatim(self) -> None:
        if self.verbatim is None:
            self.end_paragraph()
            self.verbatim = []

    def end_verbatim(self) -> None:
        lines, self.verbatim = self.verbatim or [], None
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        if lines:
            self.blocks.append("\n".join(("```", *lines, "```")))

    def text(self) -> str:
        self.end_verbatim()
        self.end_paragraph()
        return "\n\n".join(self.blocks)


def read(stream: BinaryIO, name: str, limit: int = _MAX_PAGE_BYTES) -> Iterator[Extracted]:
    """The page as one document; `language` is that of a directory like `man/de/man1/` in `name`. BadInput for a page
    that only points to another one (`.so`)."""
    data = read_whole(stream, min(limit, _MAX_PAGE_BYTES))
    coding = _CODING.search(data[:400])
    text, repaired = decode(data, coding.group(1).decode("ascii") if coding else None)
    text = text.replace("\r\n", "\n")
    if link := _LINK.match(text[:2000]):
        raise BadInput(f"only points to another page: {link.group(1)}", "empty")
    page = _Formatter().format(text)
    if not page:
        raise BadInput("holds no text", "empty")
    directory = re.search(r"(?:^|/)man/([a-z]{2,3}(?:[_.@][\w.@-]+)?)/man\w+/", name)
    language = language_code(directory.group(1)) if directory else None
    yield Extracted(page, language=language, flags=REPAIRED if repaired else "")


class _Formatter:
    def __init__(self) -> None:
        self.page = _Page()
        self.mdoc = Mdoc(self.page)
        self.strings: dict[str, str] = {}
        self.defined: set[str] = set()
        self.tag_next = False  # whether the next line is the tag of a `.TP`
        self.link = ""
        self.depth = 0  # of conditions on one line
        self.conditions: list[bool] = []  # of `.ie`, for their `.el`

    def format(self, text: str) -> str:
        lines = iter(re.sub(r"\\\n", "", text).split("\n"))
        for line in lines:
            self._line(line, lines)
        return self.page.text()

    def _line(self, line: str, lines: Iterator[str]) -> None:
        if line[:1] in (".", "'") and len(line) > 1:
            match = _CONTROL.match(line)
            name, rest = (match.group(1), match.group(2)) if match else ("", "")
            if name.startswith('\\"') or not name or name == "\\}":
                return
            if name.startswith("\\"):
                return
            self._request(name, rest, lines)
        elif self.page.verbatim is None and not line.strip():
            self.page.end_paragraph()
        else:
            self._text(plain(line, self.strings))

    def _text(self, text: str) -> None:
        self.page.add(text)
        if self.tag_next:
            self.tag_next = False
            self.page.break_line()

    def _request(self, name: str, rest: str, lines: Iterator[str]) -> None:
        if name in _DEFINITIONS:
            words = rest.partition('\\"')[0].split()
            end = words[-1] if len(words) > (name != "ig") else "."
            if name != "ig" and words and words[0] not in _SILENT and len(self.defined) < 10_000:
                self.defined.add(words[0])
            _until(lines, f".{end}")
        elif name in ("if", "ie", "el", "while"):
            self._condition(name, rest, lines)
        elif name in ("ds", "as", "ds1", "as1"):
            string, _, value = rest.partition(" ")
            if len(self.strings) < 10_000:
                self.strings[string] = plain(value.lstrip().removeprefix('"'), self.strings)[:1000]
        elif name == "TS":
            self._table(lines)
        elif name == "EQ":
            _until(lines, ".EN")
        elif self.mdoc.active or name == "Dd":
            self.mdoc.macro(name, _arguments(rest, self.strings))
        else:
            self._man(name, _arguments(rest, self.strings))

    def _man(self, name: str, arguments: list[str]) -> None:
        page = self.page
        joined = " ".join(arguments)
        if name in _FONTS:
            self._text("".join(arguments) if name in _ALTERNATING else joined) if arguments else None
        elif name == "TH":
            if arguments:
                section = f"({arguments[1]})" if len(arguments) > 1 and arguments[1] else ""
                page.heading(1, f"{arguments[0]}{section}")
        elif name in ("SH", "SS"):
            if arguments:
                page.heading(2 if name == "SH" else 3, joined)
        elif name in _PARAGRAPH:
            page.end_paragraph()
        elif name in ("TP", "TQ"):
            page.break_line() if name == "TQ" else page.end_paragraph()
            self.tag_next = True
        elif name == "IP":
            page.end_paragraph()
            self._item(arguments[0] if arguments else "")
        elif name in ("nf", "EX", "Vb", "DS"):
            page.begin_verbatim()
        elif name in ("fi", "EE", "Ve", "DE"):
            page.end_verbatim()
        elif name in ("br", "RS", "RE", "in", "ti", "ce"):
            page.break_line()
        elif name in ("UR", "MT"):
            self.link = joined
        elif name in ("UE", "ME"):
            self._text(f"<{self.link}>{joined}")
        elif name == "SY":
            page.end_paragraph()
            self._text(joined)
        elif name == "OP":
            self._text(f"[{joined}]")
        elif name == "YS":
            page.end_paragraph()
        elif name == "URL":  # as asciidoctor's pages define it
            self._text(" ".join(f"<{argument}>" if "://" in argument else argument for argument in arguments))
        elif name in self.defined or name == "MTO":
            self._text(joined)  # what the page's own macro does is not known; what it is given is text

    def _item(self, mark: str) -> None:
        if mark in ("•", "*", "-", "o", "+", "·", "–", "—", "○", "□"):
            self.page.filled.append("-")
        elif mark:
            self.page.add(mark)
            if not re.fullmatch(r"\(?[\w]{1,3}[.)]\]?|\[\w+\]", mark):
                self.page.break_line()

    def _condition(self, name: str, rest: str, lines: Iterator[str]) -> None:
        """`.if CONDITION what`; of an unknown condition the branch is taken that a terminal would most likely take."""
        if name == "el":
            holds = not self.conditions.pop() if self.conditions else False
        else:
            negated = rest.startswith("!")
            rest = rest[1:] if negated else rest
            match = re.match(r"[nteo](?=[ \t\\])|'[^']*'[^']*'|\"[^\"]*\"[^\"]*\"|\([^ ]*\)|\S+?(?=[ \t]|\\\{|$)", rest)
            condition = match.group() if match else ""
            rest = rest[len(condition) :].lstrip()
            holds = name != "while" and _TERMINAL.get(condition, False) != negated
            if name == "ie" and len(self.conditions) < 100:
                self.conditions.append(holds)
        if not rest.startswith("\\{"):
            if holds and rest and self.depth < _MAX_CONDITIONS:
                self.depth += 1
                self._line(rest, lines)
                self.depth -= 1
            return
        first = rest[2:].strip()
        if holds:
            if first and self.depth < _MAX_CONDITIONS:
                self.depth += 1
                self._line(first, lines)
                self.depth -= 1
            return  # the lines up to `\}` follow as any other
        depth = 1 + first.count("\\{") - first.count("\\}")
        while depth > 0 and (line := next(lines, None)) is not None:
            depth += line.count("\\{") - line.count("\\}")

    def _table(self, lines: Iterator[str]) -> None:
        """A table of tbl(1): its rows as they stand, the cells divided by bars."""
        tab = "\t"
        rows: list[str] = []
        for line in lines:  # options, then the format of the columns, which ends with a full stop
            if match := re.search(r"\btab[ \t]*\((.)\)", line):
                tab = match.group(1)
            if line.rstrip().endswith(".") or line.startswith(".TE"):
                break
        block = False
        for line in lines:
            if line.startswith(".TE"):
                break
            if line.startswith((".", "'")) and len(line) > 1 and not line[1].isdigit():
                match = _CONTROL.match(line)
                if match is None or match.group(1) not in _FONTS:
                    continue
                line = " ".join(_arguments(match.group(2), {}))
                if rows and not block:
                    block = True
            if re.fullmatch(r"[_=\s]*", line) and not block:
                continue
            text = plain(line, self.strings).replace(tab, " | ")
            if block and rows:
                rows[-1] += f" {text.removeprefix('T}').strip()}" if text.strip() else ""
            else:
                rows.append(text)
            if "T{" in line or "T}" in line:
                block = line.rfind("T{") > line.rfind("T}")
                rows[-1] = rows[-1].replace("T{", "").replace("T}", "")
        self.page.end_paragraph()
        if shown := [" ".join(row.split()) for row in rows if row.strip(" |")]:
            self.page.blocks.append("\n".join(shown))


def _arguments(rest: str, strings: dict[str, str]) -> list[str]:
    """The arguments of a macro: words, or what stands in quotation marks (two of which stand for one)."""
    rest = re.sub(r"\\[\"#].*", "", rest, flags=re.DOTALL) if '\\"' in rest or "\\#" in rest else rest
    arguments = []
    for match in _ARGUMENT.finditer(rest):
        quoted, word = match.groups()
        arguments.append(plain(quoted.replace('""', '"') if quoted is not None else word, strings))
    return arguments


def _until(lines: Iterator[str], end: str) -> None:
    for line in lines:
        if line.startswith(end):
            return
