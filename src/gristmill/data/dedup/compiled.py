"""The inner loops, compiled. Imported only where they are run.

Documents are numbers here. Signatures are `[documents, minima]`; sets of n-grams stand one behind the other in a flat
array, those of document d at `offsets[d]` to `offsets[d + 1]`, sorted, each once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernel.jit import compiled
from .tables import F64, I64, U8, U32, U64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xA24BAED4963EE407)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@compiled
def _mix(value: Any) -> Any:
    """splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> _S30)) * _MIX_1
    value = (value ^ (value >> _S27)) * _MIX_2
    return value ^ (value >> _S31)


@compiled
def band_hashes(signatures: U32, bands: int, rows: int) -> U64:
    """One 64-bit hash per band, `[bands, documents]`: equal, but for chance, where all minima of the band are."""
    documents = len(signatures)
    hashes = np.empty((bands, documents), np.uint64)
    for band in range(bands):
        seed = _mix(np.uint64(band + 1) * _GOLDEN)
        for document in range(documents):
            value = seed
            for place in range(band * rows, (band + 1) * rows):
                value = _mix(value * _MULTIPLIER + np.uint64(signatures[document, place]))
            hashes[band, document] = value
    return hashes


@compiled
def _equal_minima(signatures: U32, a: int, b: int) -> int:
    equal = 0
    for place in range(signatures.shape[1]):
        equal += signatures[a, place] == signatures[b, place]
    return equal


@compiled
def look_alikes(members: I64, starts: I64, signatures: U32, fixed: Any, least: int, edges: I64) -> int:
    """Write to `edges` (`[pairs, 2]`, large enough) the pairs of a bucket's members that agree on at least `least`
    minima; pairs of two `fixed` ones are left out. Bucket b is `members[starts[b]:starts[b + 1]]`; members number the
    rows of `signatures`. Returns how many pairs were written."""
    found = 0
    for bucket in range(len(starts) - 1):
        for second in range(starts[bucket] + 1, starts[bucket + 1]):
            b = members[second]
            for first in range(starts[bucket], second):
                a = members[first]
                if not (fixed[a] and fixed[b]) and _equal_minima(signatures, a, b) >= least:
                    edges[found, 0], edges[found, 1] = a, b
                    found += 1
    return found


@compiled
def _root(parents: I64, node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]  # path halving
        node = parents[node]
    return node


@compiled
def unite(parents: I64, edges: I64) -> None:
    """Union-find: join the ends of every edge. A component's root is its least number."""
    for place in range(len(edges)):
        a, b = _root(parents, edges[place, 0]), _root(parents, edges[place, 1])
        if a < b:
            parents[b] = a
        elif b < a:
            parents[a] = b


@compiled
def flatten(parents: I64) -> None:
    """Point every node at its root."""
    for node in range(len(parents)):
        parents[node] = parents[parents[node]]  # a parent is less than its child, so it is flat already


@compiled
def _common(hashes: U64, a: int, a_end: int, b: int, b_end: int, least: int) -> int:
    """How many numbers two sorted sets share, or -1 as soon as they cannot share `least`."""
    common = 0
    while a < a_end and b < b_end:
        if hashes[a] == hashes[b]:
            common += 1
            a += 1
            b += 1
        else:
            if hashes[a] < hashes[b]:
                a += 1
            else:
                b += 1
            if common + min(a_end - a, b_end - b) < least:
                return -1
    return common


@compiled
def choose(
    buckets: I64,
    room: I64,
    signatures: U32,
    hashes: U64,
    offsets: I64,
    fixed: Any,
    threshold: float,
    least_equal: int,
    closest: int,
    kept: I64,
    similarity: F64,
) -> tuple[int, int]:
    """Decide which documents stay: `kept[d]` becomes the one that d is removed for, or -1, and `similarity[d]` their
    Jaccard similarity. Documents come in order of preference; `fixed` ones stay whatever they are like.

    `buckets` is `[documents, bands]`, the bucket of each band or -1 for one that holds nothing else. Each bucket
    remembers the documents last kept in it, `room[b + 1] - room[b]` of them. A document is compared with the kept ones
    remembered by its buckets: of those that agree with it on `least_equal` minima, with the `closest` ones exactly. The
    most similar one decides, the first of equally similar ones. Returns how many pairs were compared exactly, and how
    many of them reached the threshold.
    """
    documents, bands = buckets.shape
    remembered = np.empty(room[-1], np.int64)
    counts = np.zeros(len(room) - 1, np.int64)
    seen = np.full(documents, -1, np.int64)
    best = np.empty(closest, np.int64)
    best_equal = np.empty(closest, np.int64)
    compared = similar = 0
    for document in range(documents):
        kept[document] = -1
        similarity[document] = 0.0
        size = offsets[document + 1] - offsets[document]
        held = 0
        for band in range(bands):
            bucket = buckets[document, band]
            if bucket < 0 or fixed[document]:
                continue
            for place in range(room[bucket], room[bucket] + min(counts[bucket], room[bucket + 1] - room[bucket])):
                other = remembered[place]
                if seen[other] == document:
                    continue
                seen[other] = document
                other_size = offsets[other + 1] - offsets[other]
                if size == 0 or min(size, other_size) < threshold * max(size, other_size) - 1e-6:
                    continue  # J is at most the ratio of the sizes
                equal = _equal_minima(signatures, document, other)
                if equal < least_equal:
                    continue
                held = _insert(best, best_equal, held, other, equal)
        for place in range(held):
            other = best[place]
            total = size + offsets[other + 1] - offsets[other]
            # common / (total - common) >= threshold; one less, so that rounding cannot decide here.
            least = int(threshold * total / (1.0 + threshold)) - 1
            common = _common(
                hashes, offsets[document], offsets[document + 1], offsets[other], offsets[other + 1], least
            )
            compared += 1
            if common < 0:
                continue
            jaccard = common / (total - common)
            if jaccard >= threshold:
                similar += 1
                if jaccard > similarity[document] or (jaccard == similarity[document] and other < kept[document]):
                    kept[document], similarity[document] = other, jaccard
        if kept[document] < 0:
            for band in range(bands):
                bucket = buckets[document, band]
                if bucket >= 0:
                    length = room[bucket + 1] - room[bucket]
                    remembered[room[bucket] + counts[bucket] % length] = document
                    counts[bucket] += 1
    return compared, similar


@compiled
def _insert(best: I64, best_equal: I64, held: int, other: int, equal: int) -> int:
    """Put a document into the short list of those with most equal minima, earlier documents first among equals; the
    list's new length."""
    place = held
    while place > 0 and (best_equal[place - 1] < equal or (best_equal[place - 1] == equal and best[place - 1] > other)):
        place -= 1
    if place >= len(best):
        return held
    held = min(held + 1, len(best))
    for behind in range(held - 1, place, -1):
        best[behind], best_equal[behind] = best[behind - 1], best_equal[behind - 1]
    best[place], best_equal[place] = other, equal
    return held


@compiled
def look_up(hashes: U64, bits: U8, keys: U64, shift: Any, places: I64, found: I64) -> int:
    """Find the hashes that are among `keys` (ascending): `places` gets where each of them stands in `hashes`, `found`
    its number in `keys`; both are as long as `hashes`. Returns how many there are. `bits` has a bit for each value of
    `hash >> shift`, set where a key has that value: most look-ups end there."""
    count = 0
    for place in range(len(hashes)):
        value = hashes[place]
        bit = np.int64(value >> shift)
        if not bits[bit >> 3] >> (bit & 7) & 1:
            continue
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) >> 1
            if keys[middle] < value:
                low = middle + 1
            else:
                high = middle
        if low < len(keys) and keys[low] == value:
            places[count], found[count] = place, low
            count += 1
    return count
