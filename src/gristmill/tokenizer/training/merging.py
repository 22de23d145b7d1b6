"""The compiled passes of `merges.py`, which says what the arrays are.

ids: the words as tokens, with borders; lengths: bytes by token; blocks, starts, weights: how often the words at a place
occur; pool: the lists of places; keys, counts, begins, sizes: the pairs; slots: a hash table of their numbers; heap,
heap_counts: the pairs as a heap; losses, gains, places `[2, tokens]`: what a merge takes from and gives to the pairs
with a token before (0) and behind (1) it; touched: for which tokens; state: `PAIRS` and so on.
"""

from __future__ import annotations

import numpy as np

from gristmill.data.kernel.jit import compiled

PAIRS, HEAP, POOL, MERGES, STATE = 0, 1, 2, 3, 4  # places in `state`
BLOCK_BITS = 4
_BORDER, _INSIDE = -1, -2
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@compiled
def write_ids(data, offsets, order, number_of, ids):  # type: ignore[no-untyped-def]
    ids[0] = _BORDER
    place = 1
    for word in order:
        for i in range(offsets[word], offsets[word + 1]):
            ids[place] = number_of[data[i]]
            place += 1
        ids[place] = _BORDER
        place += 1
    ids[place] = _BORDER


@compiled
def count_first(ids, starts, weights, totals, numbers):  # type: ignore[no-untyped-def]
    """Count the pairs of bytes: how often each occurs, and at how many places."""
    for c in range(len(weights)):
        for p in range(starts[c], min(starts[c + 1], len(ids) - 1)):
            if ids[p] >= 0 and ids[p + 1] >= 0:
                pair = (ids[p] << 8) | ids[p + 1]
                totals[pair] += weights[c]
                numbers[pair] += 1


@compiled
def list_first(ids, totals, numbers, least, pool, keys, counts, begins, sizes, slots, heap, heap_counts, state):  # type: ignore[no-untyped-def]
    """Write down the pairs of bytes, and their places."""
    places = np.full(1 << 16, -1, np.int64)
    for pair in range(1 << 16):
        if totals[pair] >= least:
            places[pair] = state[POOL]
            _new_pair(
                pair >> 8, pair & 255, totals[pair], numbers[pair],
                keys, counts, begins, sizes, slots, heap, heap_counts, state,
            )  # fmt: skip
    for p in range(len(ids) - 1):
        if ids[p] >= 0 and ids[p + 1] >= 0:
            pair = (ids[p] << 8) | ids[p + 1]
            if places[pair] >= 0:
                pool[places[pair]] = p
                places[pair] += 1


@compiled
def merge(  # type: ignore[no-untyped-def]
    until, least, most, ids, lengths, blocks, starts, weights, pool, keys, counts, begins, sizes, slots, heap,
    heap_counts, losses, gains, places, touched, merges, state,
):  # fmt: skip
    """Merge until there are `until` merges or the tables of pairs are full; False when no pair is left."""
    while state[MERGES] < until and state[PAIRS] + 2 * (256 + state[MERGES] + 2) <= len(keys):
        pair = _most_frequent(least, keys, counts, heap, heap_counts, state)
        if pair < 0:
            return False
        new = 256 + state[MERGES]
        left, right = np.int64(keys[pair] >> _HALF), np.int64(keys[pair] & np.uint64(0xFFFFFFFF))
        merges[state[MERGES], 0], merges[state[MERGES], 1] = left, right
        state[MERGES] += 1
        size = lengths[left] + lengths[right]
        lengths[new] = size
        begin = begins[pair]
        end, befores, behinds = _replace(
            left, right, new, begin, begin + sizes[pair], ids, lengths, blocks, starts, weights, pool, losses, touched
        )
        for i in range(befores):
            token = touched[0, i]
            _lose(token, left, losses[0, token], keys, counts, slots)
            losses[0, token] = 0
        for i in range(behinds):
            token = touched[1, i]
            _lose(right, token, losses[1, token], keys, counts, slots)
            losses[1, token] = 0
        counts[pair] = 0

        befores, behinds = _weigh(
            new, size, most, begin, end, ids, lengths, blocks, starts, weights, pool, gains, places, touched
        )
        for i in range(befores):
            token = touched[2, i]
            number, total = places[0, token], gains[0, token]
            places[0, token], gains[0, token] = -1, 0
            if total >= least:
                places[0, token] = state[POOL]
                _new_pair(token, new, total, number, keys, counts, begins, sizes, slots, heap, heap_counts, state)
        for i in range(behinds):
            token = touched[3, i]
            number, total = places[1, token], gains[1, token]
            places[1, token], gains[1, token] = -1, 0
            if total >= least:
                places[1, token] = state[POOL]
                _new_pair(new, token, total, number, keys, counts, begins, sizes, slots, heap, heap_counts, state)
        _note(new, size, most, begin, end, ids, lengths, pool, places)
        for i in range(befores):
            places[0, touched[2, i]] = 0
        for i in range(behinds):
            places[1, touched[3, i]] = 0
    return True


@compiled
def _replace(left, right, new, begin, end, ids, lengths, blocks, starts, weights, pool, losses, touched):  # type: ignore[no-untyped-def]
    """Put the new token at all places of its pair, which are `pool[begin:end]`. Those that it stands at now are moved
    to the front. `losses` says how often the pairs of a token before it with the left one, and of the right one with a
    token behind it, occur no more. Returns (where the places end now, tokens before, tokens behind)."""
    kept = begin
    befores = behinds = 0
    first, second = lengths[left], lengths[right]
    for i in range(begin, end):
        p = pool[i]
        q = p + first
        if ids[p] != left or ids[q] != right:
            continue
        weight = _weight(p, blocks, starts, weights)
        before, behind = ids[p - 1], ids[q + second]
        if before >= 0 and before != new:  # where it is the new one, the pair has been counted as lost
            if losses[0, before] == 0:
                touched[0, befores] = before
                befores += 1
            losses[0, before] += weight
        if behind >= 0:
            if losses[1, behind] == 0:
                touched[1, behinds] = behind
                behinds += 1
            losses[1, behind] += weight
        ids[p] = new
        ids[q] = _INSIDE
        ids[q + second - 1] = new
        pool[kept] = p
        kept += 1
    return kept, befores, behinds


@compiled
def _weigh(new, size, most, begin, end, ids, lengths, blocks, starts, weights, pool, gains, places, touched):  # type: ignore[no-untyped-def]
    """Count the pairs that the new token, which stands at `pool[begin:end]`, is in: how often each occurs (`gains`) and
    at how many places. Two new tokens side by side are a pair of the first with what is behind it."""
    befores = behinds = 0
    for i in range(begin, end):
        p = pool[i]
        before, behind = ids[p - 1], ids[p + size]
        weight = _weight(p, blocks, starts, weights)
        if before >= 0 and before != new and lengths[before] + size <= most:
            if places[0, before] == 0:
                touched[2, befores] = before
                befores += 1
            gains[0, before] += weight
            places[0, before] += 1
        if behind >= 0 and lengths[behind] + size <= most:
            if places[1, behind] == 0:
                touched[3, behinds] = behind
                behinds += 1
            gains[1, behind] += weight
            places[1, behind] += 1
    return befores, behinds


@compiled
def _note(new, size, most, begin, end, ids, lengths, pool, places):  # type: ignore[no-untyped-def]
    """Write the places of the new token's pairs into their lists; `places` says where, or -1 for pairs without one."""
    for i in range(begin, end):
        p = pool[i]
        before, behind = ids[p - 1], ids[p + size]
        if before >= 0 and before != new and lengths[before] + size <= most and places[0, before] >= 0:
            pool[places[0, before]] = p - lengths[before]
            places[0, before] += 1
        if behind >= 0 and lengths[behind] + size <= most and places[1, behind] >= 0:
            pool[places[1, behind]] = p
            places[1, behind] += 1


@compiled
def _weight(place, blocks, starts, weights):  # type: ignore[no-untyped-def]
    """How often the word at a place occurs."""
    c = blocks[place >> BLOCK_BITS]
    while starts[c + 1] <= place:
        c += 1
    return weights[c]


@compiled
def _new_pair(left, right, count, number, keys, counts, begins, sizes, slots, heap, heap_counts, state):  # type: ignore[no-untyped-def]
    """Write a pair down that is not known yet, with room for the list of its places."""
    pair = state[PAIRS]
    state[PAIRS] += 1
    keys[pair] = (np.uint64(left) << _HALF) | np.uint64(right)
    counts[pair] = count
    begins[pair] = state[POOL]
    sizes[pair] = number
    state[POOL] += number
    slots[_slot(keys[pair], keys, slots)] = pair
    _push(pair, keys, counts, heap, heap_counts, state)


@compiled
def _lose(left, right, count, keys, counts, slots):  # type: ignore[no-untyped-def]
    pair = slots[_slot((np.uint64(left) << _HALF) | np.uint64(right), keys, slots)]
    if pair >= 0:
        counts[pair] -= count


@compiled
def _slot(key, keys, slots):  # type: ignore[no-untyped-def]
    """Where the pair's number is, or where it would go."""
    mask = np.uint64(len(slots) - 1)
    h = key * _MULTIPLIER
    slot = (h ^ (h >> _HALF)) & mask
    while slots[slot] >= 0 and keys[slots[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled
def _most_frequent(least, keys, counts, heap, heap_counts, state):  # type: ignore[no-untyped-def]
    """Take the first pair off the heap; -1 where there is none. Counts only ever go down, so a pair that is first by an
    old count is put back where it belongs now, and the first one whose count is true is the most frequent."""
    while state[HEAP] > 0:
        pair = heap[0]
        true = counts[pair] == heap_counts[0]
        state[HEAP] -= 1
        size = state[HEAP]
        heap[0], heap_counts[0] = heap[size], heap_counts[size]
        _sink(0, size, keys, heap, heap_counts)
        if true:
            return pair
        if counts[pair] >= least:
            _push(pair, keys, counts, heap, heap_counts, state)
    return -1


@compiled
def _ahead(i, j, keys, heap, heap_counts):  # type: ignore[no-untyped-def]
    if heap_counts[i] != heap_counts[j]:
        return heap_counts[i] > heap_counts[j]
    return keys[heap[i]] < keys[heap[j]]


@compiled
def _push(pair, keys, counts, heap, heap_counts, state):  # type: ignore[no-untyped-def]
    i = state[HEAP]
    heap[i], heap_counts[i] = pair, counts[pair]
    state[HEAP] += 1
    while i > 0 and _ahead(i, (i - 1) >> 1, keys, heap, heap_counts):
        above = (i - 1) >> 1
        heap[i], heap[above] = heap[above], heap[i]
        heap_counts[i], heap_counts[above] = heap_counts[above], heap_counts[i]
        i = above


@compiled
def _sink(i, size, keys, heap, heap_counts):  # type: ignore[no-untyped-def]
    while 2 * i + 1 < size:
        below = 2 * i + 1
        if below + 1 < size and _ahead(below + 1, below, keys, heap, heap_counts):
            below += 1
        if not _ahead(below, i, keys, heap, heap_counts):
            return
        heap[i], heap[below] = heap[below], heap[i]
        heap_counts[i], heap_counts[below] = heap_counts[below], heap_counts[i]
        i = below


@compiled
def alive(counts, size, least):  # type: ignore[no-untyped-def]
    alive = 0
    for pair in range(size):
        alive += counts[pair] >= least
    return alive


@compiled
def move(  # type: ignore[no-untyped-def]
    old_keys, old_counts, old_begins, old_sizes, keys, counts, begins, sizes, slots, heap, heap_counts, least, state
):  # fmt: skip
    """Take the pairs that may still be merged over into new tables."""
    size = state[PAIRS]
    state[PAIRS] = state[HEAP] = 0
    for old in range(size):
        if old_counts[old] >= least:
            pair = state[PAIRS]
            state[PAIRS] += 1
            keys[pair], counts[pair] = old_keys[old], old_counts[old]
            begins[pair], sizes[pair] = old_begins[old], old_sizes[old]
            slots[_slot(keys[pair], keys, slots)] = pair
            _push(pair, keys, counts, heap, heap_counts, state)
