"""Cleaning texts, taking out the lines of C4's rules, and cutting long documents into pieces.

Cleaning is what the rules count on: Unicode NFC, `\\n` for every line break, no whitespace but space, tab and newline,
no control or invisible characters, no blanks at a line's end, at most two blank lines in a row, none at either end.
Cleaning a clean text changes nothing. Before it, text that was decoded with the wrong character set is mended, and HTML
entities that an extraction left behind are decoded (`repair.py`).

`text.py` says in plain Python what `kernel.py` does with a whole column.
"""

from __future__ import annotations

from .cut import cut_step
from .lines import drop_lines_step
from .step import clean_step

__all__ = ["clean_step", "cut_step", "drop_lines_step"]
