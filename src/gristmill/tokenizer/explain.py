"""What a tokenizer made of a text: its pieces, and, of BPE, which pairs were merged in which order (Sennrich et al.
2016, algorithm 1)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .encoder import byte_letters
from .tokenizer import Tokenizer

LONGEST_WORD = 200  # symbols; the merges of a longer one are not looked for


class Piece(NamedTuple):
    """Whole characters and the ids they are made of: one token, or as many as share a character, whose bytes cannot be
    shown alone."""

    text: str
    ids: list[int]


def pieces_of(tokenizer: Tokenizer, ids: Iterable[int]) -> list[Piece]:
    """The ids grouped so that each group stands for whole characters."""
    stream = tokenizer.stream(skip_special_tokens=False)
    pieces: list[Piece] = []
    waiting: list[int] = []
    for token_id in ids:
        waiting.append(token_id)
        text = stream.push(token_id)
        if text:
            pieces.append(Piece(text, waiting))
            waiting = []
    if waiting:
        pieces.append(Piece(stream.finish(), waiting))
    return pieces


class Merge(NamedTuple):
    """One step: the pair learned as number `rank` (from 0) became one; `parts` is the whole word after it."""

    rank: int
    left: str
    right: str
    parts: list[str]


@dataclass(frozen=True)
class Word:
    """A piece of a text that no token crosses: its characters `[start, end)`, and the symbols it begins as."""

    text: str
    start: int
    end: int
    symbols: tuple[str, ...]


class MergeTable:
    """The merges of a tokenizer of kind bpe; made by `MergeTable.of`."""

    def __init__(self, tokenizer: Tokenizer, ranks: dict[tuple[str, str], int], taken_whole: frozenset[str]):
        self._backend = tokenizer.backend
        self._ranks = ranks
        self._taken_whole = taken_whole
        self._letters = byte_letters()
        self._byte_of = {letter: byte for byte, letter in enumerate(self._letters)}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> MergeTable | None:
        """None for other kinds, and for a BPE that rewrites text before it cuts it."""
        state = json.loads(tokenizer.backend.to_str())
        model, normalizer = state["model"], state["normalizer"]
        rewritten = normalizer is not None and normalizer.get("normalizers") != []
        if tokenizer.kind != "bpe" or rewritten:
            return None
        pairs = (entry if isinstance(entry, list) else entry.split(" ", 1) for entry in model["merges"])
        ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
        return cls(tokenizer, ranks, frozenset(model["vocab"]) if model.get("ignore_merges") else frozenset())

    def words(self, text: str) -> list[Word]:
        """The text as the pre-tokenizer cuts it."""
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(text)
        return [Word(text[start:end], start, end, tuple(symbols)) for symbols, (start, end) in pieces]

    def word(self, text: str) -> Word:
        """A text that the pre-tokenizer does not cut."""
        return Word(text, 0, len(text), tuple(self._letters[byte] for byte in text.encode()))

    def merges(self, word: Word) -> list[Merge]:
        """The merges that build a word, in order: always the lowest rank there is, and of equals the leftmost.

        Empty for a word of more than `LONGEST_WORD` symbols, and for one that the model takes whole, without merging,
        because it is in the vocabulary (Llama 3's `ignore_merges`)."""
        parts = list(word.symbols)
        done: list[Merge] = []
        if len(parts) > LONGEST_WORD or "".join(parts) in self._taken_whole:
            return done
        while True:
            ranked = [(self._ranks.get(pair, -1), place) for place, pair in enumerate(pairwise(parts))]
            rank, place = min((entry for entry in ranked if entry[0] >= 0), default=(-1, 0))
            if rank < 0:
                return done
            left, right = parts[place : place + 2]
            parts[place : place + 2] = [left + right]
            done.append(Merge(rank, self._shown(left), self._shown(right), [self._shown(part) for part in parts]))

    def beginning(self, word: Word) -> list[str]:
        """The symbols a word begins as, as they are shown."""
        return [self._shown(symbol) for symbol in word.symbols]

    def _shown(self, symbols: str) -> str:
        """Symbols as text; bytes that are no whole characters as \\xNN."""
        return bytes(self._byte_of[symbol] for symbol in symbols).decode("utf-8", "backslashreplace")
