"""The compiled half of cleaning: what every text of a column needs, and most of it done on the bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernel.jit import compiled
from ..kernel.layout import I64, U8, Texts

# Flags of a text. UNTRIMMED: blank lines at the beginning or blanks at the end, and no other fault.
UNTRIMMED, UNCLEAN, FOREIGN, DAMAGED, ENTITIES = 1, 2, 4, 8, 16

# What a byte or the character that begins there is.
_CONTENT, _DELETED, _BLANK, _NEWLINE, _RETURN, _LEAD = 0, 1, 2, 3, 4, 5
_KIND = np.zeros(256, np.uint8)
_KIND[[*range(0x09), *range(0x0E, 0x20), 0x7F]] = _DELETED
_KIND[[0x20, 0x09]] = _BLANK
_KIND[[0x0A, 0x0B, 0x0C]] = _NEWLINE
_KIND[0x0D] = _RETURN
_KIND[[0xC2, 0xE1, 0xE2, 0xE3, 0xEF]] = _LEAD  # of the foreign characters that are deleted or replaced


def examine(texts: Texts) -> NDArray[np.uint8]:
    """The flags of every text."""
    flags = np.zeros(len(texts), np.uint8)
    _examine(texts.data, texts.offsets, flags)
    return flags


def rewrite(texts: Texts) -> tuple[U8, I64]:
    """(bytes, offsets) of the texts cleaned, but for Unicode's normal form."""
    out = np.empty(int(texts.offsets[-1] - texts.offsets[0]), np.uint8)
    offsets = np.zeros(len(texts) + 1, np.int64)
    _rewrite(texts.data, texts.offsets, out, offsets)
    return out[: offsets[-1]], offsets


@compiled
def _foreign(data, i, e):  # type: ignore[no-untyped-def]
    """(kind, length in bytes) of the character of two or three bytes that begins at `i`."""
    a = data[i]
    b = data[i + 1] if i + 1 < e else 0
    if a == 0xC2:
        if b == 0x85:
            return _NEWLINE, 2
        if 0x80 <= b <= 0x9F or b == 0xAD:
            return _DELETED, 2
        return _BLANK if b == 0xA0 else _CONTENT, 2
    c = data[i + 2] if i + 2 < e else 0
    if a == 0xE2 and b == 0x80:
        if 0x80 <= c <= 0x8A or c == 0xAF:
            return _BLANK, 3
        if c == 0x8B:
            return _DELETED, 3
        return _NEWLINE if c == 0xA8 or c == 0xA9 else _CONTENT, 3
    if (a == 0xE2 and b == 0x81 and c == 0xA0) or (a == 0xEF and b == 0xBB and c == 0xBF):
        return _DELETED, 3
    blank = (a == 0xE2 and b == 0x81 and c == 0x9F) or (a == 0xE3 and b == 0x80 and c == 0x80)
    if blank or (a == 0xE1 and b == 0x9A and c == 0x80):
        return _BLANK, 3
    return _CONTENT, 1  # the next bytes are continuations, and content too


@compiled
def _misread(data, i, e):  # type: ignore[no-untyped-def]
    """Whether a character begins at `i` that Windows-1252 or Latin-1 makes of a byte from 0x80 to 0xBF."""
    if i + 1 >= e:
        return False
    a, b = data[i], data[i + 1]
    if a == 0xC2:
        return 0x80 <= b <= 0xBF
    if a == 0xC5:
        return b in (0x92, 0x93, 0xA0, 0xA1, 0xB8, 0xBD, 0xBE)
    if a == 0xC6 or a == 0xCB:
        return b in (0x92, 0x86, 0x9C)
    if a != 0xE2 or i + 2 >= e:
        return False
    c = data[i + 2]
    if b == 0x80:
        return 0x93 <= c <= 0xBA
    return (b == 0x82 and c == 0xAC) or (b == 0x84 and c == 0xA2)


@compiled
def _misread_cyrillic(data, i, e):  # type: ignore[no-untyped-def]
    """Whether two Cyrillic letters read with Windows-1251 stand at `i`: a capital er or es, and a character that is
    none of Russian's letters, twice."""
    for _ in range(2):
        if i + 3 >= e or data[i] != 0xD0 or data[i + 1] | 1 != 0xA1:
            return False
        a, b = data[i + 2], data[i + 3]
        if a == 0xE2:
            if b != 0x80 and b != 0x82 and b != 0x84:
                return False
            i += 5
        elif (a == 0xD0 and b < 0x90) or (a == 0xD1 and b >= 0x90) or a == 0xC2 or a == 0xD2:
            i += 4
        else:
            return False
    return True


@compiled
def _is_entity(data, i, e):  # type: ignore[no-untyped-def]
    """Whether `&name;` or `&#123;` stands at `i`."""
    k = i + 1
    if k < e and data[k] == 35:
        k += 1
    first = k
    while k < e and k - first < 32 and (48 <= data[k] <= 57 or 97 <= (data[k] | 32) <= 122):
        k += 1
    return k > first + 1 and k < e and data[k] == 59


@compiled
def _examine(data, offsets, flags):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        s, e = offsets[row], offsets[row + 1]
        while s < e and data[s] == 10:
            s += 1
        while e > s and (data[e - 1] == 10 or data[e - 1] == 32 or data[e - 1] == 9):
            e -= 1
        flag = UNTRIMMED if s > offsets[row] or e < offsets[row + 1] else 0
        newlines = 0
        before = 0
        i = s
        while i < e:
            byte = data[i]
            kind = _KIND[byte]
            if kind == _CONTENT:
                if byte >= 0x80:
                    flag |= FOREIGN
                    misread = byte == 0xC3 and i + 2 < e and 0x82 <= data[i + 1] <= 0xB4 and _misread(data, i + 2, e)
                    if misread or (byte == 0xD0 and _misread_cyrillic(data, i, e)):
                        flag |= DAMAGED
                elif byte == 38 and _is_entity(data, i, e):
                    flag |= ENTITIES
            elif kind == _NEWLINE:
                newlines = newlines + 1 if before == 10 else 1
                if byte != 10 or newlines > 3 or before == 32 or before == 9:
                    flag |= UNCLEAN
            elif kind == _LEAD:
                flag |= FOREIGN
                if _foreign(data, i, e)[0] != _CONTENT:
                    flag |= UNCLEAN
            elif kind != _BLANK:
                flag |= UNCLEAN
            before = byte
            i += 1
        flags[row] = flag


@compiled
def _rewrite(data, offsets, out, out_offsets):  # type: ignore[no-untyped-def]
    """Write the cleaned texts one after the other. `o` is where the next byte goes, `end` the end of what is content,
    `line` the beginning of the line: blanks are written as they come and taken back at a newline."""
    o = 0
    for row in range(len(offsets) - 1):
        i, e = offsets[row], offsets[row + 1]
        begin = end = line = o
        newlines = 0
        while i < e:
            byte = data[i]
            kind = _KIND[byte]
            length = 1
            if kind == _LEAD:
                kind, length = _foreign(data, i, e)
            if kind == _CONTENT:
                for k in range(i, min(i + length, e)):
                    out[o] = data[k]
                    o += 1
                end = o
                newlines = 0
            elif kind == _BLANK:
                out[o] = byte if byte == 9 else 32
                o += 1
            elif kind != _DELETED:
                if kind == _RETURN and i + 1 < e and data[i + 1] == 10:
                    length = 2
                o = max(end, line)
                if end > begin and newlines < 3:
                    out[o] = 10
                    o += 1
                    newlines += 1
                line = o
            i += length
        o = end
        out_offsets[row + 1] = o
