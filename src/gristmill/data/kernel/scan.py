"""The two passes over a batch's bytes: over its words, and over its lines and paragraphs.

Texts are UTF-8, one after another: document d is `data[offsets[d]:offsets[d + 1]]`. Whitespace is space, tab and
newline, nothing else (`gristmill.data.clean` sees to it). What is counted is documented in `columns.py` and written out
plainly in `reference.py`.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import characters
from .jit import compiled
from .layout import I32, I64, U8, U64

LETTER, CAPITAL, MARK, TERMINAL, CLOSING, DIGIT = 1, 2, 4, 8, 16, 32

# Columns of `words`' counts.
(
    CHARACTERS,
    WORDS,
    PLAIN_WORDS,
    PLAIN_CHARACTERS,
    ALPHABETIC_WORDS,
    STOP_WORDS,
    HASHES,
    ELLIPSES,
    BRACKETS,
    LETTERS,
    DIGITS,
    WORD_COUNTS,
) = range(12)

# Columns of `lines`' counts.
(
    LINES,
    PARAGRAPHS,
    NEWLINES,
    BULLET_LINES,
    ELLIPSIS_LINES,
    TERMINAL_LINES,
    QUOTED_LINES,
    SHORT_LINES,
    CAPITAL_LINES,
    HEXADECIMAL_LINES,
    LONGEST_LINE,
    SENTENCES,
    LINE_COUNTS,
) = range(13)

_SEED = np.uint64(0xCBF29CE484222325)
_P = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a step of the hash is a bijection
_SPACE, _TAB, _NEWLINE = 32, 9, 10
_NUMBER_SIGN, _BRACKET, _DOT, _DASH, _BACKSLASH = ord("#"), ord("{"), ord("."), ord("-"), ord("\\")
_ZERO, _SMALL_U, _SMALL_X, _CAPITAL_X, _ASCII_SMALL = ord("0"), ord("u"), ord("x"), ord("X"), 32
_BULLET, _ELLIPSIS = ord("•"), ord("…")
_QUOTES = (ord('"'), ord("'"), ord("’"), ord("”"), ord("»"))


@cache
def classes() -> NDArray[np.uint8]:
    """The table of character classes that `words` and `lines` take."""
    of = characters.alphabet()
    return characters.table(
        {
            LETTER: of.letters,
            CAPITAL: of.capitals,
            MARK: of.among(characters.MARKS),
            TERMINAL: of.among(characters.TERMINAL),
            CLOSING: of.closings,
            DIGIT: of.among(string.digits),
        }
    )


@compiled
def _code_point(data: U8, i: int, end: int) -> tuple[Any, int]:
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
def _mixed(h: Any) -> Any:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): a bijection that spreads every bit over all."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@compiled
def hash_bytes(data: U8, start: int, end: int) -> Any:
    """The 64-bit hash by which words, lines and paragraphs are compared."""
    h = _SEED
    for i in range(start, end):
        h = (h ^ np.uint64(data[i])) * _P
    return _mixed(h ^ np.uint64(end - start))


@compiled
def words(data: U8, offsets: I64, classes: U8, counts: I64, hashes: U64, lengths: I32, places: I64) -> None:
    """Counts of characters and words: int64 `counts[documents, WORD_COUNTS]`. The words of document d get their hashes
    and lengths in characters in `hashes` and `lengths` from `places[d]` to `places[d + 1]`."""
    found = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        characters = plain_words = plain_characters = alphabetic_words = 0
        letters = digits = number_signs = brackets = ellipses = 0
        while i < end:
            if data[i] == _SPACE or _TAB <= data[i] <= _NEWLINE:
                characters += 1
                i += 1
                continue
            start, h, length, dots, letters_before = i, _SEED, 0, 0, letters
            every = np.uint8(255)
            while i < end:
                byte = data[i]
                if byte == _SPACE or _TAB <= byte <= _NEWLINE:
                    break
                h = (h ^ np.uint64(byte)) * _P
                code, step = np.int64(byte), 1
                if byte >= 0x80:
                    code, step = _code_point(data, i, end)
                    for k in range(1, step):
                        h = (h ^ np.uint64(data[i + k])) * _P
                    ellipses += code == _ELLIPSIS
                flags = classes[code]
                every &= flags
                letters += flags & LETTER
                digits += (flags & DIGIT) != 0
                number_signs += byte == _NUMBER_SIGN
                brackets += byte == _BRACKET
                dots = dots + 1 if byte == _DOT else 0
                if dots == 3:
                    ellipses += 1
                    dots = 0
                length += 1
                i += step
            hashes[found], lengths[found] = _mixed(h ^ np.uint64(i - start)), length
            found += 1
            characters += length
            alphabetic_words += letters > letters_before
            if not every & MARK:
                plain_words += 1
                plain_characters += length
        places[d + 1] = found
        row = counts[d]
        row[CHARACTERS], row[WORDS], row[ALPHABETIC_WORDS] = characters, found - places[d], alphabetic_words
        row[PLAIN_WORDS], row[PLAIN_CHARACTERS] = plain_words, plain_characters
        row[HASHES], row[ELLIPSES], row[BRACKETS] = number_signs, ellipses, brackets
        row[LETTERS], row[DIGITS] = letters, digits


@compiled
def stop_words(hashes: U64, places: I64, tables: U64, table_of: I64, counts: I64) -> None:
    """Column STOP_WORDS of `words`' counts: how many different stop words each document holds. Row `table_of[d]` of
    `tables` is a hash table of the hashes of document d's stop words, 0 in free slots; for row -1 there are none."""
    mask = np.uint64(tables.shape[1] - 1)
    seen = np.full(tables.shape[1], -1, np.int64)  # the last document that held the stop word in a slot
    for d in range(len(places) - 1):
        if table_of[d] < 0:
            continue
        table, found = tables[table_of[d]], 0
        for i in range(places[d], places[d + 1]):
            slot = hashes[i] & mask
            while table[slot] != hashes[i] and table[slot] != 0:
                slot = (slot + np.uint64(1)) & mask
            if table[slot] == hashes[i] and seen[slot] != d:
                seen[slot] = d
                found += 1
        counts[d, STOP_WORDS] = found


@compiled
def _hexadecimal(data: U8, i: int, end: int) -> bool:
    """Whether the x or u at `i`, not the line's first character, belongs to a number such as 0x1f, \\x1f or \\u001f."""
    escaped = data[i - 1] == _BACKSLASH and data[i] != _CAPITAL_X
    prefixed = data[i - 1] == _ZERO and data[i] != _SMALL_U
    if i + 2 >= end or not (escaped or prefixed):
        return False
    for k in range(i + 1, i + 3):
        small = data[k] | _ASCII_SMALL
        if not (_ZERO <= data[k] <= _ZERO + 9 or 97 <= small <= 102):  # a to f
            return False
    return True


@compiled
def _line(data: U8, start: int, end: int, classes: U8, short: int, row: I64) -> tuple[int, Any, int]:
    """Add one line to the counts in `row`; (its end, hash, length in characters)."""
    i, h, length, dots, capitals, ended = start, _SEED, 0, 0, 0, 0
    first, last, flags = np.int64(_SPACE), np.int64(0), np.uint8(0)
    unfinished = hexadecimal = False
    while i < end and data[i] != _NEWLINE:
        byte = data[i]
        h = (h ^ np.uint64(byte)) * _P
        length += 1
        if byte == _SPACE or _TAB <= byte <= _NEWLINE:
            if ended:
                row[SENTENCES] += 1
                ended, unfinished = 0, False
            dots = 0
            i += 1
            continue
        code, step = np.int64(byte), 1
        if byte >= 0x80:
            code, step = _code_point(data, i, end)
            for k in range(1, step):
                h = (h ^ np.uint64(data[i + k])) * _P
        elif (byte | _ASCII_SMALL == _SMALL_X or byte == _SMALL_U) and i > start and not hexadecimal:
            hexadecimal = _hexadecimal(data, i, end)
        flags, last, unfinished = classes[code], code, True
        if first == _SPACE:
            first = code
        dots = dots + 1 if byte == _DOT else 0
        capitals += (flags & CAPITAL) != 0
        if flags & TERMINAL:  # behind . ? ! a blank must follow, behind other scripts' marks nothing need
            ended = max(ended, 1 if code < 0x80 else 2)
        elif ended and not flags & CLOSING:
            row[SENTENCES] += ended == 2
            ended = 0
        i += step
    row[LINES] += 1
    row[SENTENCES] += unfinished
    row[BULLET_LINES] += first in (_DASH, _BULLET)
    row[ELLIPSIS_LINES] += dots >= 3 or last == _ELLIPSIS
    row[TERMINAL_LINES] += (flags & TERMINAL) != 0
    row[QUOTED_LINES] += last in _QUOTES
    row[SHORT_LINES] += length <= short
    row[CAPITAL_LINES] += 2 * capitals > length
    row[HEXADECIMAL_LINES] += hexadecimal
    row[LONGEST_LINE] = max(row[LONGEST_LINE], length)
    return i, _mixed(h ^ np.uint64(i - start)), length


@compiled
def lines(
    data: U8,
    offsets: I64,
    classes: U8,
    short: I64,
    counts: I64,
    hashes: U64,
    lengths: I32,
    places: I64,
    breaks: NDArray[np.bool_],
) -> None:
    """Counts of lines: int64 `counts[documents, LINE_COUNTS]`, all 0 before; hashes, lengths and places of the lines
    that are not empty, in the way of `words`. Lines of document d are short up to `short[d]` characters. `breaks`
    (bool) is true for lines that begin a paragraph."""
    found = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        row = counts[d]
        newlines = 2
        while i < end:
            if data[i] == _NEWLINE:
                row[NEWLINES] += 1
                newlines += 1
                i += 1
                continue
            i, hashes[found], lengths[found] = _line(data, i, end, classes, short[d], row)
            breaks[found] = newlines > 1
            row[PARAGRAPHS] += newlines > 1
            newlines = 0
            found += 1
        places[d + 1] = found


@compiled
def paragraphs(
    data: U8,
    offsets: I64,
    line_hashes: U64,
    line_lengths: I32,
    line_places: I64,
    breaks: NDArray[np.bool_],
    hashes: U64,
    lengths: I32,
    places: I64,
) -> None:
    """Hashes, lengths and places of the paragraphs that the lines make. A text's first one is compared without its
    indentation."""
    found = 0
    for d in range(len(offsets) - 1):
        for line in range(line_places[d], line_places[d + 1]):
            h, length = line_hashes[line], line_lengths[line]
            if line == line_places[d]:
                start = end = offsets[d]
                while end < offsets[d + 1] and data[end] != _NEWLINE:
                    end += 1
                while start < end and (data[start] == _SPACE or data[start] == _TAB):
                    start += 1
                h = hash_bytes(data, start, end)
            if breaks[line]:
                hashes[found], lengths[found] = h, length
                found += 1
            else:
                hashes[found - 1] = _mixed(hashes[found - 1] * _P + h)
                lengths[found - 1] += length + 1
        places[d + 1] = found
