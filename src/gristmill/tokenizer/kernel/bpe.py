"""Byte-pair encoding of pre-tokens (Sennrich et al. 2016): the pair of lowest rank is merged first, the leftmost where
several have it, until no merge is left.

Pre-tokens that were met before are looked up. A table of them has four words to a slot, so that what is short is found
in one line of the processor's cache:

    0, 1  the bytes, padded with zeros; of more than 16 bytes, two hashes, and the bytes stand in `bytes`
    2     length in bytes (16 bits), number of ids (16), where the bytes stand (32); 0 in free slots
    3     up to two ids (32 bits each); where the ids stand, if there are more
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gristmill.data.kernel.layout import I64, U8, U32, U64, texts_of

from .jit import compiled
from .pretokens import words_of

LONGEST_KNOWN = 1 << 12  # bytes of the longest pre-token that is remembered
_SHORT = 96  # bytes up to which the lowest rank is found by looking at all
_INLINE = 2

_NO_MERGE = np.uint64(0xFFFFFFFFFFFFFFFF)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_LENGTH = np.uint64(0xFFFF)
_P, _Q = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Known(NamedTuple):
    """A table of pre-tokens and their ids, as above. `used`: slots, bytes and ids in use."""

    slots: U64  # [slots, 4]
    bytes: U8
    ids: U32
    used: I64  # [3]

    @classmethod
    def of_size(cls, slots: int, arena: int) -> Known:
        """An empty table of a power of two of slots, to be filled up to half; with room for so many bytes and ids."""
        found = np.empty(arena, np.uint8), np.empty(arena, np.uint32)
        return cls(np.zeros((slots, 4), np.uint64), *found, np.zeros(3, np.int64))

    def clear_if_full(self) -> None:
        """Forget all as soon as something may no longer have room."""
        slots, stored, ids = self.used
        if slots >= len(self.slots) // 2 or max(stored, ids) + LONGEST_KNOWN > len(self.bytes):
            self.slots[:] = 0
            self.used[:] = 0


class Merges(NamedTuple):
    """`pairs` `[slots, 2]`: a hash table from two ids (left << 32 | right) to rank << 32 | id of the merge."""

    pairs: U64
    byte_ids: U32  # [256]


def merges_of(left: U32, right: U32, merged: U32, byte_ids: U32) -> Merges:
    """The table of merges, given in the order of their ranks; of a pair that comes twice the later counts."""
    slots = 1 << max(4, (2 * len(left)).bit_length())
    pairs = np.full((slots, 2), _FREE, np.uint64)
    _fill(pairs, left, right, merged)
    return Merges(pairs, byte_ids)


def known_tokens(tokens: list[bytes], ids: list[int]) -> Known:
    """The table of tokens that are taken whole, of up to `LONGEST_KNOWN` bytes each."""
    known = Known.of_size(1 << max(8, (2 * len(tokens)).bit_length()), sum(map(len, tokens)))
    laid_out = texts_of(pa.array(tokens, pa.large_binary()).view(pa.large_string()))
    data, words = words_of(laid_out.data)
    remember_tokens(known, data, words, laid_out.offsets, np.array(ids, np.uint32))
    return known


@compiled
def _slot_of(pairs: U64, key: Any) -> Any:
    """The slot where a pair stands, or the free one where it would."""
    mask = np.uint64(len(pairs) - 1)
    slot = ((key * _P) >> _HALF) & mask
    while pairs[slot, 0] != key and pairs[slot, 0] != _FREE:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled
def _fill(pairs: U64, left: U32, right: U32, merged: U32) -> None:
    for rank in range(len(left)):
        key = (np.uint64(left[rank]) << _HALF) | np.uint64(right[rank])
        slot = _slot_of(pairs, key)
        pairs[slot, 0] = key
        pairs[slot, 1] = (np.uint64(rank) << _HALF) | np.uint64(merged[rank])


@compiled
def _merge_of(pairs: U64, left: Any, right: Any) -> Any:
    """rank << 32 | id of the merge of two ids, or _NO_MERGE."""
    return pairs[_slot_of(pairs, (np.uint64(left) << _HALF) | np.uint64(right)), 1]  # free slots hold _NO_MERGE


@compiled
def _merge_short(pairs: U64, ids: U32, n: int, ranks: U64) -> int:
    """Merge the first `n` ids in place; how many are left."""
    for k in range(n - 1):
        ranks[k] = _merge_of(pairs, ids[k], ids[k + 1])
    while n > 1:
        best, lowest = 0, ranks[0]
        for k in range(1, n - 1):
            if ranks[k] < lowest:
                best, lowest = k, ranks[k]
        if lowest == _NO_MERGE:
            break
        ids[best] = lowest & _LOW
        n -= 1
        for k in range(best + 1, n):
            ids[k] = ids[k + 1]
            ranks[k] = ranks[k + 1]
        if best > 0:
            ranks[best - 1] = _merge_of(pairs, ids[best - 1], ids[best])
        if best < n - 1:
            ranks[best] = _merge_of(pairs, ids[best], ids[best + 1])
    return n


@compiled
def _push(heap: U64, size: int, value: Any) -> None:
    k = size
    while k > 0:
        parent = (k - 1) >> 1
        if heap[parent] <= value:
            break
        heap[k] = heap[parent]
        k = parent
    heap[k] = value


@compiled
def _pop(heap: U64, size: int) -> Any:
    """The smallest value of a heap, which has one less then."""
    smallest, value = heap[0], heap[size - 1]
    size -= 1
    k = 0
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = value
    return smallest


@compiled
def _merge_long(pairs: U64, ids: U32, n: int, scratch: U64) -> int:
    """`_merge_short` of many ids, in n log n steps: a heap of rank << 32 | place, and a list linked both ways. An
    entry of the heap is void when the pair at its place has another rank by now."""
    ranks, links = scratch[:n], scratch[n : 2 * n]
    heap = scratch[2 * n : 4 * n]  # a merge takes one entry out and brings at most two
    size = 0
    for k in range(n):
        links[k] = (np.uint64(k + 1) << _HALF) | np.uint64(k)  # the next place, and one more than the one before
        ranks[k] = _merge_of(pairs, ids[k], ids[k + 1]) if k + 1 < n else _NO_MERGE
        if ranks[k] != _NO_MERGE:
            _push(heap, size, (ranks[k] & ~_LOW) | np.uint64(k))
            size += 1
    while size > 0:
        entry = _pop(heap, size)
        size -= 1
        place = np.int64(entry & _LOW)
        if ranks[place] == _NO_MERGE or ranks[place] >> _HALF != entry >> _HALF:
            continue
        ids[place] = ranks[place] & _LOW
        gone = np.int64(links[place] >> _HALF)
        after = np.int64(links[gone] >> _HALF)
        links[place] = (np.uint64(after) << _HALF) | (links[place] & _LOW)
        ranks[gone] = ranks[place] = _NO_MERGE
        if after < n:
            links[after] = (links[after] & ~_LOW) | np.uint64(place + 1)
            ranks[place] = _merge_of(pairs, ids[place], ids[after])
            if ranks[place] != _NO_MERGE:
                _push(heap, size, (ranks[place] & ~_LOW) | np.uint64(place))
                size += 1
        before = np.int64(links[place] & _LOW) - 1
        if before >= 0:
            ranks[before] = _merge_of(pairs, ids[before], ids[place])
            if ranks[before] != _NO_MERGE:
                _push(heap, size, (ranks[before] & ~_LOW) | np.uint64(before))
                size += 1
    left, place = 0, np.int64(0)
    while place < n:
        ids[left] = ids[place]
        left += 1
        place = np.int64(links[place] >> _HALF)
    return left


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
def _find(known: Known, data: U8, start: int, end: int, first: Any, second: Any) -> Any:
    """The slot of a pre-token, or the free one where it would stand."""
    slots = known.slots
    length = np.uint64(end - start)
    mask = np.uint64(len(slots) - 1)
    h = (first ^ (second * _Q) ^ length) * _P
    slot = (h ^ (h >> _HALF)) & mask
    while True:
        about = slots[slot, 2]
        if about == 0:
            return slot
        if slots[slot, 0] == first and slots[slot, 1] == second and about & _LENGTH == length:
            if length <= 16:
                return slot
            place = np.int64(about >> _HALF)
            k = 0
            while k < end - start and known.bytes[place + k] == data[start + k]:
                k += 1
            if k == end - start:
                return slot
        slot = (slot + np.uint64(1)) & mask


@compiled
def _remember(
    known: Known, slot: Any, data: U8, start: int, end: int, first: Any, second: Any, ids: U32, n: int
) -> None:
    """Fill a free slot, if the table has room."""
    slots, used = known.slots, known.used
    length = end - start
    stored = length if length > 16 else 0
    if used[0] >= len(slots) >> 1 or used[1] + stored > len(known.bytes) or used[2] + n > len(known.ids):
        return
    about = np.uint64(length) | (np.uint64(n) << np.uint64(16)) | (np.uint64(used[1]) << _HALF)
    for k in range(stored):
        known.bytes[used[1] + k] = data[start + k]
    if n <= _INLINE:
        found = np.uint64(ids[0]) | (np.uint64(ids[n - 1]) << _HALF)
    else:
        found = np.uint64(used[2])
        for k in range(n):
            known.ids[used[2] + k] = ids[k]
        used[2] += n
    slots[slot, 0], slots[slot, 1], slots[slot, 2], slots[slot, 3] = first, second, about, found
    used[0] += 1
    used[1] += stored


@compiled
def _recall(known: Known, slot: Any, ids: U32, used: int) -> Any:
    """Write the ids of a slot behind the `used` ones; how many are used then."""
    found = known.slots[slot, 3]
    n = np.int64((known.slots[slot, 2] >> np.uint64(16)) & _LENGTH)
    if n <= _INLINE:
        ids[used] = found & _LOW
        if n == _INLINE:
            ids[used + 1] = found >> _HALF
    else:
        for k in range(n):
            ids[used + k] = known.ids[np.int64(found) + k]
    return used + n


@compiled
def remember_tokens(known: Known, data: U8, words: U64, offsets: I64, ids: U32) -> None:
    """Fill a table, that has room for them, with tokens that have one id each."""
    for t in range(len(ids)):
        start, end = offsets[t], offsets[t + 1]
        if start < end:
            first, second = _key(words, start, end)
            slot = _find(known, data, start, end, first, second)
            _remember(known, slot, data, start, end, first, second, ids[t : t + 1], 1)


@compiled
def encode(
    data: U8,
    words: U64,
    offsets: I64,
    text: int,
    start: int,
    ends: I64,
    merges: Merges,
    whole: Known,
    known: Known,
    scratch: U64,
    ids: U32,
    used: int,
    places: I64,
) -> tuple[int, int]:
    """Write the ids of the pre-tokens from `start` to each of the `ends`, behind the `used` ones; (text number, ids
    used then). `places[t]` is where the ids of text t begin; `text` is the last whose place is known. `whole` holds
    what is never merged, `known` what was met before and is remembered. `scratch` has four words for each byte of the
    longest pre-token."""
    for p in range(len(ends)):
        end = ends[p]
        while offsets[text + 1] <= start:
            text += 1
            places[text] = used
        length = end - start
        if length <= LONGEST_KNOWN:
            first, second = _key(words, start, end)
            slot = _find(known, data, start, end, first, second)
            if known.slots[slot, 2] != 0:
                used = _recall(known, slot, ids, used)
                start = end
                continue
            taken = _find(whole, data, start, end, first, second)
            if whole.slots[taken, 2] != 0:
                used = _recall(whole, taken, ids, used)
                start = end
                continue
        found = ids[used : used + length]
        for k in range(length):
            found[k] = merges.byte_ids[data[start + k]]
        if length <= _SHORT:
            n = _merge_short(merges.pairs, found, length, scratch)
        else:
            n = _merge_long(merges.pairs, found, length, scratch)
        if length <= LONGEST_KNOWN:
            _remember(known, slot, data, start, end, first, second, found, n)
        used += n
        start = end
    return text, used
