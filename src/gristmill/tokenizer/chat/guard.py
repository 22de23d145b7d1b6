"""Special tokens in rendered text: found where the template wrote them, never where a message's text holds one.

Both stand in one string once a template is rendered. So, before rendering, every special string inside a message gets
a guard, a character that occurs nowhere else, behind its first letter, and loses it again once the template's own
tokens are found. A user who types `<|im_end|>` gets its letters, and all other text reaches the template unchanged.

A template that measures or compares text sees the guard: `content | length` counts it, and `content == 'a<'` is false
where `a<` could begin a special string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text; `special` is the special token it stands for, None for plain text."""

    text: str
    special: str | None


class SpecialText:
    """The special tokens of one tokenizer, as strings to be guarded in messages and found in rendered text."""

    def __init__(self, specials: Sequence[AddedToken]):
        self._tokens = {token.content: token for token in specials if token.content}
        rests: dict[str, list[str]] = {}
        for content in self._tokens:
            rests.setdefault(content[0], []).append(content[1:])
        # The first letter of a token; its one group is the rest of the longest there.
        firsts = (f"{re.escape(first)}(?=({_longest(rest)}))" for first, rest in sorted(rests.items()))
        self._first = re.compile("|".join(firsts) or r"(?!)")
        self._beginnings = {content[:length] for content in self._tokens for length in range(1, len(content))}
        self._most = max(map(len, self._beginnings), default=0)

    def protect(self, text: str, guard: str) -> str:
        """`text` with a guard behind the first letter of every special string in it.

        The beginning of one at the text's end is broken up too: what the template puts behind it, perhaps after it has
        stripped spaces, could make it whole.
        """
        firsts = {match.start() for match in self._first.finditer(text)}
        for end in {len(text), len(text.rstrip())}:
            lengths = range(1, min(self._most, end) + 1)
            firsts |= {end - length for length in lengths if text[end - length : end] in self._beginnings}
        if not firsts:
            return text
        ends = [0, *(first + 1 for first in sorted(firsts)), len(text)]
        return guard.join(text[start:end] for start, end in pairwise(ends))

    def cut(self, text: str, guard: str) -> Iterator[Piece]:
        """Cut at the special tokens, which hold no guard, and drop the guards from the text between them.

        The longest token at a place counts, and takes along the white space that it is declared to swallow.
        """
        done = 0
        for match in self._first.finditer(text):
            assert match.lastindex is not None
            start, end = match.start(), match.end(match.lastindex)
            if start < done or text.startswith(guard, end):  # with a guard behind it, a letter that a user typed
                continue
            content = text[start:end]
            token = self._tokens[content]
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            if start > done:
                yield Piece(text[done:start].replace(guard, ""), None)
            yield Piece(text[start:end], content)
            done = end
        if done < len(text):
            yield Piece(text[done:].replace(guard, ""), None)


def _longest(strings: Iterable[str]) -> str:
    """A regex that matches the longest of `strings` at a place.

    It branches one character at a time, so that ten thousand reserved tokens cost no more than what they share.
    """
    root: dict[str, Any] = {}
    for string in strings:
        node = root
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}  # a string ends here
    return _branches(root)


def _branches(node: dict[str, Any]) -> str:
    chain = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        chain += re.escape(character)
    longer = [re.escape(character) + _branches(node[character]) for character in sorted(node) if character]
    if not longer:
        return chain
    return chain + "(?:" + "|".join(longer) + ")" + ("?" if "" in node else "")
