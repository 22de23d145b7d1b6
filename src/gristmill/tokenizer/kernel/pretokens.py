"""Cutting text into pre-tokens: what the regexes of `pretokenize.py` match, found by looking at each character once.

Texts are UTF-8, one after another: text t is `data[offsets[t]:offsets[t + 1]]`. No pattern looks back, so that a scan
can stop behind any pre-token and go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from gristmill.data.kernel.layout import I64, U8, U64, Texts

from ..pretokenize import Pattern
from .classes import table as table_of
from .jit import compiled

BLOCK = 1 << 14  # pre-tokens looked at in one go: their text, about 70 kB, stays in the processor's caches

# Classes of characters; those from _BLANK on are white space.
_OTHER, _LETTER, _NUMBER, _BLANK, _SPACE, _NEWLINE = range(6)
_NO_LIMIT = 0
_FOLD = 32  # between an ASCII capital and its small letter
_APOSTROPHE = ord("'")
_S, _T, _M, _D, _R, _V, _L, _E = map(ord, "stmdrvle")
_LONG_S = "ſ".encode()  # what case folding takes for an s; there is no such letter for the others
_LONG_S_1, _LONG_S_2 = _LONG_S


@cache
def class_table(younger_digits: bool) -> U8:
    """The table of character classes that `scan` takes; with the digits of `Digits` or without."""
    numbers = ("number", "digit") if younger_digits else ("number",)
    table = table_of({"letter": _LETTER, "space": _SPACE} | dict.fromkeys(numbers, _NUMBER))
    table[ord(" ")] = _BLANK
    table[[ord("\r"), ord("\n")]] = _NEWLINE
    table.flags.writeable = False
    return table


def blocks(texts: Texts, pattern: Pattern) -> Iterator[tuple[int, I64]]:
    """(where it begins, ends of its pre-tokens) of one stretch of the texts after the other, of up to `BLOCK`
    pre-tokens each. The array of ends is used again for the next stretch."""
    table = class_table(pattern.name == "smollm")
    ends = np.empty(BLOCK, np.int64)
    text, start = 0, int(texts.offsets[0])
    while text < len(texts):
        text, end, found = scan(
            texts.data, texts.offsets, text, start, table, pattern.like_gpt2, pattern.digits or _NO_LIMIT, ends
        )
        yield start, ends[:found]
        start = end


def words_of(data: U8) -> tuple[U8, U64]:
    """The bytes of texts, and the same as 64-bit words that begin at every byte: `[i]` is made of bytes i to i + 7."""
    if len(data) < 16:  # numpy, and so numba, takes a view of one word for another kind of array
        data = np.concatenate([data, np.zeros(16, np.uint8)])
        data.flags.writeable = False
    return data, np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))


@compiled
def _character(data: U8, i: int, end: int) -> tuple[Any, int]:
    """(code point, length in bytes) of the character outside ASCII that begins at `i`. A byte that begins none is a
    character of length 1."""
    lead = data[i]
    if lead >= 0xF0 and i + 3 < end:
        high = (np.int64(lead & 7) << 18) | (np.int64(data[i + 1] & 63) << 12)
        return high | (np.int64(data[i + 2] & 63) << 6) | np.int64(data[i + 3] & 63), 4
    if lead >= 0xE0 and i + 2 < end:
        return (np.int64(lead & 15) << 12) | (np.int64(data[i + 1] & 63) << 6) | np.int64(data[i + 2] & 63), 3
    if lead >= 0xC0 and i + 1 < end:
        return (np.int64(lead & 31) << 6) | np.int64(data[i + 1] & 63), 2
    return np.int64(lead), 1


@compiled
def _run(data: U8, i: int, end: int, classes: U8, kind: int) -> int:
    """The end of the run of characters of one class that begins at `i`, which may be empty."""
    while i < end:
        if data[i] < 0x80:
            if classes[data[i]] != kind:
                break
            i += 1
        else:
            code, step = _character(data, i, end)
            if classes[code] != kind:
                break
            i += step
    return i


@compiled
def _digits(data: U8, i: int, end: int, classes: U8, limit: int) -> int:
    """The end of up to `limit` numbers that begin at `i`."""
    for _ in range(limit):
        if i == end:
            break
        code, step = np.int64(data[i]), 1
        if code >= 0x80:
            code, step = _character(data, i, end)
        if classes[code] != _NUMBER:
            break
        i += step
    return i


@compiled
def _white(data: U8, i: int, end: int, classes: U8, by_lines: bool, up_to_numbers: bool) -> int:
    """The end of the white space at `i`: behind its last newline, if that counts (`by_lines`); else its last character
    is left to what follows, unless it is the only one, nothing follows, or a number that takes none does."""
    start = last = i
    lines = kind = 0
    while i < end:
        code, step = np.int64(data[i]), 1
        if code >= 0x80:
            code, step = _character(data, i, end)
        kind = classes[code]
        if kind < _BLANK:
            break
        last = i
        i += step
        if kind == _NEWLINE:
            lines = i
    if by_lines and lines:
        return lines
    if i == end or last == start or (up_to_numbers and kind == _NUMBER):
        return i
    return last


@compiled
def _contraction(data: U8, i: int, end: int, fold: bool) -> int:
    """The end of 's, 't, 're, 've, 'm, 'll or 'd at the apostrophe at `i`, else `i`; capitals too, if `fold`."""
    case = _FOLD if fold else 0
    if i + 1 < end:
        letter = data[i + 1] | case
        if letter in (_S, _T, _M, _D):
            return i + 2
        if i + 2 < end:
            second = data[i + 2] | case
            if (letter == _L and second == _L) or (letter in (_R, _V) and second == _E):
                return i + 3
            if fold and data[i + 1] == _LONG_S_1 and data[i + 2] == _LONG_S_2:
                return i + 3
    return i


@compiled
def _end(data: U8, i: int, end: int, classes: U8, like_gpt2: bool, limit: int) -> int:
    """The end of the pre-token that begins at `i`."""
    code, step = np.int64(data[i]), 1
    if code >= 0x80:
        code, step = _character(data, i, end)
    kind = classes[code]
    if kind == _LETTER:
        return _run(data, i + step, end, classes, _LETTER)
    if kind == _NUMBER:
        if limit == _NO_LIMIT:
            return _run(data, i + step, end, classes, _NUMBER)
        return _digits(data, i, end, classes, limit)
    if code == _APOSTROPHE:
        contraction = _contraction(data, i, end, not like_gpt2)
        if contraction > i:
            return contraction
    if kind == _BLANK or not (like_gpt2 or kind == _NEWLINE):  # it may be the first character of what follows
        i_next = i + step
        next_kind = _NEWLINE
        if i_next < end:
            next_code = np.int64(data[i_next])
            if next_code >= 0x80:
                next_code, _ = _character(data, i_next, end)
            next_kind = classes[next_code]
        if next_kind == _LETTER:
            return _run(data, i_next, end, classes, _LETTER)
        if kind == _BLANK:
            if next_kind == _OTHER:
                kind = _OTHER
            elif next_kind == _NUMBER and like_gpt2 and limit == _NO_LIMIT:
                return _run(data, i_next, end, classes, _NUMBER)
    if kind == _OTHER:
        i = _run(data, i + step, end, classes, _OTHER)
        return i if like_gpt2 else _run(data, i, end, classes, _NEWLINE)
    return _white(data, i, end, classes, not like_gpt2, like_gpt2 and limit != _NO_LIMIT)


@compiled
def scan(
    data: U8, offsets: I64, text: int, i: int, classes: U8, like_gpt2: bool, limit: int, ends: I64
) -> tuple[int, int, int]:
    """Write the `ends` of pre-tokens, until the array is full or the last text ends: from `i` in text number `text`
    on. (text number and place to go on from, ends written). `limit`: most digits in one piece, 0 for any number."""
    found = 0
    while text < len(offsets) - 1:
        end = offsets[text + 1]
        while i < end and found < len(ends):
            i = _end(data, i, end, classes, like_gpt2, limit)
            ends[found] = i
            found += 1
        if i < end:
            break
        text += 1
    return text, i, found
