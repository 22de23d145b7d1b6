"""The compiled passes of `unigram.py`: all ways to cut a word into pieces, and the best one.

Pieces stand in a trie. The child of a node by a character is found by the hash of both: `keys` hold
node << 32 | character + 1, `children` the child; `ends` says which piece ends at a node, or -1.
"""

from __future__ import annotations

import numpy as np

from gristmill.data.kernel.jit import compiled

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@compiled
def _slot(node, character, keys):  # type: ignore[no-untyped-def]
    """Where a node's child is, or where it would go."""
    key = (np.uint64(node) << _HALF) | np.uint64(character + 1)
    mask = np.uint64(len(keys) - 1)
    h = key * _MULTIPLIER
    slot = (h ^ (h >> _HALF)) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot, key


@compiled
def plant(ids, offsets, keys, children, ends):  # type: ignore[no-untyped-def]
    """Fill the trie with pieces; returns how many nodes there are."""
    nodes = 1
    for piece in range(len(offsets) - 1):
        node = 0
        for i in range(offsets[piece], offsets[piece + 1]):
            slot, key = _slot(node, ids[i], keys)
            if keys[slot] == 0:
                keys[slot], children[slot] = key, nodes
                nodes += 1
            node = children[slot]
        ends[node] = piece
    return nodes


@compiled
def _edges(ids, begin, end, keys, children, ends, froms, pieces):  # type: ignore[no-untyped-def]
    """The pieces that a word holds, by where they begin and how long they are; returns how many. `froms` says where
    each begins in the word."""
    count = 0
    for i in range(begin, end):
        node = 0
        for j in range(i, end):
            slot, _ = _slot(node, ids[j], keys)
            if keys[slot] == 0:
                break
            node = children[slot]
            if ends[node] >= 0:
                froms[count], pieces[count] = i - begin, ends[node]
                count += 1
    return count


@compiled
def _either(a, b):  # type: ignore[no-untyped-def]
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a if b == -np.inf else a + np.log1p(np.exp(b - a))


@compiled
def expect(ids, offsets, counts, keys, children, ends, scores, sizes, before, behind, froms, pieces, expected):  # type: ignore[no-untyped-def]
    """Add up how often each piece is expected (the forward-backward algorithm). `sizes` are the characters by piece;
    `before` and `behind` get the log probability of what is before and behind a place in the word."""
    for w in range(len(counts)):
        length = offsets[w + 1] - offsets[w]
        count = _edges(ids, offsets[w], offsets[w + 1], keys, children, ends, froms, pieces)
        before[: length + 1] = -np.inf
        behind[: length + 1] = -np.inf
        before[0] = behind[length] = 0.0
        for e in range(count):
            to = froms[e] + sizes[pieces[e]]
            before[to] = _either(before[to], before[froms[e]] + scores[pieces[e]])
        for e in range(count - 1, -1, -1):
            to = froms[e] + sizes[pieces[e]]
            behind[froms[e]] = _either(behind[froms[e]], behind[to] + scores[pieces[e]])
        for e in range(count):
            to = froms[e] + sizes[pieces[e]]
            likely = before[froms[e]] + scores[pieces[e]] + behind[to] - before[length]
            expected[pieces[e]] += counts[w] * np.exp(likely)


@compiled
def _best(length, count, sizes, scores, without, froms, pieces, before, choice):  # type: ignore[no-untyped-def]
    """The best way to cut a word (Viterbi), but for the piece `without`: `choice[to]` is the edge that ends there.
    Returns its log probability."""
    before[: length + 1] = -np.inf
    before[0] = 0.0
    for e in range(count):
        if pieces[e] != without:
            to = froms[e] + sizes[pieces[e]]
            score = before[froms[e]] + scores[pieces[e]]
            if score > before[to]:
                before[to] = score
                choice[to] = e
    return before[length]


@compiled
def cut_best(ids, offsets, counts, keys, children, ends, scores, sizes, before, choice, froms, pieces, used):  # type: ignore[no-untyped-def]
    """Add up how often each piece is used where every word is cut in the best way."""
    for w in range(len(counts)):
        count = _edges(ids, offsets[w], offsets[w + 1], keys, children, ends, froms, pieces)
        to = offsets[w + 1] - offsets[w]
        _best(to, count, sizes, scores, -1, froms, pieces, before, choice)
        while to > 0:
            used[pieces[choice[to]]] += counts[w]
            to = froms[choice[to]]


@compiled
def losses_of(ids, offsets, keys, children, ends, scores, sizes, before, choice, froms, pieces, used, single, losses):  # type: ignore[no-untyped-def]
    """How much less likely the text would be without each piece, which would be cut in its best other way then. A piece
    that is never used, or is cut in another way even now, is left at -inf."""
    total = used.sum()
    for piece in range(single, len(scores)):
        if used[piece] == 0:
            continue
        to = sizes[piece]
        count = _edges(ids, offsets[piece], offsets[piece + 1], keys, children, ends, froms, pieces)
        if _best(to, count, sizes, scores, piece, froms, pieces, before, choice) >= scores[piece]:
            continue
        parts = 0
        other = 0.0
        while to > 0:
            other += np.log(used[pieces[choice[to]]] + used[piece])
            parts += 1
            to = froms[choice[to]]
        other -= parts * np.log(total + used[piece] * (parts - 1))
        losses[piece] = used[piece] / total * (np.log(used[piece] / total) - other)
