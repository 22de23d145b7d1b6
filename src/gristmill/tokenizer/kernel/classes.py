"""What the patterns need to know of Unicode: which characters are letters, numbers and white space.

`classes.txt` holds them as ranges, taken from the regex engine of the `tokenizers` library: Python's own tables are of
another version of Unicode in each version of Python, and the cuts must be the library's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ranges = list[tuple[int, int]]  # first and last code point of each

# Any four bytes taken for UTF-8 decode to less than this, so that no malformed text can reach past a table's end.
TABLE_SIZE = 1 << 21
FILE = Path(__file__).with_name("classes.txt")


def read_ranges() -> dict[str, Ranges]:
    """The ranges of `letter` (\\p{L}), `number` (\\p{N}), `space` (\\s), and `digit`: what the library's pre-tokenizer
    `Digits`, whose Unicode is younger than the regex engine's, takes for a number besides."""
    found: dict[str, Ranges] = {}
    for line in FILE.read_text(encoding="ascii").splitlines():
        name, *ranges = line.split()
        ends = (text.partition("-") for text in ranges)
        found.setdefault(name, []).extend((int(first, 16), int(last or first, 16)) for first, _, last in ends)
    return found


def write_ranges(ranges: Mapping[str, Ranges]) -> str:
    """The text of `classes.txt`, lines of at most 120 characters."""
    lines: list[str] = []
    for name, of_name in ranges.items():
        line = name
        for first, last in of_name:
            word = f" {first:X}" if first == last else f" {first:X}-{last:X}"
            if len(line) + len(word) > 120:
                lines.append(line)
                line = name
            line += word
        lines.append(line)
    return "\n".join(lines) + "\n"


def table(classes: Mapping[str, int]) -> NDArray[np.uint8]:
    """uint8 `[TABLE_SIZE]`: the class of each code point that is in one of the named ranges, else 0."""
    found = np.zeros(TABLE_SIZE, np.uint8)
    ranges = read_ranges()
    for name, number in classes.items():
        for first, last in ranges[name]:
            found[first : last + 1] = number
    return found
