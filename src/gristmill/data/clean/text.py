"""Cleaning, in plain Python: the reference that the compiled kernel is tested against."""

from __future__ import annotations

import re
import unicodedata

# Deleted: control characters, soft hyphen, zero-width space, word joiner, byte order mark.
_ASCII_DELETED = bytes([*range(0x09), *range(0x0E, 0x20), 0x7F])
_ASCII_TABLE = bytes.maketrans(b"\x0b\x0c", b"\n\n")
_DELETED = [*range(0x80, 0x85), *range(0x86, 0xA0), 0xAD, 0x200B, 0x2060, 0xFEFF]
_SPACES = [0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]
_BREAKS = [0x85, 0x2028, 0x2029]
_TABLE: dict[int, str | None] = dict.fromkeys(_DELETED) | dict.fromkeys(_SPACES, " ") | dict.fromkeys(_BREAKS, "\n")
_MANY_NEWLINES = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """The text in the form that the package's docstring describes. Lone surrogates, which UTF-8 cannot hold, go."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "ignore").translate(_ASCII_TABLE, _ASCII_DELETED).decode().translate(_TABLE)
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return unicodedata.normalize("NFC", _MANY_NEWLINES.sub("\n\n\n", text).strip("\n"))
