"""What the kernel does, in plain Python, one text at a time. The tests hold the kernel to it and to the libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from ..encoder import byte_letters
from ..pretokenize import Pattern, build_pretokenizer

_BYTE_OF = {letter: byte for byte, letter in enumerate(byte_letters())}


def pretokens(text: str, pattern: Pattern) -> list[bytes]:
    """The pre-tokens of a text, cut by the `tokenizers` library."""
    pieces = build_pretokenizer(pattern.name, pattern.digits).pre_tokenize_str(text)
    return [bytes(_BYTE_OF[letter] for letter in piece) for piece, _ in pieces]


def word_counts(texts: Iterable[str], pattern: Pattern) -> list[tuple[bytes, int]]:
    """The distinct pre-tokens, sorted, and how often each occurs."""
    return sorted(Counter(word for text in texts for word in pretokens(text, pattern)).items())


def merged(ids: list[int], merges: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """What byte-pair encoding makes of the ids of bytes. `merges` has the rank and the new id of each pair: the lowest
    rank goes first, the leftmost pair where several have it."""
    ids = list(ids)
    while True:
        ranks = [(merges[pair][0], place) for place, pair in enumerate(pairwise(ids)) if pair in merges]
        if not ranks:
            return ids
        place = min(ranks)[1]
        ids[place : place + 2] = [merges[ids[place], ids[place + 1]][1]]
