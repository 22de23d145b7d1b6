"""What the kernel needs to know of Unicode, as plain predicates and as a table of one byte per code point.

Letters, capitals, categories and numbers are Python's own (`unicodedata`). Two lists stand here because Python has
none: which marks end a sentence, and which marks a word may consist of without counting as a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

# Any four bytes taken for UTF-8 decode to less than this, so that no malformed text can reach past a table's end.
TABLE_SIZE = 1 << 21
# All that is assigned, but for private use: up to CJK extension J, then tags and variation selectors.
_ASSIGNED = (range(0x33480), range(0xE0000, 0xE0200))
_SINGLE_RANGES = (
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width katakana
    (0x20000, 0x3FFFF),
)
_SINGLE = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _SINGLE_RANGES) + "]").match

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


def is_letter(character: str) -> bool:
    return character.isalpha()


def is_capital(character: str) -> bool:
    return character.isupper()


def is_terminal(character: str) -> bool:
    """Whether it ends a sentence, in any script."""
    return character in TERMINAL


def is_mark(character: str) -> bool:
    """Whether a word of such characters alone counts as no word: ASCII punctuation and symbols, quotation marks,
    dashes, East Asian punctuation, ends of sentences. The set is datatrove's, but for its full-width digit one."""
    return character in MARKS


def is_closing(character: str) -> bool:
    """Whether it may stand between the end of a sentence and the blank behind it: a closing quotation mark or
    bracket."""
    return character in "\"'" or unicodedata.category(character) in ("Pe", "Pf")


def is_token(character: str) -> bool:
    """Whether it belongs to a token: a letter, digit, number, underscore or combining mark (`\\w` of UTS #18)."""
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def is_single(character: str) -> bool:
    """Whether it is a token by itself: ideographs and kana, whose words no blank parts."""
    return _SINGLE(character) is not None and is_token(character)


def is_digit(character: str) -> bool:
    return "0" <= character <= "9"


def table(bits: Mapping[int, Callable[[str], bool]]) -> NDArray[np.uint8]:
    """uint8 `[TABLE_SIZE]`: the bits of the predicates that hold of each code point."""
    codes = np.concatenate([np.arange(block.start, block.stop) for block in _ASSIGNED])
    alphabet = list(map(chr, codes.tolist()))
    classes = np.zeros(TABLE_SIZE, np.uint8)
    for bit, holds in bits.items():
        classes[codes[np.fromiter(map(holds, alphabet), bool, len(alphabet))]] |= bit
    return classes
