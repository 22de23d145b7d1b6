"""Near-duplicates: MinHash signatures, candidates by locality-sensitive hashing, a check before anything is removed.

Documents are compared as sets of word 5-grams. A signature of `bands * rows` minima estimates the Jaccard similarity of
two sets (Broder 1997); documents that agree on all rows of one band become candidates, which happens with probability
1 - (1 - J**rows)**bands. Candidates are then compared by the true Jaccard similarity of their sets.

A document is removed only for a document that stays and that it was itself compared with. So a chain of pairwise
similar pages does not shrink to its first one, as it does where pairs are merged into clusters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .textbatch import I64, U64, TextBatch, mix

U32 = NDArray[np.uint32]

_MULTIPLIER = np.uint64(0xA24BAED4963EE407)
_CHUNK = 1 << 14  # shingles hashed at a time: the working arrays stay in the cache


@dataclass(frozen=True)
class Shingles:
    """The 64-bit hashes of the word n-grams of a batch; those of document d are `offsets[d]` to `offsets[d + 1]`."""

    hashes: U64
    offsets: I64

    def of(self, document: int) -> U64:
        """The set of one document's n-grams: sorted, each once."""
        return np.unique(self.hashes[self.offsets[document] : self.offsets[document + 1]])


@dataclass(frozen=True)
class Duplicate:
    """Document `removed` is a near-duplicate of document `kept`."""

    removed: int
    kept: int
    jaccard: float


@dataclass(frozen=True)
class Matches:
    """What `find_duplicates` found."""

    duplicates: list[Duplicate]
    compared: int  # candidate pairs whose sets were compared
    similar: int  # of them, pairs at or above the threshold


def shingles(batch: TextBatch, n: int) -> Shingles:
    """Word n-grams in small letters (words are `\\w+`, see `TextBatch.tokens`); a document of fewer than n words has
    one, made of all its words, and one without words has none."""
    tokens = batch.tokens
    words = batch.folded_hashes(tokens)
    counts = tokens.counts
    ahead = np.concatenate([words, np.zeros(n, np.uint64)])
    owners = np.concatenate([tokens.documents, np.full(n, -1)])
    rolling = np.zeros(len(words), np.uint64)
    for k in range(n):  # words behind a document's end count as zero; they matter only in short documents
        same = owners[k : k + len(words)] == tokens.documents
        rolling = rolling * _MULTIPLIER + np.where(same, ahead[k : k + len(words)], np.uint64(0))
    places = np.arange(len(words)) - np.repeat(tokens.offsets[:-1], counts)
    keep = places <= np.repeat(np.maximum(counts - n, 0), counts)
    kept = np.where(counts >= n, counts - n + 1, np.minimum(counts, 1))
    return Shingles(mix(rolling[keep]), np.concatenate([[0], np.cumsum(kept)]))


def signatures(found: Shingles, size: int) -> U32:
    """MinHash signatures `[documents, size]`: the minima of `size` permutations x -> a x + b (mod 2**32), a odd, of the
    n-grams' hashes. A document without n-grams gets the largest value throughout."""
    counts = np.diff(found.offsets)
    result = np.full((len(counts), size), np.iinfo(np.uint32).max, np.uint32)
    short = (found.hashes >> np.uint64(32)).astype(np.uint32)
    seeds = mix(np.arange(1, 2 * size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    factors = (seeds[:size] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    terms = (seeds[size:] >> np.uint64(32)).astype(np.uint32)
    documents = np.flatnonzero(counts)
    if not len(documents):
        return result
    chunk_of = found.offsets[documents] // _CHUNK
    for group in np.split(documents, np.flatnonzero(np.diff(chunk_of)) + 1):
        start, end = found.offsets[group[0]], found.offsets[group[-1] + 1]
        values = short[start:end]
        heads = found.offsets[group] - start
        work = np.empty_like(values)
        for i in range(size):
            np.multiply(values, factors[i], out=work)
            np.add(work, terms[i], out=work)
            result[group, i] = np.minimum.reduceat(work, heads)
    return result


def band_hashes(signature: U32, bands: int) -> U64:
    """One 64-bit hash per band, `[documents, bands]`; equal where all rows of the band are."""
    documents, size = signature.shape
    rows = signature.reshape(documents, bands, size // bands).astype(np.uint64)
    hashes = np.broadcast_to(mix(np.arange(1, bands + 1, dtype=np.uint64)), (documents, bands)).copy()
    for row in range(rows.shape[2]):
        hashes = mix(hashes * _MULTIPLIER + rows[:, :, row])
    return hashes


def shares_a_band(bands: U64) -> NDArray[np.bool_]:
    """True for every document that agrees with another on at least one band."""
    shared = np.zeros(len(bands), np.bool_)
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        equal = band[order[1:]] == band[order[:-1]]
        shared[order[1:][equal]] = True
        shared[order[:-1][equal]] = True
    return shared


def jaccard(a: U64, b: U64) -> float:
    """The Jaccard similarity of two sets, each sorted and without repeats."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def find_duplicates(
    bands: U64, order: I64, threshold: float, shingles_of: Callable[[int], U64], progress: Callable[[int, int], None]
) -> Matches:
    """Which documents to remove. `bands` is `[documents, bands]`; `order` lists the documents to look at, the ones to
    prefer first; `shingles_of(document)` gives its set.

    Each document in turn is compared with the kept ones that share a band with it; when the most similar of them (the
    one preferred where several are as similar) reaches `threshold` it is removed, else it is kept.
    """
    rank = {document: place for place, document in enumerate(order.tolist())}
    kept_by_band: dict[int, list[int]] = defaultdict(list)
    duplicates: list[Duplicate] = []
    compared = similar = 0
    for done, document in enumerate(rank):
        keys = bands[document].tolist()
        candidates = sorted({other for key in keys for other in kept_by_band.get(key, ())}, key=rank.__getitem__)
        best, best_similarity = -1, -1.0
        for other in candidates:
            similarity = jaccard(shingles_of(document), shingles_of(other))
            compared += 1
            similar += similarity >= threshold
            if similarity > best_similarity:
                best, best_similarity = other, similarity
        if best_similarity >= threshold:
            duplicates.append(Duplicate(document, best, best_similarity))
        else:
            for key in keys:
                kept_by_band[key].append(document)
        progress(done + 1, len(rank))
    return Matches(duplicates, compared, similar)
