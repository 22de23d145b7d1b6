"""What the kernel needs to know of Unicode, as tables of one byte per code point.

Letters, capitals, categories and numbers are Python's own (`str`, `unicodedata`). Two lists stand here because Python
has none: which marks end a sentence, and which marks a word may consist of without counting as a word. `reference.py`
says of one character what is worked out here for all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Any four bytes taken for UTF-8 decode to less than this, so that no malformed text can reach past a table's end.
TABLE_SIZE = 1 << 21
# All that is assigned, but for private use: up to CJK extension J, then tags and variation selectors.
_ASSIGNED = (range(0x33480), range(0xE0000, 0xE0200))
IDEOGRAPHIC = (
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width katakana
    (0x20000, 0x3FFFF),
)

# Sentence_Terminal of Unicode 15 (PropList.txt), and Khmer's three marks, which the property leaves out.
_TERMINAL_RANGES = """
    21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6
    17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E
    2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52
    FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6
    111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944
    11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F
    1DA88
"""


def _characters(ranges: str) -> frozenset[str]:
    ends = (part.partition("-") for part in ranges.split())
    return frozenset(chr(c) for low, _, high in ends for c in range(int(low, 16), int(high or low, 16) + 1))


TERMINAL = _characters(_TERMINAL_RANGES)
_ASCII_MARKS = "".join(c for c in map(chr, range(0x21, 0x7F)) if not c.isalnum())
_CONTROLS = "".join(map(chr, [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]))
MARKS = TERMINAL | frozenset(_ASCII_MARKS + _CONTROLS + "«»´–—’“”„…∶━►、〈〉《》「」【】％（），：；～")


class Alphabet:
    """Every code point that is assigned, but for private use: `codes`, and masks over them, bool [codes].

    Each process that works asks for them when it starts, and one predicate called from Python for all of them takes 20
    ms or more. So numpy asks Python's tables for whole arrays, and a category, for which that does not go, is looked up
    of no letter, digit or number, which are two thirds."""

    def __init__(self) -> None:
        self.codes = np.concatenate([np.arange(block.start, block.stop, dtype=np.uint32) for block in _ASSIGNED])
        self.characters = self.codes.view("U1")

    def among(self, characters: Iterable[str]) -> Mask:
        return np.isin(self.codes, np.array(list(map(ord, characters)), np.uint32))

    @cached_property
    def letters(self) -> Mask:
        return np.char.isalpha(self.characters)

    @cached_property
    def capitals(self) -> Mask:
        return np.char.isupper(self.characters)

    @cached_property
    def closings(self) -> Mask:
        """What may stand between the end of a sentence and the blank behind it: closing quotation marks and
        brackets."""
        return self.among("\"'") | self._of_category("Pe", "Pf")

    @cached_property
    def tokens(self) -> Mask:
        """What belongs to a token: letters, digits, numbers, underscores, combining marks (`\\w` of UTS #18)."""
        return self._alphanumeric | self.among("_") | self._of_category("Mn", "Mc", "Me")

    @cached_property
    def singles(self) -> Mask:
        """What is a token by itself: ideographs and kana, whose words no blank parts."""
        found = np.zeros(len(self.codes), np.bool_)
        for first, last in IDEOGRAPHIC:
            found |= (first <= self.codes) & (self.codes <= last)
        return found & self.tokens

    @cached_property
    def blanks(self) -> Mask:
        """What parts words: whitespace and all other separators, NUL, the byte order mark."""
        return np.char.isspace(self.characters) | self.among("\0\ufeff") | self._of_category("Zs", "Zl", "Zp")

    @cached_property
    def _alphanumeric(self) -> Mask:
        return np.char.isalnum(self.characters)

    @cached_property
    def _categories(self) -> NDArray[np.bytes_]:
        """The category of every code point that is not alphanumeric."""
        others = self.codes[~self._alphanumeric].tolist()
        return np.fromiter(map(unicodedata.category, map(chr, others)), "S2", len(others))

    def _of_category(self, *names: str) -> Mask:
        """What has one of the categories, none of which is of letters, digits or numbers."""
        found = np.zeros(len(self.codes), np.bool_)
        found[~self._alphanumeric] = np.isin(self._categories, [name.encode() for name in names])
        return found


@cache
def alphabet() -> Alphabet:
    return Alphabet()


def table(bits: Mapping[int, Mask]) -> NDArray[np.uint8]:
    """uint8 `[TABLE_SIZE]`: the bits of the masks that hold of each code point."""
    classes = np.zeros(TABLE_SIZE, np.uint8)
    codes = alphabet().codes
    for bit, mask in bits.items():
        classes[codes[mask]] |= bit
    return classes
