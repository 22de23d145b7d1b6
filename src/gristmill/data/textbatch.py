"""Many documents as one byte array, so that words, lines and their hashes come from a few numpy passes.

Per-document Python is what makes text filters slow (0.2 to 2 MB a second). Here a batch of about a megabyte is laid
out as one buffer; words, lines and paragraphs are spans (start, end) found from where a byte class changes, and the
hash of any span is a difference of one running sum:

    H[i] = sum over j < i of T[byte_j] * P**j   (mod 2**64),      hash(s, e) = mix((H[e] - H[s]) * P**-s, e - s)

P is odd, so it has an inverse mod 2**64; T is a fixed table of well-mixed numbers.

Documents are expected to be cleaned (`clean.py`): no whitespace but space, tab and newline, no blanks at a line's end.
Words are then exactly what `str.split()` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_P = 0x9E3779B97F4A7C15  # odd
_P_INVERSE = pow(_P, -1, 1 << 64)


def mix(values: U64) -> U64:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): a bijection that spreads every bit over all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_BYTES = np.arange(256)
_TABLE = mix((_BYTES + 1).astype(np.uint64) * np.uint64(_P))
_SPACE = np.isin(_BYTES, list(b" \t\n"))
_ASCII_ALPHABETIC = np.isin(_BYTES, list(range(65, 91)) + list(range(97, 123)))
# Outside ASCII by the lead byte: 0xC2 begins Latin-1 signs, 0xE2 punctuation and symbols, the others mostly letters.
LETTER = _ASCII_ALPHABETIC | ((_BYTES >= 0xC3) & (_BYTES <= 0xF4) & (_BYTES != 0xE2))
_TOKEN = _ASCII_ALPHABETIC | np.isin(_BYTES, list(b"0123456789_")) | (_BYTES >= 0x80)
_LOWER = np.where((_BYTES >= 65) & (_BYTES <= 90), _BYTES + 32, _BYTES).astype(np.uint8)
_LOWER_TABLE = _TABLE[_LOWER]


@dataclass(frozen=True)
class Spans:
    """Spans of a batch's buffer in order. Those of document d are `offsets[d]` to `offsets[d + 1]`."""

    starts: I64
    ends: I64
    offsets: I64

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def counts(self) -> I64:
        """Spans per document."""
        return np.diff(self.offsets)

    @cached_property
    def documents(self) -> I64:
        """The number of the document that each span stands in."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def sum(self, values: NDArray) -> I64:
        """The sum of one value per span over each document."""
        totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return totals[self.offsets[1:]] - totals[self.offsets[:-1]]


class TextBatch:
    """A batch of cleaned texts and the spans and hashes that the rules ask for; each is worked out once, on demand."""

    def __init__(self, texts: list[str]):
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        # Two newlines between documents: no word, line or paragraph crosses a border.
        self.bytes = np.frombuffer(b"\n\n".join(encoded), np.uint8)
        self.starts: I64 = np.concatenate([[0], np.cumsum(lengths + 2)[:-1]]) if encoded else np.zeros(0, np.int64)
        self.ends: I64 = self.starts + lengths
        self.ascii = all(map(str.isascii, texts))
        self.lengths: I64 = np.fromiter(map(len, texts), np.int64, len(texts))  # in characters

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def words(self) -> Spans:
        """Runs of anything but whitespace."""
        return self._runs(~_SPACE[self.bytes])

    @cached_property
    def lines(self) -> Spans:
        """Lines that are not blank."""
        return self._runs(self.bytes != 10)

    @cached_property
    def paragraphs(self) -> Spans:
        """Lines that no blank line parts."""
        lines = self.lines
        if not len(lines):
            return lines
        first = np.concatenate([[True], lines.starts[1:] - lines.ends[:-1] > 1])
        starts = lines.starts[first]
        ends = lines.ends[np.concatenate([first[1:], [True]])]
        return self._spans(starts, ends)

    @cached_property
    def tokens(self) -> Spans:
        """Runs of letters, digits, underscores and anything outside ASCII: what `\\w+` finds, but for foreign
        punctuation. Near-duplicates are compared by these."""
        return self._runs(_TOKEN[self.bytes])

    def hashes(self, spans: Spans) -> U64:
        """A 64-bit hash of the bytes of each span."""
        return self._hash(self._sums, spans)

    def folded_hashes(self, spans: Spans) -> U64:
        """The same with ASCII capitals taken as small letters."""
        return self._hash(_running_sums(_LOWER_TABLE, self.bytes), spans)

    def characters(self, spans: Spans) -> I64:
        """The length of each span in characters."""
        lengths = spans.ends - spans.starts
        if self.ascii:
            return lengths
        return self.count(spans, (self.bytes & 0xC0) != 0x80)

    def count(self, spans: Spans, mask: NDArray[np.bool_]) -> I64:
        """How many bytes of each span are true in `mask`, an array as long as the buffer."""
        totals = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        return totals[spans.ends] - totals[spans.starts]

    def count_in_documents(self, positions: I64) -> I64:
        """How many of the given places in the buffer (ascending) lie in each document."""
        return np.searchsorted(positions, self.ends) - np.searchsorted(positions, self.starts)

    @cached_property
    def _sums(self) -> U64:
        return _running_sums(_TABLE, self.bytes)

    def _hash(self, sums: U64, spans: Spans) -> U64:
        _, inverses = _powers(_round_up(len(self.bytes)))
        value = (sums[spans.ends] - sums[spans.starts]) * inverses[spans.starts]
        return mix(value + (spans.ends - spans.starts).astype(np.uint64))

    def _runs(self, inside: NDArray[np.bool_]) -> Spans:
        padded = np.zeros(len(inside) + 2, np.int8)
        padded[1:-1] = inside
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        return self._spans(edges[0::2], edges[1::2])

    def _spans(self, starts: I64, ends: I64) -> Spans:
        offsets = np.append(np.searchsorted(starts, self.starts), len(starts))
        return Spans(starts, ends, offsets)


def hash_words(words: tuple[str, ...]) -> U64:
    """The hashes that `TextBatch.hashes` gives these words."""
    batch = TextBatch(list(words))
    return batch.hashes(batch.words)


def _running_sums(table: U64, data: NDArray[np.uint8]) -> U64:
    powers, _ = _powers(_round_up(len(data)))
    sums = np.zeros(len(data) + 1, np.uint64)
    terms = table[data]
    terms *= powers[: len(data)]
    np.cumsum(terms, out=sums[1:])
    return sums


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[U64, U64]:
    """P**0 .. P**size and the powers of its inverse, mod 2**64."""

    def powers_of(base: int) -> U64:
        factors = np.full(size + 1, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return powers_of(_P), powers_of(_P_INVERSE)


def _round_up(size: int) -> int:
    """The next power of two: batches of similar size share one table of powers."""
    return 1 << max(size, 1).bit_length()
