"""Learning the pieces of a unigram model (Kudo 2018, section 3.2) from counted words.

A word is a sequence of pieces, and each piece has a probability of its own. The pieces begin as all frequent substrings
of words; expectation maximization finds their probabilities (with the digamma function of a variational Bayesian M
step, Liang and Johnson 2009, as in SentencePiece), and those without which the text would be least unlikelier are
dropped, a quarter at a time, until so many are left as are wanted. Single characters always stay.

Everything is summed in the order of the sorted words on one core, so the same words give the same pieces to the last
bit; the library's trainer sums in the order of a hash table, which differs from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import lattice

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

MOST_SEEDS = 1_000_000
MOST_CHARACTERS = 16  # of a piece
_ROUNDS = 2  # of expectation and maximization between two prunings
_KEPT = 0.75
_SPARE = 1.1  # pieces more than wanted, of which the least likely go at the end
# Scores are multiples of 1/256: sums over some thousand tokens are exact in single precision, in whatever order, so
# programs that add in it break ties in the same way.
_STEPS = 256
_RARE = 0.5  # expected occurrences below which a piece goes


def learn_pieces(counts: Mapping[str, int], characters: Sequence[str], wanted: int) -> list[tuple[str, float]]:
    """(piece, log probability), the likeliest first: all `characters` and at most `wanted` pieces in all. `counts` says
    how often each word occurs; words hold no other characters."""
    words = _Words.of(counts, characters)
    single = len(characters)
    pieces, frequency = _seeds(words, single)
    scores: F64 = np.log(frequency / frequency.sum())
    most = max(int(_SPARE * wanted), single)
    while True:
        for _ in range(_ROUNDS):
            expected = _expected(words, pieces, scores)
            kept = (expected >= _RARE) | (np.arange(len(scores)) < single)
            pieces, expected = pieces.only(kept), np.maximum(expected[kept], _RARE)
            scores = _digamma(expected) - _digamma(expected.sum(keepdims=True))
        if len(scores) <= most:
            break
        kept = _worth_most(words, pieces, scores, single, max(most, int(_KEPT * len(scores))))
        pieces, scores = pieces.only(kept), scores[kept]
    spelled = pieces.spelled(characters)
    order = sorted(range(single, len(scores)), key=lambda i: (-scores[i], spelled[i]))[: wanted - single]
    scores = np.round(scores * _STEPS) / _STEPS
    chosen = [(spelled[i], float(scores[i])) for i in (*range(single), *order)]
    return sorted(chosen, key=lambda piece: (-piece[1], piece[0]))


class _Words(NamedTuple):
    """Word w is the characters `ids[offsets[w]:offsets[w + 1]]`, which are places in the alphabet; it occurs
    `counts[w]` times."""

    ids: I32
    offsets: I64
    counts: F64

    @classmethod
    def of(cls, counts: Mapping[str, int], characters: Sequence[str]) -> _Words:
        words = sorted(counts)
        place = np.full(0x110000, -1, np.int32)
        place[[ord(character) for character in characters]] = np.arange(len(characters))
        ids = place[np.frombuffer("".join(words).encode("utf-32-le"), "<u4")]
        assert (ids >= 0).all()
        offsets = np.cumsum([0, *map(len, words)], dtype=np.int64)
        return cls(ids, offsets, np.array([counts[word] for word in words], np.float64))


class _Pieces(NamedTuple):
    """Pieces in the same form. The first are the single characters, in the order of the alphabet."""

    ids: I32
    offsets: I64

    @property
    def sizes(self) -> I64:
        """Characters of each."""
        return np.diff(self.offsets)

    def only(self, kept: NDArray[np.bool_]) -> _Pieces:
        return _Pieces(self.ids[np.repeat(kept, self.sizes)], np.append(0, np.cumsum(self.sizes[kept])))

    def spelled(self, characters: Sequence[str]) -> list[str]:
        return [
            "".join(characters[id] for id in self.ids[start:end].tolist())
            for start, end in pairwise(self.offsets.tolist())
        ]

    def trie(self) -> tuple[NDArray[np.uint64], I32, I32]:
        """(keys, children, ends): see `lattice.plant`."""
        room = 1 << (2 * len(self.ids) + 2).bit_length()
        keys, children = np.zeros(room, np.uint64), np.zeros(room, np.int32)
        ends = np.full(len(self.ids) + 1, -1, np.int32)
        nodes = lattice.plant(self.ids, self.offsets, keys, children, ends)
        return keys, children, ends[:nodes]


def _seeds(words: _Words, single: int) -> tuple[_Pieces, F64]:
    """The single characters and the substrings of at least two occurrences that cover most of the text, with how often
    they occur. A substring can only be frequent where the one without its last character is: so they are found by
    length, each as the number of its beginning and a character."""
    sizes = np.diff(words.offsets)
    weights = np.repeat(words.counts, sizes)
    ends = np.repeat(words.offsets[1:], sizes)
    places = np.arange(len(words.ids))
    beginnings = words.ids.astype(np.int64)
    frequency = [np.maximum(np.bincount(words.ids, weights, single), _RARE)]
    starts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for length in range(2, MOST_CHARACTERS + 1):
        inside = places + length <= ends[places]
        places, beginnings = places[inside], beginnings[inside]
        keys = beginnings * single + words.ids[places + length - 1]
        _, firsts, beginnings = np.unique(keys, return_index=True, return_inverse=True)
        totals = np.bincount(beginnings, weights[places], len(firsts))
        frequent = totals >= 2
        starts.append(places[firsts[frequent]])
        lengths.append(np.full(len(starts[-1]), length))
        frequency.append(totals[frequent])
        going_on = frequent[beginnings]
        places, beginnings = places[going_on], beginnings[going_on]
    totals, start, length_of = np.concatenate(frequency[1:]), np.concatenate(starts), np.concatenate(lengths)
    best = np.sort(np.argsort(-totals * length_of, kind="stable")[:MOST_SEEDS])
    sizes = length_of[best]
    inner = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ids = np.concatenate([np.arange(single, dtype=np.int32), words.ids[np.repeat(start[best], sizes) + inner]])
    offsets = np.cumsum(np.concatenate([[0], np.ones(single, np.int64), sizes]))
    return _Pieces(ids, offsets), np.concatenate([frequency[0], totals[best]])


def _expected(words: _Words, pieces: _Pieces, scores: F64) -> F64:
    """How often each piece is expected in the text, over all ways to cut it."""
    expected = np.zeros(len(scores))
    lattice.expect(*words, *pieces.trie(), scores, pieces.sizes, *_scratch(words, np.float64), expected)
    return expected


def _worth_most(words: _Words, pieces: _Pieces, scores: F64, single: int, kept: int) -> NDArray[np.bool_]:
    """Which pieces to keep: the single characters and those without which the text would be least likely, `kept` in
    all. What a piece is worth is estimated as in SentencePiece, by its best other way to be cut."""
    trie = pieces.trie()
    used = np.zeros(len(scores))
    lattice.cut_best(*words, *trie, scores, pieces.sizes, *_scratch(words, np.int32), used)
    losses = np.full(len(scores), -np.inf)
    lattice.losses_of(*pieces, *trie, scores, pieces.sizes, *_scratch(pieces, np.int32), used, single, losses)
    losses[:single] = np.inf
    order = np.argsort(-losses, kind="stable")[:kept]
    chosen = np.zeros(len(scores), np.bool_)
    chosen[order] = True
    return chosen & (losses > -np.inf)


def _scratch(words: _Words | _Pieces, second: DTypeLike) -> tuple[F64, NDArray[Any], I32, I32]:
    """Arrays for the places and for the pieces of the longest word."""
    longest = int(np.diff(words.offsets).max(initial=0))
    edges = longest * MOST_CHARACTERS
    return (
        np.empty(longest + 1),
        np.empty(longest + 1, second),
        np.empty(edges, np.int32),
        np.empty(edges, np.int32),
    )


def _digamma(x: F64) -> F64:
    """The derivative of log gamma, by its recurrence up to 8 and its asymptotic series from there on (Abramowitz and
    Stegun 1964, 6.3.5 and 6.3.18)."""
    result = np.zeros_like(x)
    for _ in range(8):
        small = x < 8
        result = result - np.where(small, 1 / x, 0)
        x = np.where(small, x + 1, x)
    square = 1 / (x * x)
    return result + np.log(x) - 1 / (2 * x) - square * (1 / 12 - square * (1 / 120 - square / 252))
