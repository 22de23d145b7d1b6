"""Counting n-grams: of each order its distinct n-grams and the counts that Kneser-Ney smoothing asks for.

An n-gram is a number given in the order of first occurrence. Its key is `number of its first n-1 words << 32 | last
word`, so a key of 64 bits is exact whatever the order. Orders are counted one after the other over a chunk of text:
when order n is counted, the numbers of all (n-1)-grams of the chunk are known, so that the look-ups do not wait for
each other.

The counts are those of Chen and Goodman (1998, section 3.1) as Heafield et al. (2013) and their lmplz take them: at
the highest order how often the n-gram occurs; below it, how many different words stand before it, but for n-grams that
begin with `<s>`, before which nothing can stand: these count as often as they occur.

Memory: an n-gram takes 16 bytes, and its slot in a hash table 6 to 16 more. With the model made of it, training took 22
bytes of memory for a byte of text at order 5, and 9 at order 3 (41 MB of manual pages in 20 languages).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled
from gristmill.data.kernel.layout import Texts
from gristmill.errors import GristmillError

from .words import SPECIAL, Tokenization, hash_words, sentences, spelling

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

BEGIN, END = 1, 2  # numbers in words.SPECIAL
CHUNK = 1 << 20  # bytes of text counted at a time

_NONE = np.uint32(0xFFFFFFFF)
_LIMIT = 0xFFFFFFF0
_HALF = np.uint64(32)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class _Table:
    """Distinct 64-bit keys in order of first occurrence; `slots` is the hash table of their numbers."""

    slots: U32
    keys: U64
    counts: U32
    suffixes: U32  # the number of the n-gram without its first word
    size: int = 0

    @classmethod
    def of(cls, keys: U64) -> _Table:
        size = len(keys)
        table = cls(np.full(1024, _NONE), keys, np.zeros(size, np.uint32), np.zeros(size, np.uint32), size)
        _refill(table.slots, table.keys, size)
        return table

    def reserve(self, more: int) -> None:
        """Make room for so many new keys."""
        wanted = self.size + more
        if wanted > _LIMIT:
            raise GristmillError("more than 4 billion n-grams of one order: train on less text, or a smaller order")
        if wanted > len(self.keys):
            room = max(wanted, len(self.keys) * 3 // 2)
            for name in ("keys", "counts", "suffixes"):
                old = getattr(self, name)
                grown = np.zeros(room, old.dtype)
                grown[: self.size] = old[: self.size]
                setattr(self, name, grown)
        if 10 * wanted > 7 * len(self.slots):
            self.slots = np.full(1 << (2 * wanted - 1).bit_length(), _NONE)
            _refill(self.slots, self.keys, self.size)


class NgramCounts:
    """The counts of all orders up to `order`. `words` are the vocabulary, from `<unk>`, `<s>`, `</s>` on."""

    def __init__(self, order: int, tokenization: Tokenization):
        self.order, self.tokenization = order, tokenization
        self.words: list[bytes] = list(SPECIAL)
        self.tokens = 0  # words and sentence ends
        self._special = hash_words(self.words)
        self._vocabulary = _Table.of(self._special)
        self._tables = [_Table.of(np.empty(0, np.uint64)) for _ in range(order - 1)]

    def add(self, texts: Texts) -> None:
        """Count the n-grams of some texts."""
        for _, part in texts.parts(CHUNK):
            found = sentences(part, self.tokenization)
            if not len(found.hashes):
                continue
            self.tokens += len(found.hashes)
            if self.tokenization == "spaces" and np.isin(found.hashes, self._special).any():
                raise GristmillError("the text holds <unk>, <s> or </s> as a word, which a model keeps for itself")
            table = self._vocabulary
            table.reserve(len(found.hashes))
            ids = np.empty(2 * len(found.hashes), np.uint32)  # a <s> before each sentence
            places = np.empty(len(ids), np.uint32)  # in the sentence
            new = np.empty(len(found.hashes), np.int64)
            size, length, fresh = _number(table.slots, table.keys, table.size, found.hashes, ids, places, new)
            table.size = size
            data = part.data
            self.words.extend(
                spelling(data[found.starts[i] : found.ends[i]].tobytes(), self.tokenization) for i in new[:fresh]
            )
            self._count(ids[:length], places[:length])

    def finish(self) -> None:
        """Give the hash tables' memory back; nothing can be added any more."""
        for table in (self._vocabulary, *self._tables):
            table.slots = np.empty(0, np.uint32)

    def counts(self, order: int) -> U32:
        """The counts of the n-grams of one order, by number; unigrams are numbered as words."""
        table = self._table(order)
        return table.counts[: table.size]

    def keys(self, order: int) -> U64:
        """Number of the first n-1 words << 32 | last word, of the n-grams of an order above 1."""
        table = self._table(order)
        return table.keys[: table.size]

    def suffixes(self, order: int) -> U32:
        """The number of each n-gram without its first word, of an order above 1."""
        table = self._table(order)
        return table.suffixes[: table.size]

    def release(self, order: int) -> None:
        """Give the memory of an order back that is not asked for any more."""
        if order > 1:
            self._tables[order - 2] = _Table.of(np.empty(0, np.uint64))

    def _table(self, order: int) -> _Table:
        return self._vocabulary if order == 1 else self._tables[order - 2]

    def _count(self, ids: U32, places: U32) -> None:
        shorter = ids
        if self.order == 1:
            np.add.at(self._vocabulary.counts, ids[places > 0], np.uint32(1))
        for order in range(2, self.order + 1):
            table, below = self._table(order), self._table(order - 1)
            table.reserve(len(ids))
            numbers = np.empty(len(ids), np.uint32)
            table.size = _count_order(
                order, order == self.order, ids, places, shorter, numbers, below.counts, table.slots, table.keys,
                table.counts, table.suffixes, table.size,
            )  # fmt: skip
            shorter = numbers


@compiled
def _slot(slots, keys, key):  # type: ignore[no-untyped-def]
    """Where the key's number is in the hash table, or where it would go."""
    mask = np.uint64(len(slots) - 1)
    h = key * _MULTIPLIER
    slot = (h ^ (h >> _HALF)) & mask
    while slots[slot] != _NONE and keys[slots[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled
def _refill(slots, keys, size):  # type: ignore[no-untyped-def]
    for number in range(size):
        slots[_slot(slots, keys, keys[number])] = number


@compiled
def _number(slots, keys, size, hashes, ids, places, new):  # type: ignore[no-untyped-def]
    """Number the words, new ones in order of occurrence, and put `<s>` before each sentence. Returns (the size of the
    vocabulary, the length of `ids`, how many words are new); `new` says at which places they stand first."""
    length = fresh = 0
    place = np.uint32(0)
    for i in range(len(hashes)):
        if place == 0:
            ids[length], places[length] = BEGIN, 0
            length += 1
            place = np.uint32(1)
        if hashes[i] == 0:
            ids[length], places[length] = END, place
            length += 1
            place = np.uint32(0)
            continue
        slot = _slot(slots, keys, hashes[i])
        if slots[slot] == _NONE:
            keys[size] = hashes[i]
            slots[slot] = size
            size += 1
            new[fresh] = i
            fresh += 1
        ids[length], places[length] = slots[slot], place
        length += 1
        place += np.uint32(1)
    return size, length, fresh


@compiled
def _count_order(order, highest, ids, places, shorter, numbers, below, slots, keys, counts, suffixes, size):  # type: ignore[no-untyped-def]
    """Count the n-grams of one order that end at each place. `shorter` has the numbers of the (n-1)-grams that end
    there and `below` their counts, `numbers` gets those of the n-grams. Returns how many there are now."""
    for i in range(len(ids)):
        if places[i] < order - 1:
            continue
        key = (np.uint64(shorter[i - 1]) << _HALF) | np.uint64(ids[i])
        slot = _slot(slots, keys, key)
        number = slots[slot]
        if number == _NONE:
            number = np.uint32(size)
            slots[slot] = number
            keys[size] = key
            counts[size] = 0
            suffixes[size] = shorter[i]
            below[shorter[i]] += 1
            size += 1
        if highest or places[i] == order - 1:
            counts[number] += 1
        numbers[i] = number
    return size
