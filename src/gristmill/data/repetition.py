"""How much of a text repeats itself: Gopher's repetition measures (arXiv 2112.11446, section A1.1), for a whole batch.

All shares of characters are of the document's length, and "occurred before" leaves the first occurrence out. Repeated
n-grams are counted as datatrove counts them, since the thresholds in use were tried out with it: a scan from the left
adds up each n-gram it has met before, and goes on behind it, so no word counts twice.

An n-gram can only repeat where both (n-1)-grams inside it repeat, so each n looks only at what n - 1 left over: after
the first round little does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .textbatch import I64, U64, Spans, TextBatch, mix

F64 = NDArray[np.float64]

_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Repetition:
    """The measures of one batch; every attribute and result is an array with one value per document."""

    batch: TextBatch

    @cached_property
    def duplicate_lines(self) -> F64:
        return _share(self.batch.lines.sum(self._repeated_lines), self.batch.lines.counts)

    @cached_property
    def duplicate_line_characters(self) -> F64:
        lines = self.batch.lines
        return _share(lines.sum(self._repeated_lines * self.batch.characters(lines)), self.batch.lengths)

    @cached_property
    def duplicate_paragraphs(self) -> F64:
        return _share(self.batch.paragraphs.sum(self._repeated_paragraphs), self.batch.paragraphs.counts)

    @cached_property
    def duplicate_paragraph_characters(self) -> F64:
        paragraphs = self.batch.paragraphs
        repeated = paragraphs.sum(self._repeated_paragraphs * self.batch.characters(paragraphs))
        return _share(repeated, self.batch.lengths)

    def ngrams(self, top: list[int], duplicate: list[int]) -> tuple[dict[int, F64], dict[int, F64]]:
        """For each n in `top`: the share of characters in the most frequent n-gram (blanks between its words count;
        0 where no n-gram occurs twice; the first one where several are as frequent). For each n in `duplicate`: the
        share of characters in words of n-grams that the scan met before."""
        words = self.batch.words
        characters = self.batch.characters(words)
        before: I64 = np.concatenate([[0], np.cumsum(characters)])
        wanted = [*top, *duplicate]
        tops, duplicates = {}, {}
        for n, groups in _repeated_ngrams(self.batch, max(wanted, default=0)):
            if n in top:
                first, count = groups.most_frequent(words)
                size = before[first + n] - before[first] + n - 1
                tops[n] = _share(np.where(count > 0, count * size, 0), self.batch.lengths)
            if n in duplicate:
                met_before = groups.met_before(n)
                size = np.zeros(len(words), np.int64)
                size[met_before] = before[met_before + n] - before[met_before]
                duplicates[n] = _share(words.sum(size), self.batch.lengths)
        nothing = np.zeros(len(self.batch))
        return {n: tops.get(n, nothing) for n in top}, {n: duplicates.get(n, nothing) for n in duplicate}

    @cached_property
    def _repeated_lines(self) -> NDArray[np.bool_]:
        return _seen_before(self.batch.lines, self.batch.hashes(self.batch.lines))

    @cached_property
    def _repeated_paragraphs(self) -> NDArray[np.bool_]:
        return _seen_before(self.batch.paragraphs, self.batch.hashes(self.batch.paragraphs))


@dataclass(frozen=True)
class _Groups:
    """Equal n-grams of one document that occur at least twice: places (word numbers), group by group, ascending."""

    places: I64
    heads: I64  # where in `places` each group begins

    @property
    def later(self) -> I64:
        """All places but each group's first."""
        later = np.ones(len(self.places), np.bool_)
        later[self.heads] = False
        return self.places[later]

    def met_before(self, n: int) -> I64:
        """The places of the n-grams that a scan from the left has met before, where it jumps over each such one."""
        group = np.zeros(len(self.places), np.int64)
        group[self.heads[1:]] = 1
        order = np.argsort(self.places)
        met: set[int] = set()
        found = []
        free = 0
        for place, number in zip(self.places[order].tolist(), np.cumsum(group)[order].tolist(), strict=True):
            if place < free:
                continue
            if number in met:
                found.append(place)
                free = place + n
            else:
                met.add(number)
        return np.array(found, np.int64)

    def most_frequent(self, words: Spans) -> tuple[I64, I64]:
        """(first place, number of occurrences) of each document's most frequent group; (0, 0) where it has none."""
        documents = len(words.counts)
        first, count = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
        firsts = self.places[self.heads]
        counts = np.diff(np.append(self.heads, len(self.places)))
        order = np.lexsort((-firsts, counts))  # the last assignment wins: most frequent, then earliest
        owner = words.documents[firsts[order]]
        first[owner], count[owner] = firsts[order], counts[order]
        return first, count


def _repeated_ngrams(batch: TextBatch, longest: int) -> list[tuple[int, _Groups]]:
    """The repeated n-grams for n = 2 .. longest, as long as there are any."""
    words = batch.words
    if len(words) < 2:
        return []
    hashes = batch.hashes(words)
    document = words.documents
    places = np.flatnonzero(document[:-1] == document[1:])
    rolling = mix(document.astype(np.uint64) + np.uint64(1)) + hashes  # the document is part of every n-gram
    found = []
    for n in range(2, longest + 1):
        rolling = rolling[: len(words) - n + 1] * _MULTIPLIER + hashes[n - 1 :]
        groups = _group(rolling[places], places, len(words))
        if not len(groups.places):
            break
        found.append((n, groups))
        repeats = np.zeros(len(words) + 1, np.bool_)
        repeats[groups.places] = True
        places = np.flatnonzero(repeats[:-1] & repeats[1:])
    return found


def _group(hashes: U64, places: I64, limit: int) -> _Groups:
    """Group places by hash. The place rides in the low bits of the key, so that one plain sort does it all; the
    hash keeps the 44 bits or so that are left, which is plenty within a document."""
    bits = np.uint64(max(int(limit).bit_length(), 1))
    low = (np.uint64(1) << bits) - np.uint64(1)
    keys = (mix(hashes) & ~low) | places.astype(np.uint64)
    keys.sort()
    equal = (keys[1:] ^ keys[:-1]) <= low
    in_group = np.zeros(len(keys), np.bool_)
    in_group[1:] |= equal
    in_group[:-1] |= equal
    head = in_group.copy()
    head[1:] &= ~equal
    return _Groups((keys[in_group] & low).astype(np.int64), np.flatnonzero(head[in_group]))


def _seen_before(spans: Spans, hashes: U64) -> NDArray[np.bool_]:
    """True for every span whose text stands earlier in the same document."""
    repeated = np.zeros(len(spans), np.bool_)
    if len(spans):
        salted = hashes + mix(spans.documents.astype(np.uint64) + np.uint64(1))
        repeated[_group(salted, np.arange(len(spans)), len(spans)).later] = True
    return repeated


def _share(part: NDArray, whole: NDArray) -> F64:
    return part / np.maximum(whole, 1)
