"""Mending what went wrong before a text came here: a wrong character set, and entities that an extraction left.

Both change a line only where it shows the damage itself, for a page about encodings or about HTML is no damaged page.
"""

from __future__ import annotations

import re
from html.entities import html5

# What Windows-1252 (and Latin-1) make of the bytes 0x80 to 0xBF, and Windows-1251 of the same.
_WINDOWS_1252 = "\x80-\xbf" + bytes(set(range(0x80, 0xA0)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}).decode("cp1252")
_WINDOWS_1251 = bytes(set(range(0x80, 0xC0)) - {0x98}).decode("cp1251")
# A byte that begins a UTF-8 sequence and one that continues it, both read as letters: é as Ã©, – as â€“, п as Рї.
_MISREAD = re.compile(f"[\xc2-\xf4][{_WINDOWS_1252}]|(?:[РС][{_WINDOWS_1251}]){{2}}")
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_MARKUP = re.compile(r"<[A-Za-z/!?]|&(?:amp;)*lt;")
_CODE_LINE = re.compile(r"(?: {4}|\t|>>> |\$ )|.*`|[bu]?(['\"]).*\1[,;)]*$")
_FENCE = re.compile(r"[ \t]*(?:```|~~~)")


def mend_encoding(text: str) -> str:
    """The text with the lines decoded anew that were decoded with a wrong character set, as ftfy (Speer 2019) finds."""
    from ftfy import TextFixerConfig, fix_encoding
    from ftfy.badness import is_bad

    config = TextFixerConfig(replace_lossy_sequences=False)  # that one guesses which character was lost
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if _MISREAD.search(line) and is_bad(line):
            lines[i] = fix_encoding(line, config)
    return "\n".join(lines)


def decode_entities(text: str) -> str:
    """The text with `&amp;`, `&#8217;` and the like decoded. Entities in a text that holds tags, escaped or not, and in
    code (indented, fenced, between backquotes, a string alone on its line) are what the text is about and stay."""
    if _MARKUP.search(text):
        return text
    lines = text.split("\n")
    fenced = False
    for i, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif "&" in line and not fenced and not _CODE_LINE.match(line):
            lines[i] = _ENTITY.sub(_character, line)
    return "\n".join(lines)


def _character(match: re.Match[str]) -> str:
    name = match[1]
    if name[0] != "#":
        return html5.get(name + ";", match[0])
    code = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    if 0x80 <= code <= 0x9F:  # HTML says Windows-1252 (WHATWG, numeric character reference end state)
        return bytes([code]).decode("cp1252", "ignore")
    valid = 0x20 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF
    return chr(code) if valid or code in (9, 10) else match[0]
