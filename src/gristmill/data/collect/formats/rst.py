"""reStructuredText as readable text: headings as `##` lines, paragraphs filled, code in fences, tables as they stand.

Source: the reStructuredText specification of docutils, with the directives and roles of Sphinx. Unknown directives keep
their content. `rst_inline.py` resolves roles, references and emphasis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .base import REPAIRED, BadInput, Extracted, read_whole
from .decode import decode
from .rst_inline import Inline

_MAX_BYTES = 32 << 20
_MAX_DEPTH = 30
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}$|([=\-`:.'\"~^_*+#])\2+$")
_DIRECTIVE = re.compile(r"\.\.[ \t]+(?:\|([^|\n]+)\|[ \t]+)?([A-Za-z][\w.:+-]*?)[ \t]?::(?=[ \t]|$)[ \t]*(.*)")
_TARGET = re.compile(r"\.\.[ \t]+_(?:`[^`]*`|[^:\n]*(?:\\:[^:\n]*)*):|__[ \t]")
_NOTE_MARK = re.compile(r"\.\.[ \t]+(\[[^\]\n]{1,60}\])[ \t]+(.*)")
_OPTION = re.compile(r":[\w -]{1,40}:(?:[ \t]|$)")
_FIELD = re.compile(r":([^:\s](?:[^:\n]|:(?!\s))*):(?:[ \t]+|$)")
_BULLET = re.compile(r"(?:[-*+•‣⁃]|\(?(?:\d{1,4}|[a-zA-Z]|#|[ivxlcIVXLC]{1,6})[.)])[ \t]+(?=\S)")
_BULLETS = "-*+•‣⁃"
_TABLE_BORDER = re.compile(r"\+(?:[-=]+\+)+$|={2,}(?:[ \t]+={2,})+$")
_GRID = re.compile(r"\+[-=]+\+")
_CODE = {
    "code", "code-block", "sourcecode", "parsed-literal", "prompt", "ipython", "testcode", "doctest",
    "productionlist", "jupyter-execute", "literal",
}  # fmt: skip
_ADMONITIONS = {
    "attention": "Attention", "caution": "Caution", "danger": "Danger", "deprecated": "Deprecated since version",
    "error": "Error", "hint": "Hint", "important": "Important", "note": "Note", "seealso": "See also", "tip": "Tip",
    "versionadded": "New in version", "versionchanged": "Changed in version", "versionremoved": "Removed in version",
    "warning": "Warning", "todo": "To do", "deprecated-removed": "Deprecated since version", "warn": "Warning",
    "impl-detail": "Implementation detail",
}  # fmt: skip
_DROPPED = {
    "autoattribute", "autoclass", "autodata", "autoexception", "autofunction", "automethod", "automodule",
    "autosummary", "blockdiag", "contents", "currentmodule", "default-domain", "default-role", "digraph", "footer",
    "graph", "graphviz", "header", "highlight", "image", "include", "index", "inheritance-diagram", "kernel-doc",
    "kernel-feat", "kernel-abi", "kernel-figure", "kernel-render", "kernel-include", "literalinclude", "meta",
    "module", "moduleauthor", "only-html", "plot", "py:currentmodule", "py:module", "raw", "role", "sectionauthor",
    "sectnum", "tabularcolumns", "target-notes", "testcleanup", "testsetup", "title", "toctree", "uml", "youtube",
    "restindex", "minigallery", "programoutput", "program-output", "nbinput", "nboutput", "c:namespace",
    "cpp:namespace", "date", "unicode", "badge", "sidebar-links", "click", "automodapi", "doxygenfunction",
    "doxygenclass", "doxygenfile",
}  # fmt: skip
# Directives whose argument is no text: the content alone is kept.
_SILENT_ARGUMENT = {
    "class", "rst-class", "cssclass", "container", "only", "list-table", "hlist", "ifconfig", "compound",
    "highlights", "div", "tab-set", "grid", "pull-quote", "epigraph", "glossary", "tabs", "line-block",
    "centered-content", "flat-table",
}  # fmt: skip


def read(stream: BinaryIO, name: str, limit: int = _MAX_BYTES) -> Iterator[Extracted]:
    """The document; BadInput when nothing is left of it, as of a mere list of includes."""
    text, repaired = decode(read_whole(stream, min(limit, _MAX_BYTES)))
    body = rst_to_text(text)
    if not body:
        raise BadInput("holds no text", "empty")
    yield Extracted(body, flags=REPAIRED if repaired else "")


def rst_to_text(source: str) -> str:
    """The readable text of a reStructuredText document."""
    lines = [line.expandtabs(8).rstrip() for line in re.split(r"\r\n|\r|\n", source)]
    return "\n\n".join(_Document(lines).blocks(lines, 0)).strip("\n")


class _Document:
    def __init__(self, lines: list[str]):
        self.inline = Inline(lines)
        self.styles: list[str] = []  # adornments in the order they came: the level of a heading

    def blocks(self, lines: list[str], depth: int) -> list[str]:
        """The blocks of text that lines of one level make."""
        out: list[str] = []
        position = 0
        literal = False  # whether the paragraph before ended with `::`
        while position < len(lines):
            line = lines[position]
            if not line:
                position += 1
                continue
            indent = len(line) - len(line.lstrip(" "))
            if indent and not literal:
                inner, position = _indented(lines, position, 1)
                if depth < _MAX_DEPTH:
                    out += self.blocks(_dedented(inner), depth + 1)
                continue
            if literal:
                literal = False
                inner, position = _literal_block(lines, position)
                if inner:
                    out.append(_fence(inner))
                continue
            position, block, literal = self._block(lines, position, depth)
            out += block
        return out

    def _block(self, lines: list[str], position: int, depth: int) -> tuple[int, list[str], bool]:
        """(position behind it, its text, whether a literal block follows) of the block that begins here."""
        line = lines[position]
        if heading := self._heading(lines, position):
            return heading[0], [heading[1]] if heading[1] else [], False
        if line == ".." or line.startswith((".. ", "__ ")):
            return *self._explicit(lines, position, depth), False
        if _TABLE_BORDER.match(line) or _GRID.match(line):
            end = _simple_table_end(lines, position) if line[0] == "=" else _blank(lines, position)
            return end, ["\n".join(row for row in lines[position:end] if row)], False
        if line.startswith(">>> "):
            end = _blank(lines, position)
            return end, [_fence(lines[position:end])], False
        if line.startswith("| ") or line == "|":
            end = _blank(lines, position)
            rows = (row[2:] if row[0] == "|" else row for row in lines[position:end])
            return end, ["\n".join(self.inline.text(row) for row in rows)], False
        if match := _BULLET.match(line):
            return self._item(lines, position, match.end(), match.group().strip(), depth)
        if match := _FIELD.match(line):
            inner, end = _indented(lines, position + 1, 1)
            content = [line[match.end() :], *_dedented(inner)]
            text = " ".join(self.blocks(content, depth + 1)) if depth < _MAX_DEPTH else ""
            name = match.group(1)
            return end, [f"{self.inline.text(name)}: {text}".rstrip()] if text or " " in name else [], False
        return self._paragraph(lines, position, depth)

    def _heading(self, lines: list[str], position: int) -> tuple[int, str] | None:
        line = lines[position]
        following = lines[position + 1] if position + 1 < len(lines) else ""
        if _ADORNMENT.match(line):
            below = lines[position + 2] if position + 2 < len(lines) else ""
            if following and below == line and len(line) >= 3:  # an overline
                return position + 3, self._titled(line[0] * 2, following)
            if len(line) >= 4 and not following:
                return position + 1, ""  # a transition
            return None
        if following and _ADORNMENT.match(following) and len(following) >= min(len(line), 4) and line[:2] != "..":
            if _TABLE_BORDER.match(following):
                return None
            return position + 2, self._titled(following[0], line)
        return None

    def _titled(self, style: str, title: str) -> str:
        if style not in self.styles:
            self.styles.append(style)
        return f"{'#' * min(self.styles.index(style) + 1, 6)} {self.inline.text(title.strip())}"

    def _item(self, lines: list[str], position: int, width: int, mark: str, depth: int) -> tuple[int, list[str], bool]:
        """A list: its items, tight where they hold a single paragraph."""
        items: list[str] = []
        number = 0
        bullet = mark[0] if mark[0] in _BULLETS else ""
        while position < len(lines) and (match := _BULLET.match(lines[position])):
            mark, width = match.group().strip(), match.end()
            if bullet != (mark[0] if mark[0] in _BULLETS else ""):
                break  # another list
            inner, end = _indented(lines, position + 1, min(width, 2))
            content = _dedented(inner)
            first = lines[position][width:]
            blocks = self.blocks([first, *content], depth + 1) if depth < _MAX_DEPTH else [first]
            number += 1
            shown = "-" if bullet else mark.replace("#", str(number))
            body = (
                "\n".join(blocks)
                if all("\n" not in block or block.startswith("- ") for block in blocks)
                else "\n\n".join(blocks)
            )
            items.append(f"{shown} " + body.replace("\n", "\n  ").replace("\n  \n", "\n\n"))
            position = end
            while position < len(lines) and not lines[position]:
                position += 1
        return position, ["\n".join(items)], False

    def _paragraph(self, lines: list[str], position: int, depth: int) -> tuple[int, list[str], bool]:
        start = position
        while position < len(lines) and lines[position] and not (position > start and lines[position][0] == " "):
            position += 1
        text = " ".join(lines[start:position])
        literal = text.endswith("::")
        if literal:
            text = text[:-2].rstrip() + ("" if text[:-2].endswith(" ") or text == "::" else ":")
        shown = [self.inline.text(text)] if text else []
        if position < len(lines) and lines[position][:1] == " " and not literal:  # a term and its definition
            inner, position = _indented(lines, position, 1)
            blocks = self.blocks(_dedented(inner), depth + 1) if depth < _MAX_DEPTH else []
            if blocks and shown:
                shown = [f"{shown[0]}\n{blocks[0]}", *blocks[1:]]
        return position, shown, literal

    def _explicit(self, lines: list[str], position: int, depth: int) -> tuple[int, list[str]]:
        """What begins with two dots: a directive, a footnote, a target, or a comment."""
        line = lines[position]
        inner, end = _indented(lines, position + 1, 1)
        if depth >= _MAX_DEPTH:
            return end, []
        if match := _NOTE_MARK.match(line):
            return end, [
                f"{match.group(1)} " + "\n\n".join(self.blocks([match.group(2), *_dedented(inner)], depth + 1))
            ]
        if _TARGET.match(line):
            return end, []
        directive = _DIRECTIVE.match(line)
        if not directive or directive.group(1):
            return end, []  # a comment, or a substitution, which `Inline` has read
        name, argument = directive.group(2).lower(), directive.group(3)
        content = _dedented(inner)
        place = 0
        while place < len(content) and content[place]:  # options, and what goes on of the argument
            if not _OPTION.match(content[place]) and not (place and content[place][0] == " "):
                if argument and not any(_OPTION.match(row) for row in content[:place]) and name not in _CODE:
                    argument += f" {content[place]}"
                else:
                    break
            place += 1
        return end, self._directive(name, argument, content[place:], depth)

    def _directive(self, name: str, argument: str, content: list[str], depth: int) -> list[str]:
        if name in _DROPPED:
            return []
        if name in _CODE:
            language = argument if re.fullmatch(r"[\w+#-]{1,20}", argument) else ""
            return [_fence(content, language)] if any(content) else []
        if name == "math":
            formula = "\n".join(row for row in [argument, *content] if row)
            return [f"$$\n{formula}\n$$"] if formula else []
        if name in ("csv-table", "table") and argument:
            return [
                self.inline.text(argument),
                *(["\n".join(filter(None, content))] if name[0] == "c" else self.blocks(content, depth + 1)),
            ]
        if name in ("figure", "kernel-figure"):
            return self.blocks(content, depth + 1)
        if name in ("rubric", "topic", "sidebar", "admonition", "tab-item", "dropdown", "centered"):
            return (
                [self.inline.text(argument), *self.blocks(content, depth + 1)]
                if argument
                else self.blocks(content, depth + 1)
            )
        if name in _ADMONITIONS:
            return self._admonition(name, argument, content, depth)
        blocks = self.blocks(content, depth + 1)
        if name in _SILENT_ARGUMENT or not argument:
            return blocks
        signature = argument.strip()  # a function, an option, a variable: what it is called is text
        return (
            [f"`{signature}`", *blocks]
            if ":" in name or name in _SIGNATURES
            else [self.inline.text(signature), *blocks]
        )

    def _admonition(self, name: str, argument: str, content: list[str], depth: int) -> list[str]:
        title = _ADMONITIONS[name]
        if title.endswith("version"):
            version, _, rest = argument.partition(" ")
            title = f"{title} {version}"
            argument = rest
        blocks = self.blocks([*([argument] if argument else []), *content], depth + 1)
        return [f"{title}: {blocks[0]}", *blocks[1:]] if blocks else [f"{title}."] if title[-1].isdigit() else []


_SIGNATURES = {
    "function", "method", "attribute", "data", "exception", "classmethod", "staticmethod", "decorator", "option",
    "envvar", "describe", "object", "confval", "cmdoption", "property", "macro", "type", "opcode",
}  # fmt: skip


def _fence(lines: list[str], language: str = "") -> str:
    while lines and not lines[0]:
        lines = lines[1:]
    while lines and not lines[-1]:
        lines = lines[:-1]
    return "\n".join((f"```{language}", *lines, "```"))


def _indented(lines: list[str], position: int, least: int) -> tuple[list[str], int]:
    """(the lines from here on that are blank or indented by `least`, the position behind them)."""
    start = position
    end = position
    while position < len(lines):
        line = lines[position]
        if line:
            if not line.startswith(" " * least):
                break
            end = position + 1
        position += 1
    return lines[start:end], end


def _dedented(lines: list[str]) -> list[str]:
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line]
    least = min(indents, default=0)
    return [line[least:] for line in lines]


def _literal_block(lines: list[str], position: int) -> tuple[list[str], int]:
    """An indented block, or one of lines that all begin with the same mark (a quoted literal block)."""
    if lines[position][0] == " ":
        inner, end = _indented(lines, position, 1)
        return _dedented(inner), end
    mark = lines[position][0]
    end = position
    if mark in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~":
        while end < len(lines) and lines[end][:1] == mark:
            end += 1
        return lines[position:end], end
    return [], position


def _blank(lines: list[str], position: int) -> int:
    while position < len(lines) and lines[position]:
        position += 1
    return position


def _simple_table_end(lines: list[str], position: int) -> int:
    """Where the simple table ends that begins here: at the blank line behind its last border, for there may be blank
    lines between its rows. What has no second border is no table, and ends at the first blank line."""
    borders, last = 0, position
    for place in range(position, len(lines)):
        if _TABLE_BORDER.match(lines[place]):
            borders, last = borders + 1, place
        elif not lines[place] and last == place - 1 and (borders > 2 or (borders == 2 and place - position > 3)):
            return place
    return last + 1 if borders > 1 else _blank(lines, position)
