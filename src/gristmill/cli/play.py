"""Texts coloured by token on the terminal, and the merges that built a word."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..tokenizer.explain import MergeTable, Word, pieces_of
from ..tokenizer.tokenizer import Tokenizer

PLAY_HELP = "a line is divided into tokens, a single word also shows its merges; an empty line or Ctrl-D leaves"
STYLES = [f"black on {name}" for name in ("#f0c674", "#8abeb7", "#b5bd68", "#e6a9c0", "#b8a9d9", "#81a2be")]
_MARKS = {"\n": "⏎", "\t": "⇥"}

ReadLine = Callable[[str], str]


def play_loop(tokenizer: Tokenizer, read_line: ReadLine = input, console: Console | None = None) -> None:
    """Show line after line, until an empty one or the end of input."""
    console = console or Console(highlight=False)
    console.print(PLAY_HELP, markup=False)
    merges = MergeTable.of(tokenizer)
    while True:
        try:
            line = read_line("> ")
        except EOFError:
            return
        if not line:
            return
        _show(tokenizer, merges, line, console)


def show(tokenizer: Tokenizer, text: str, console: Console | None = None) -> None:
    """Show one text."""
    _show(tokenizer, MergeTable.of(tokenizer), text, console or Console(highlight=False))


def _show(tokenizer: Tokenizer, merges: MergeTable | None, text: str, console: Console) -> None:
    ids = tokenizer.encode(text)
    shown = Text()
    for number, piece in enumerate(pieces_of(tokenizer, ids)):
        if number and not console.color_system:
            shown.append("|")  # where there are no colours
        shown.append(visible(piece.text), STYLES[number % len(STYLES)])
    console.print(shown, soft_wrap=True)
    console.print(" ".join(map(str, ids)), style="dim", soft_wrap=True)
    size = len(text.encode("utf-8", "replace"))
    each = f", {size / len(ids):.2f} bytes per token" if ids else ""
    console.print(f"{len(ids)} tokens for {size} bytes{each}")
    if merges is not None and len(text.split()) == 1:
        for word in merges.words(text):
            _show_merges(merges, word, console)


def _show_merges(merges: MergeTable, word: Word, console: Console) -> None:
    """The steps that build a word; none for one that begins as a single symbol or in which nothing is merged."""
    steps = merges.merges(word)
    if not steps:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("merge", "pair", "the word after it"):
        table.add_column(title, justify="right" if title == "merge" else "left", no_wrap=title != "the word after it")
    for step in steps:
        pair = f"{visible(step.left)} + {visible(step.right)}"
        table.add_row(f"{step.rank + 1:,}", Text(pair), Text(" | ".join(visible(part) for part in step.parts)))
    console.print()
    console.print(table)


def visible(text: str) -> str:
    """The text with signs for what a terminal would obey instead of showing it."""
    return "".join(
        _MARKS.get(c, c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}")
        for c in text
    )
