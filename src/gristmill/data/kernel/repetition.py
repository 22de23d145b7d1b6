"""How much of a text repeats itself: Gopher's repetition measures (arXiv 2112.11446, section A1.1), for a whole batch.

"Occurred before" leaves the first occurrence out. Repeated n-grams are counted as datatrove counts them, since the
thresholds in use were tried out with it: a scan from the left adds up each n-gram it has met before and goes on behind
it, so no word counts twice.

An n-gram can only repeat where both (n-1)-grams inside it repeat, so each n looks only at what n - 1 left over: after
bigrams little does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import compiled
from .layout import I32, I64, U64

FIRST_TOP, LAST_TOP, FIRST_DUPLICATE, LAST_DUPLICATE = 2, 4, 5, 10

_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_EMPTY = np.int32(-1)


@compiled
def _slot(table: I32, keys: U64, key: Any) -> Any:
    """Where `key` is in the hash table, or where it would go. The table (a power of two long) holds places in
    `keys`."""
    mask = np.uint64(len(table) - 1)
    slot = (key ^ (key >> np.uint64(32))) & mask
    while table[slot] != _EMPTY and keys[table[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled
def _table_size(entries: int) -> int:
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@compiled
def _largest(places: I64) -> int:
    largest = 0
    for d in range(len(places) - 1):
        largest = max(largest, places[d + 1] - places[d])
    return largest


@compiled
def repeated_units(hashes: U64, lengths: I32, places: I64, result: I64) -> None:
    """int64 `result[documents, 2]`: how many lines (or paragraphs) of each document stood in it before, and how many
    characters they have. Those of document d are `hashes` and `lengths` from `places[d]` to `places[d + 1]`."""
    whole_table = np.empty(_table_size(_largest(places)), np.int32)
    for d in range(len(places) - 1):
        keys = hashes[places[d] : places[d + 1]]
        table = whole_table[: _table_size(len(keys))]
        table[:] = _EMPTY
        count = characters = 0
        for i in range(len(keys)):
            slot = _slot(table, keys, keys[i])
            if table[slot] == _EMPTY:
                table[slot] = i
            else:
                count += 1
                characters += lengths[places[d] + i]
        result[d, 0], result[d, 1] = count, characters


@compiled
def _count(table: I32, keys: U64, candidates: I32, first: I32, count: I32) -> None:
    """Find equal n-grams: `first[i]` is the first place of the one at place i, `count` there is how often it occurs."""
    table[:] = _EMPTY
    for i in candidates:
        slot = _slot(table, keys, keys[i])
        if table[slot] == _EMPTY:
            table[slot] = i
            count[i] = 0
        first[i] = table[slot]
        count[table[slot]] += 1


@compiled
def _met_before(n: int, repeated: I32, first: I32, met: NDArray[np.int8], before: I64) -> int:
    """The characters of the n-grams that the scan has met before; `repeated` are the places of those occurring
    twice."""
    characters, free = 0, 0
    for i in repeated:
        if i < free:
            continue
        if met[first[i]] == n:
            characters += before[i + n] - before[i]
            free = i + n
        else:
            met[first[i]] = n
    return characters


@compiled
def repeated_ngrams(hashes: U64, lengths: I32, places: I64, tops: I64, duplicates: I64) -> None:
    """int64 `tops[documents, 3]`: characters of all occurrences of the most frequent 2-, 3- and 4-gram with the blanks
    between its words (of equally frequent ones the first, even if it occurs once); `duplicates[documents, 6]`:
    characters, without blanks, of the 5- to 10-grams met before. Both all 0 before. Words are given as in
    `repeated_units`."""
    largest = _largest(places)
    table, all_keys = np.empty(_table_size(largest), np.int32), np.empty(largest, np.uint64)
    first, count, all_places = np.empty(largest, np.int32), np.empty(largest, np.int32), np.empty(largest, np.int32)
    before = np.zeros(largest + 1, np.int64)  # characters of the words before each
    for d in range(len(places) - 1):
        words = hashes[places[d] : places[d + 1]]
        size, keys = len(words), all_keys[: len(words)]
        twice = np.full(size + 1, 1, np.int8)  # the largest n for which the n-gram at each place occurs twice
        met = np.zeros(size, np.int8)
        for i in range(size):
            before[i + 1] = before[i] + lengths[places[d] + i]
            keys[i], all_places[i] = words[i], i
        repeated = all_places[:size]
        for n in range(FIRST_TOP, LAST_DUPLICATE + 1):
            if n > size:
                break
            found = 0
            for i in repeated:
                if i + n <= size and twice[i] == n - 1 and twice[i + 1] == n - 1:
                    keys[i] = keys[i] * _MULTIPLIER + words[i + n - 1]
                    all_places[found] = i
                    found += 1
            candidates = all_places[:found]
            _count(table[: _table_size(found)], keys, candidates, first, count)
            best, most, found = 0, 1, 0
            for i in candidates:
                if count[first[i]] > 1:
                    if count[first[i]] > most:
                        best, most = i, count[first[i]]
                    twice[i] = n
                    all_places[found] = i
                    found += 1
            repeated = all_places[:found]
            if n <= LAST_TOP:
                tops[d, n - FIRST_TOP] = most * (before[best + n] - before[best] + n - 1)
            if n >= FIRST_DUPLICATE:
                duplicates[d, n - FIRST_DUPLICATE] = _met_before(n, repeated, first, met, before)
