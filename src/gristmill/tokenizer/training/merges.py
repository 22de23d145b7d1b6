"""Learning the merges of byte-pair encoding (Sennrich et al. 2016) from counted words.

The most frequent pair of neighbouring tokens becomes a token, over and over. Among pairs that are equally frequent the
one with the smaller ids wins, left id first; a run of equal tokens `aaa` holds two pairs `a a` and is merged from the
left. These are the rules of BpeTrainer in Hugging Face's `tokenizers`, so the merges are the same; counts have 64 bits.

All words stand in one array of token ids with a border between them. A token writes its id at its first byte and at
its last, and its length is known by its id: so each neighbour of a place is found without links. Words are sorted by
their counts, so that few stretches of the array have a count of their own.

For each pair there is a list of the places where it has stood; a place that holds something else by now is passed
over. A merge visits the places of its pair and touches no other, however long the words are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..encoder import byte_letters
from . import merging
from .merging import MERGES, PAIRS, STATE

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Progress = Callable[[int, int], None]

# Most bytes that learning holds: a byte of a word has its id, and is in at most three lists; the rest are pairs.
BYTES_PER_SYMBOL = 24
BYTES_PER_WORD = 64
MOST_SYMBOLS = 2**31 - 16  # places have 32 bits

_MERGES_AT_A_TIME = 500
_FIRST_PAIRS = 1 << 17
_UNLIMITED = 2**31 - 1


def byte_order() -> NDArray[np.uint8]:
    """The bytes in the order of their ids, which is that of the letters that stand for them."""
    return np.array(sorted(range(256), key=byte_letters().__getitem__), np.uint8)


def learn_merges(
    words: pa.Array,
    counts: I64,
    merges: int,
    min_frequency: int = 1,
    max_token_bytes: int | None = None,
    progress: Progress | None = None,
) -> I32:
    """The merges in order, as ids of their two tokens, int32 `[n, 2]`.

    `words` are distinct (type binary or large_binary), `counts` say how often each occurs, once or more. Ids 0 to 255
    are the bytes as in `byte_order`, and merge i makes token 256 + i. There are fewer than `merges` where no pair is
    left that occurs `min_frequency` times and whose token has at most `max_token_bytes` bytes (2 or more).
    """
    learner = _Learner(words, np.asarray(counts, np.int64), merges, max(min_frequency, 1), max_token_bytes)
    done, more = 0, True
    while more and done < merges:
        more = learner.merge(min(done + _MERGES_AT_A_TIME, merges))
        done = learner.done
        if progress is not None:
            progress(done, merges)
    return learner.merges[:done]


class _Pairs(NamedTuple):
    """The pairs of tokens that are known. `slots` are their numbers by a hash of their ids, `heap` their numbers as a
    heap, with the counts they had when they were put there."""

    keys: NDArray[np.uint64]  # left id << 32 | right id
    counts: I64  # how often each occurs
    begins: I64  # where its list of places begins in the pool
    sizes: I32  # and how many there are
    slots: I32
    heap: I32
    heap_counts: I64

    @classmethod
    def of(cls, room: int) -> _Pairs:
        return cls(
            np.empty(room, np.uint64),
            np.empty(room, np.int64),
            np.empty(room, np.int64),
            np.empty(room, np.int32),
            np.full(1 << (2 * room - 1).bit_length(), -1, np.int32),
            np.empty(room, np.int32),
            np.empty(room, np.int64),
        )


class _Learner:
    """The arrays that merging works on. `merges` `[merges, 2]` is filled up to `done`."""

    def __init__(self, words: pa.Array, counts: I64, merges: int, least: int, most_bytes: int | None):
        assert len(words) == len(counts)
        assert (counts > 0).all()
        ids, starts, self._weights = _layout(words, counts)
        self._ids = ids
        self._starts = starts
        blocks = np.arange(0, len(ids) + 1, 1 << merging.BLOCK_BITS)  # the first stretch of each is looked up
        self._blocks = np.searchsorted(starts[1:], blocks, "right").astype(np.int32)
        self._least, self._most = least, most_bytes or _UNLIMITED
        self.merges = np.empty((merges, 2), np.int32)
        self._lengths = np.ones(256 + merges, np.int32)
        self._losses = np.zeros((2, 256 + merges), np.int64)
        self._gains = np.zeros((2, 256 + merges), np.int64)
        self._places = np.zeros((2, 256 + merges), np.int64)
        self._touched = np.empty((4, 256 + merges), np.int32)
        self._state = np.zeros(STATE, np.int64)
        self._pool = np.empty(3 * len(ids), np.int32)  # what is not written to costs no memory
        self._pairs = _Pairs.of(_FIRST_PAIRS)
        totals, numbers = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
        merging.count_first(ids, starts, self._weights, totals, numbers)
        merging.list_first(ids, totals, numbers, least, self._pool, *self._pairs, self._state)

    @property
    def done(self) -> int:
        return int(self._state[MERGES])

    def merge(self, until: int) -> bool:
        """Go on until there are so many merges; False when no pair is left."""
        while True:
            needed = 2 * (256 + self.done + 2)  # pairs that a single merge may bring
            if self._state[PAIRS] + needed > len(self._pairs.keys):
                self._make_room(needed)
            going_on = merging.merge(
                until, self._least, self._most, self._ids, self._lengths, self._blocks, self._starts, self._weights,
                self._pool, *self._pairs, self._losses, self._gains, self._places, self._touched, self.merges,
                self._state,
            )  # fmt: skip
            if not going_on or self.done == until:
                return bool(going_on)

    def _make_room(self, more: int) -> None:
        """Make larger tables, without the pairs that can never be merged again."""
        old = self._pairs
        kept = int(merging.alive(old.counts, self._state[PAIRS], self._least))
        self._pairs = _Pairs.of(kept + max(kept, 2 * more, _FIRST_PAIRS))
        merging.move(old.keys, old.counts, old.begins, old.sizes, *self._pairs, self._least, self._state)


def _layout(words: pa.Array, counts: I64) -> tuple[I32, I64, I64]:
    """(ids, starts, weights): the words as ids of bytes, the frequent ones first, with a border before, between and
    after them. From `starts[c]` to `starts[c + 1]` the words occur `weights[c]` times each."""
    offsets, data = _buffers(words)
    sizes = np.diff(offsets)
    assert sizes.sum() + len(sizes) < MOST_SYMBOLS
    order = np.argsort(-counts, kind="stable")
    ids = np.empty(int(sizes.sum()) + len(sizes) + 2, np.int32)
    number_of = np.empty(256, np.int32)
    number_of[byte_order()] = np.arange(256)
    merging.write_ids(data, offsets, order, number_of, ids)
    sorted_counts = counts[order]
    new = np.flatnonzero(np.append(True, sorted_counts[1:] != sorted_counts[:-1])[: len(counts)])
    firsts = 1 + np.cumsum(sizes[order] + 1) - (sizes[order] + 1)  # where each word begins
    return ids, np.append(firsts[new], len(ids) + 1), sorted_counts[new]


def _buffers(words: pa.Array) -> tuple[I64, NDArray[np.uint8]]:
    """(offsets, bytes) of a column of bytes."""
    if not pa.types.is_large_binary(words.type):
        words = words.cast(pa.large_binary())
    _, offsets, data = words.buffers()
    if not len(words):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    found = np.frombuffer(offsets, np.int64)[words.offset : words.offset + len(words) + 1]
    return found, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
