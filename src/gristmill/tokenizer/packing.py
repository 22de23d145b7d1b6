"""Which documents share a training sequence: best-fit decreasing bin packing (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling").

A stream of documents cut every `capacity` tokens breaks nearly every document. Here only documents longer than a
sequence are cut, into full pieces and a rest; rests and shorter documents, longest first, each go to the sequence in
which least room stays free. Where sequences have so much room is read off a binary tree over all amounts of room, so a
document costs O(log capacity).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.kernel.jit import compiled

I64 = NDArray[np.int64]


class Piece(NamedTuple):
    """Tokens `start` to `end` (behind the last) of a document."""

    document: int
    start: int
    end: int


@dataclass(frozen=True)
class Packed:
    """Sequences of at most `capacity` tokens in which every token of every document stands once; made by `best_fit`.

    `lengths` int64 `[documents]`, as given. The first sequences are full pieces: document `long[i]` has those from
    `full_ends[i - 1]` to `full_ends[i]` (int64, behind the last). In each of the others stand, longest first, the
    rests of `members[member_ends[j - 1]:member_ends[j]]`, a document no longer than a sequence being all rest.
    """

    capacity: int
    lengths: I64
    long: I64
    full_ends: I64
    members: NDArray[Any]
    member_ends: I64

    def __len__(self) -> int:
        """How many sequences there are."""
        return self._full + len(self.member_ends)

    def pieces(self, sequence: int) -> list[Piece]:
        """What stands in a sequence, one after the other."""
        if sequence < self._full:
            place = int(np.searchsorted(self.full_ends, sequence, side="right"))
            start = (sequence - int(self.full_ends[place - 1] if place else 0)) * self.capacity
            return [Piece(int(self.long[place]), start, start + self.capacity)]
        place = sequence - self._full
        members = self.members[self.member_ends[place - 1] if place else 0 : self.member_ends[place]]
        lengths = self.lengths[members]
        starts = lengths - lengths % self.capacity
        return [Piece(*piece) for piece in zip(members.tolist(), starts.tolist(), lengths.tolist(), strict=True)]

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def padding(self) -> float:
        """The share of all places that no token takes."""
        return 1 - self.tokens / (len(self) * self.capacity) if len(self) else 0.0

    @property
    def cut_documents(self) -> int:
        """How many documents are longer than a sequence."""
        return int((self.lengths > self.capacity).sum())

    def sequence_tokens(self) -> I64:
        """int64 `[sequences]`: how many tokens stand in each."""
        rests = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[self.members] % self.capacity)])
        ends = np.concatenate([np.zeros(1, np.int64), self.member_ends])
        return np.concatenate([np.full(self._full, self.capacity), np.diff(rests[ends])])

    @property
    def _full(self) -> int:
        return int(self.full_ends[-1]) if len(self.full_ends) else 0


def best_fit(lengths: I64, capacity: int) -> Packed:
    """Pack documents of `lengths` (int64 `[documents]`, tokens) into sequences of `capacity` tokens.

    The same lengths give the same sequences; of documents equally long the earlier goes first, of sequences with equal
    room the one that came to it last is taken. Working memory: 20 bytes a document, 8 a sequence.
    """
    if capacity < 1 or (len(lengths) and lengths.min() < 0):
        raise ValueError("capacity must be at least 1, and no length below 0")
    index = np.int32 if len(lengths) < np.iinfo(np.int32).max else np.int64
    rests = np.empty(len(lengths), np.int32 if capacity <= np.iinfo(np.int32).max else np.int64)
    order = np.empty(len(lengths), index)
    count = _order_by_rest(lengths, capacity, rests, order)
    order = order[:count]
    sequence_of = np.empty(count, index)
    sequences = _assign(rests, order, capacity, sequence_of, np.empty(count, index))
    members = np.empty(count, index)
    member_ends = np.zeros(sequences, np.int64)
    _group(order, sequence_of, members, member_ends)
    long = np.flatnonzero(lengths >= capacity)
    return Packed(capacity, lengths, long, np.cumsum(lengths[long] // capacity), members, member_ends)


def cut_by_stream(offsets: I64, capacity: int) -> int:
    """How many documents, `[offsets[i], offsets[i + 1])` in a stream of tokens, do not stand in one stretch of
    `capacity` tokens when the stream is cut every so many."""
    starts, lasts = offsets[:-1], offsets[1:] - 1
    return int((starts // capacity < lasts // capacity).sum())


@compiled
def _order_by_rest(lengths: I64, capacity: int, rests: NDArray[Any], order: NDArray[Any]) -> int:
    """Fill `rests` with what is left of each document behind its full pieces, and the start of `order` with the
    documents that have a rest, longest rest first, equal ones as they come; returns how many these are."""
    longest = 0
    for document in range(len(lengths)):
        rests[document] = lengths[document] % capacity
        longest = max(longest, rests[document])
    starts = np.zeros(longest + 2, np.int64)  # by rest: where its documents begin in `order`
    for document in range(len(lengths)):
        starts[rests[document]] += 1
    count = 0
    for rest in range(longest, 0, -1):
        here = starts[rest]
        starts[rest] = count
        count += here
    for document in range(len(lengths)):
        rest = rests[document]
        if rest:
            order[starts[rest]] = document
            starts[rest] += 1
    return count


@compiled
def _assign(
    rests: NDArray[Any], order: NDArray[Any], capacity: int, sequence_of: NDArray[Any], below: NDArray[Any]
) -> int:
    """Fill `sequence_of` (as `order`) by best fit; returns the number of sequences.

    Sequences with equal room form a stack: `top[room]` is the last one, `below[sequence]` the one under it. In the
    tree, node n has the children 2n and 2n + 1, leaf `leaves + room` is 1 where the stack of that room is not empty,
    and a node is 1 where a leaf under it is."""
    leaves = 1
    while leaves < capacity + 1:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.uint8)
    top = np.full(capacity + 1, -1, below.dtype)
    sequences = 0
    for place in range(len(order)):
        rest = rests[order[place]]
        node = leaves + rest
        if not tree[node]:  # the next leaf to the right: up until a right sibling has one, then down to its leftmost
            while node > 1 and (node & 1 or not tree[node + 1]):
                node >>= 1
            if node > 1:
                node += 1
                while node < leaves:
                    node = 2 * node if tree[2 * node] else 2 * node + 1
        if node > 1:
            room = node - leaves
            sequence = top[room]
            top[room] = below[sequence]
            if top[room] < 0:
                tree[node] = 0
                while node > 1 and not tree[node ^ 1]:
                    node >>= 1
                    tree[node] = 0
        else:
            room = capacity
            sequence = sequences
            sequences += 1
        sequence_of[place] = sequence
        room -= rest
        if room:
            below[sequence] = top[room]
            top[room] = sequence
            node = leaves + room
            while node and not tree[node]:
                tree[node] = 1
                node >>= 1
    return sequences


@compiled
def _group(order: NDArray[Any], sequence_of: NDArray[Any], members: NDArray[Any], member_ends: I64) -> None:
    """Sort the documents of `order` by their sequence, stably; `member_ends` comes as zeros and leaves as the end of
    each sequence's documents in `members`."""
    for place in range(len(order)):
        member_ends[sequence_of[place]] += 1
    total = 0
    for sequence in range(len(member_ends)):  # for now where each begins
        here = member_ends[sequence]
        member_ends[sequence] = total
        total += here
    for place in range(len(order)):
        sequence = sequence_of[place]
        members[member_ends[sequence]] = order[place]
        member_ends[sequence] += 1
