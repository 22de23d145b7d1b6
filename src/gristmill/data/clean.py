"""Cleaning a text, and cutting long documents into pieces.

Cleaning is what the rules count on: Unicode NFC, `\\n` for every line break, no whitespace but space, tab and newline,
no control or invisible characters, no blanks at a line's end, at most two blank lines in a row, none at either end.
Cleaning a clean text changes nothing.
"""

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
_FOREIGN = re.compile("[" + "".join(map(chr, _TABLE)) + "]")
_MANY_NEWLINES = re.compile(r"\n{4,}")
_BORDERS = (re.compile(rb"\n\n+(?=\S)"), re.compile(rb"\n\n+"), re.compile(rb"\n+"), re.compile(rb"[ \t]+"))


def clean(text: str) -> str:
    """The text in the form described above. Lone surrogates, which UTF-8 cannot hold, are deleted."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "ignore").translate(_ASCII_TABLE, _ASCII_DELETED).decode()
    if not text.isascii():
        if _FOREIGN.search(text):
            text = text.translate(_TABLE)
        text = unicodedata.normalize("NFC", text)
    text = text.rstrip(" \t\n")
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    if "\n\n\n\n" in text:
        text = _MANY_NEWLINES.sub("\n\n\n", text)
    return text.lstrip("\n")


def drop_lines(text: str, phrases: tuple[str, ...]) -> str:
    """The text without the lines that hold one of the phrases, in any case (C4's policy lines)."""
    folded = text.casefold()
    present = [phrase.casefold() for phrase in phrases if phrase.casefold() in folded]
    if not present:
        return text
    lines = [line for line in text.split("\n") if not any(phrase in line.casefold() for phrase in present)]
    return clean("\n".join(lines))


def pieces(text: str, max_bytes: int) -> list[str]:
    """Cut a text into pieces of at most `max_bytes` UTF-8 bytes and of about equal length, at the best borders there
    are: a blank line before a line that is not indented (a heading, a definition), a blank line, a line's end, a word's
    end; a single longer word is cut between characters."""
    data = text.encode()
    found: list[bytes] = []
    start = 0
    while (rest := len(data) - start) > max_bytes:
        even = -(-rest // -(-rest // max_bytes))  # the rest in equal shares, none above max_bytes
        end, following = _border(data, start + even // 2, start + even, start + max_bytes)
        found.append(data[start:end])
        start = following
    found.append(data[start:])
    cut = [piece.decode().rstrip(" \t\n").lstrip("\n") for piece in found]
    return [piece for piece in cut if piece]


def _border(data: bytes, lowest: int, wanted: int, highest: int) -> tuple[int, int]:
    """(end of a piece, start of the next): the border of the best kind, of those the one nearest to `wanted`."""
    for border in _BORDERS:
        matches = (match for match in border.finditer(data, lowest, highest + 4) if lowest < match.start() <= highest)
        nearest = min(matches, key=lambda match: abs(match.start() - wanted), default=None)
        if nearest is not None:
            return nearest.span()
    while data[wanted] & 0xC0 == 0x80:  # inside a character
        wanted -= 1
    return wanted, wanted
