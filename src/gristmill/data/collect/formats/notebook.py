"""Jupyter notebooks (nbformat 3 and 4): prose as it stands, code in fences, without magics, images and metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from .base import REPAIRED, BadInput, Extracted, join_flags, read_whole
from .decode import decode

_MAX_NOTEBOOK_BYTES = 128 << 20  # pictures in the outputs make them large
_MAX_OUTPUT_CHARACTERS = 2000
_EMBEDDED = re.compile(
    r"!\[[^\]\n]{0,300}\]\((?:data:|attachment:)[^)]*\)|<img\b[^<>]{0,200}?src=[\"']data:[^<>]*>", re.IGNORECASE
)
# Lines for the notebook alone: `%matplotlib inline`, `!pip install`, `frame.head?`.
_MAGIC = re.compile(r"^[ \t]*(?:%(?!%)[a-zA-Z]|!(?!=)|\?{1,2}\w)|^[\w.]+\?{1,2}[ \t]*$")
_CELL_MAGIC = re.compile(r"^%%(\w+)[^\n]*\n?")
_LANGUAGE_MAGICS = {
    "bash": "bash", "html": "html", "javascript": "javascript", "js": "javascript", "latex": "latex", "perl": "perl",
    "r": "r", "ruby": "ruby", "script": "", "sh": "bash", "sql": "sql", "svg": "svg", "cython": "cython",
}  # fmt: skip
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read(stream: BinaryIO, name: str, outputs: bool = False, limit: int = _MAX_NOTEBOOK_BYTES) -> Iterator[Extracted]:
    """The notebook as one document; with `outputs`, also what its cells printed or showed as text, cut to 2,000
    characters a cell. The flag `code-LANGUAGE` names the language of its code."""
    text, repaired = decode(read_whole(stream, min(limit, _MAX_NOTEBOOK_BYTES)))
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON: {error}") from None
    cells = _cells(notebook)
    if cells is None:
        raise BadInput("is no notebook: it has no cells")
    language = _language(notebook)
    pieces: list[str] = []
    has_code = False
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        kind, source = cell.get("cell_type"), _joined(cell.get("source", cell.get("input", "")))
        if kind == "code":
            if code := _code(source, language):
                pieces.append(code)
                has_code = True
            if outputs and (shown := _outputs(cell.get("outputs"))):
                pieces.append(f"```\n{shown}\n```")
        elif kind == "heading" and source.strip():
            level = cell.get("level")
            marks = "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1)
            pieces.append(f"{marks} {' '.join(source.split())}")
        elif kind in ("markdown", "raw", "html") and (prose := _EMBEDDED.sub("", source).strip()):
            pieces.append(prose)
    if not pieces:
        raise BadInput("holds no text", "empty")
    text = "\n\n".join(pieces).encode("utf-8", "replace").decode("utf-8")  # JSON may hold lone surrogates
    flags = join_flags(f"code-{language}" if has_code and language else "", REPAIRED if repaired else "")
    yield Extracted(text.replace("\0", ""), flags=flags)


def _cells(notebook: Any) -> list[Any] | None:
    if not isinstance(notebook, dict):
        return None
    if isinstance(notebook.get("cells"), list):
        return list(notebook["cells"])
    if isinstance(notebook.get("worksheets"), list):  # nbformat 3
        sheets = [sheet.get("cells") for sheet in notebook["worksheets"] if isinstance(sheet, dict)]
        return [cell for sheet in sheets if isinstance(sheet, list) for cell in sheet]
    return None


def _language(notebook: dict[str, Any]) -> str:
    metadata = notebook.get("metadata")
    if not isinstance(metadata, dict):
        return "python"
    for field, key in (("language_info", "name"), ("kernelspec", "language"), ("kernelspec", "name")):
        section = metadata.get(field)
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and (match := re.match(r"[a-zA-Z+#-]{1,20}", value)):
            return match.group().lower()
    return "python"


def _code(source: str, language: str) -> str:
    if match := _CELL_MAGIC.match(source):
        magic = match.group(1).lower()
        source = source[match.end() :]
        if magic in _LANGUAGE_MAGICS:
            language = _LANGUAGE_MAGICS[magic]
        elif magic in ("writefile", "file"):
            language = ""
    elif language in ("python", "ipython"):
        source = "\n".join(line for line in source.split("\n") if not _MAGIC.match(line))
    source = source.strip("\n").rstrip()
    return f"```{language}\n{source}\n```" if source.strip() else ""


def _outputs(outputs: Any) -> str:
    """What a cell printed, and its result as text; errors and pictures are left out."""
    shown: list[str] = []
    for output in outputs if isinstance(outputs, list) else ():
        if not isinstance(output, dict):
            continue
        kind, data = output.get("output_type"), output.get("data")
        if kind == "stream" and output.get("name", output.get("stream")) != "stderr":
            shown.append(_joined(output.get("text", "")))
        elif kind in ("execute_result", "display_data", "pyout"):
            text = data.get("text/plain", "") if isinstance(data, dict) else output.get("text", "")
            if not _joined(text).startswith("<"):  # `<Figure size 640x480>` says nothing
                shown.append(_joined(text))
    return _ANSI.sub("", "\n".join(text.rstrip() for text in shown if text.strip()))[:_MAX_OUTPUT_CHARACTERS]


def _joined(source: Any) -> str:
    """A source is a string or a list of lines."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""
