"""Bytes to text: byte order marks first, then UTF-8, then what the format declares, then detection, then repair.

What is valid UTF-8 is taken as that whatever is declared, since detectors and declarations are wrong more often than a
long valid UTF-8 text is an accident. The names of encodings are read as browsers read them (WHATWG Encoding Standard):
`iso-8859-1` means Windows-1252.
"""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16, and so is asked for first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NOT_ASCII_LINES = re.compile(rb"[^\n]{0,200}[\x80-\xff][^\n]{0,200}")
_DETECTED_BYTES = 1 << 16
_STRAY = re.compile("[\udc80-\udcff]+")
_ISO_2022 = re.compile(rb"\x1b[$(]")


def decode(data: bytes, declared: str | None = None) -> tuple[str, bool]:
    """(text, whether it had to be repaired: bytes that fit no encoding, or NUL characters, which are taken out).

    `declared` is the encoding that a header or a declaration inside the format names; an unknown name counts as none.
    The text has no byte order mark, no NUL and no lone surrogate. Never raises.
    """
    text, repaired = _decode(data, declared)
    if "\0" in text:
        return text.replace("\0", ""), True
    return text, repaired


def _decode(data: bytes, declared: str | None) -> tuple[str, bool]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _whole_or_repaired(data[len(mark) :], encoding)
    if declared and (name := codec(declared)) and name.startswith("iso2022") and _ISO_2022.search(data):
        return _whole_or_repaired(data, name)  # its bytes are ASCII, so they would pass for UTF-8
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        wide = _unmarked_utf16(data) if "\0" in text else None
        return _whole_or_repaired(data, wide) if wide else (text, False)
    return _not_utf8(data, declared)


def codec(label: str) -> str | None:
    """Python's name of an encoding that the web knows under `label`; None for an unknown label."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    if label.strip().lower().replace("_", "-") in ("utf-8", "utf8"):
        return "utf-8"
    name = str(map_encoding_to_html5(label.strip()))
    return None if name == "utf-8" else name  # "utf-8" is its answer to labels that nobody knows


def _not_utf8(data: bytes, declared: str | None) -> tuple[str, bool]:
    if declared and (name := codec(declared)) and name != "utf-8":
        try:
            return data.decode(name), False
        except UnicodeDecodeError:
            pass
    if wide := _unmarked_utf16(data):
        return _whole_or_repaired(data, wide)
    text = data.decode("utf-8", "surrogateescape")
    stray = sum(len(run) for run in _STRAY.findall(text))
    good = len(text) - len(text.encode("ascii", "ignore")) - stray
    if stray * 4 <= good:  # UTF-8 with a few broken places: cut in the middle of a character, or pasted from elsewhere
        return _STRAY.sub(_stray_character, text), True
    name = _detect(data)
    try:
        return data.decode(name), False
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), True


def _detect(data: bytes) -> str:
    """The likeliest encoding by the lines that are not ASCII: those alone tell encodings apart."""
    from resiliparse.parse.encoding import detect_encoding

    lines: list[bytes] = []
    size = 0
    for match in _NOT_ASCII_LINES.finditer(data):
        lines.append(match.group())
        size += len(lines[-1])
        if size >= _DETECTED_BYTES:
            break
    name = str(detect_encoding(b"\n".join(lines)) or "cp1252")
    return "cp1252" if name == "utf-8" else name


def _whole_or_repaired(data: bytes, encoding: str) -> tuple[str, bool]:
    try:
        return data.decode(encoding), False
    except UnicodeDecodeError:
        return data.decode(encoding, "replace"), True


def _unmarked_utf16(data: bytes) -> str | None:
    """UTF-16 without a mark, as Windows programs write it: Latin text has a NUL in every second byte."""
    head = data[:4096]
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if half >= 4 and odd > 0.7 * half and even < 0.05 * half:
        return "utf-16-le"
    if half >= 4 and even > 0.7 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _stray_character(match: re.Match[str]) -> str:
    """A single stray byte is most often a Windows-1252 letter or quotation mark; several are a broken character."""
    run = match.group()
    if len(run) > 1:
        return "\ufffd"
    character = bytes([ord(run) - 0xDC00]).decode("cp1252", "replace")
    return character if character.isalpha() or character in "‘’“”–—…«»°" else "\ufffd"
