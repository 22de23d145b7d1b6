"""Counting the distinct pre-tokens of texts.

They stand in a hash table that grows, four words to a slot, so that what is short is found in one line of the
processor's cache:

    0, 1  the bytes, padded with zeros; of more than 16 bytes, two hashes, and the bytes stand in `bytes`
    2     length in bytes (32 bits), where the bytes stand (32); 0 in free slots
    3     how often it occurred
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.data.kernel.layout import I64, U8, U64, texts_of
from gristmill.errors import GristmillError

from ..pretokenize import Pattern
from .jit import compiled
from .pretokens import BLOCK, blocks, words_of

_SLOTS = 4 * BLOCK
_BYTES = 1 << 16
_MOST_BYTES = 1 << 31  # of all words, so that 32 bits tell a place, and Arrow's offsets too

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_P, _Q = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class WordCounter:
    """How often each pre-token occurs in the texts that were added."""

    def __init__(self, pattern: Pattern):
        self._pattern = pattern
        self._clear()

    @property
    def held_bytes(self) -> int:
        """Memory of the words and their counts. While it grows, `add` needs half as much besides; so does `take`."""
        return self._slots.nbytes + self._bytes.nbytes

    def add(self, texts: pa.Array) -> None:
        """Count the pre-tokens of a column of strings; a null is an empty text. GristmillError where the distinct
        ones together pass 2 GiB: `take` them before."""
        laid_out = texts_of(texts)
        data, words = words_of(laid_out.data)
        for start, ends in blocks(laid_out, self._pattern):
            self._make_room(len(ends), int(ends[-1]) - start if len(ends) else 0)
            count(data, words, start, ends, self._slots, self._bytes, self._used)

    def take(self) -> tuple[pa.BinaryArray, NDArray[np.int64]]:
        """(distinct pre-tokens, sorted as bytes, their counts); the counter is empty then."""
        slots, stored = self._slots[self._slots[:, 2] != 0], self._bytes
        self._clear()
        offsets = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(slots[:, 2] & _LOW, out=offsets[1:])
        data = np.empty(offsets[-1], np.uint8)
        write(slots, stored, offsets, data)
        counts = slots[:, 3].astype(np.int64)
        del slots, stored
        found = pa.BinaryArray.from_buffers(pa.binary(), len(counts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        order = pc.array_sort_indices(found)
        return found.take(order), counts[order.to_numpy()]

    def _clear(self) -> None:
        self._slots = np.zeros((_SLOTS, 4), np.uint64)
        self._bytes = np.empty(_BYTES, np.uint8)
        self._used = np.zeros(3, np.int64)  # slots, bytes in `bytes`, bytes of all words

    def _make_room(self, words: int, size: int) -> None:
        """See to it that the tables have room for so many more words of so many bytes in all."""
        slots, stored, total = self._used.tolist()
        if total + size >= _MOST_BYTES:
            raise GristmillError("the distinct words together pass 2 GiB; set memory_bytes of the tokenizer lower")
        while 2 * (slots + words) > len(self._slots):
            larger = np.zeros((2 * len(self._slots), 4), np.uint64)
            move(self._slots, larger)
            self._slots = larger
        if stored + size > len(self._bytes):
            larger_bytes = np.empty(max(2 * len(self._bytes), stored + size), np.uint8)
            larger_bytes[:stored] = self._bytes[:stored]
            self._bytes = larger_bytes


# The next two stand in bpe.py too: numba's cache looks at the file of a function alone, so files share none.
@compiled
def _word(words: U64, i: int, end: int) -> Any:
    """Up to eight bytes from `i` on, as a little-endian number; those from `end` on are zeros."""
    k = min(i, len(words) - 1)  # the last word holds the last eight bytes
    word = words[k] >> np.uint64(8 * (i - k))
    return word if end - i >= 8 else word & ((np.uint64(1) << np.uint64(8 * (end - i))) - np.uint64(1))


@compiled
def _key(words: U64, start: int, end: int) -> tuple[Any, Any]:
    """The first two words of the slot of a pre-token."""
    first = _word(words, start, end)
    if end - start <= 8:
        return first, np.uint64(0)
    second = _word(words, start + 8, end)
    if end - start <= 16:
        return first, second
    for i in range(start + 16, end, 8):
        word = _word(words, i, end)
        first = (first ^ word) * _P
        first ^= first >> _HALF
        second = (second + word) * _Q
        second ^= second >> _HALF
    return first, second


@compiled
def _home(first: Any, second: Any, length: Any, mask: Any) -> Any:
    """The slot at which the search for a word begins."""
    h = (first ^ (second * _Q) ^ length) * _P
    return (h ^ (h >> _HALF)) & mask


@compiled
def count(data: U8, words: U64, start: int, ends: I64, slots: U64, stored: U8, used: I64) -> None:
    """Count the pre-tokens from `start` to each of the `ends` into tables that have room for them."""
    mask = np.uint64(len(slots) - 1)
    for p in range(len(ends)):
        end = ends[p]
        length = np.uint64(end - start)
        first, second = _key(words, start, end)
        slot = _home(first, second, length, mask)
        while slots[slot, 2] != 0:
            if slots[slot, 0] == first and slots[slot, 1] == second and slots[slot, 2] & _LOW == length:
                if length <= 16:
                    break
                place, k = np.int64(slots[slot, 2] >> _HALF), 0
                while k < end - start and stored[place + k] == data[start + k]:
                    k += 1
                if k == end - start:
                    break
            slot = (slot + np.uint64(1)) & mask
        if slots[slot, 2] == 0:
            slots[slot, 0], slots[slot, 1] = first, second
            slots[slot, 2] = length | (np.uint64(used[1]) << _HALF)
            used[0] += 1
            used[2] += end - start
            if length > 16:
                for k in range(end - start):
                    stored[used[1] + k] = data[start + k]
                used[1] += end - start
        slots[slot, 3] += np.uint64(1)
        start = end


@compiled
def move(slots: U64, larger: U64) -> None:
    """Fill an empty table with what another holds."""
    mask = np.uint64(len(larger) - 1)
    for s in range(len(slots)):
        if slots[s, 2] != 0:
            slot = _home(slots[s, 0], slots[s, 1], slots[s, 2] & _LOW, mask)
            while larger[slot, 2] != 0:
                slot = (slot + np.uint64(1)) & mask
            for k in range(4):
                larger[slot, k] = slots[s, k]


@compiled
def write(slots: U64, stored: U8, offsets: NDArray[np.int32], data: U8) -> None:
    """Write the bytes of the words, each from its offset on."""
    for s in range(len(slots)):
        at, length = offsets[s], offsets[s + 1] - offsets[s]
        place = np.int64(slots[s, 2] >> _HALF)
        for k in range(length):
            if length > 16:
                data[at + k] = stored[place + k]
            else:
                data[at + k] = (slots[s, k >> 3] >> np.uint64(8 * (k & 7))) & np.uint64(255)
