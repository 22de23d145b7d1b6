"""Good and bad examples: pieces of documents, chosen evenly over their sources.

A classifier learns whatever tells its examples apart. If one source gave most of them, that would be its headings and
its spelling; so every source gives as many pieces as the others, as far as it has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.errors import GristmillError

LABELS = ("bad", "good")  # by number
_MIN_BYTES = 200  # a piece says too little below it
_Pieces = dict[str, dict[bytes, bytes]]  # source -> digest -> piece


class Examples(NamedTuple):
    """`texts` (large_string), their `labels` (places in `LABELS`) and `sources`. All of one source stand together."""

    texts: pa.Array
    labels: NDArray[np.int64]
    sources: list[str]

    def part(self, chosen: NDArray[np.bool_]) -> Examples:
        kept = [source for source, keep in zip(self.sources, chosen, strict=True) if keep]
        return Examples(self.texts.filter(pa.array(chosen)), self.labels[chosen], kept)


def gather(good: Iterable[pa.RecordBatch], bad: Iterable[pa.RecordBatch], most: int, piece_bytes: int) -> Examples:
    """At most `most` pieces of each side, out of batches with `text` and `source`: the same whatever the order of the
    batches, and no piece twice. GristmillError when a side has none, or none that the other has not."""
    texts: list[str] = []
    labels: list[int] = []
    sources: list[str] = []
    sides: list[set[bytes]] = []
    for label, batches in enumerate((bad, good)):
        found = _choose(batches, most, piece_bytes)
        if not found:
            raise GristmillError(
                f"no {LABELS[label]} example has {_MIN_BYTES} bytes of text; name more {LABELS[label]} text"
            )
        for source in sorted(found):
            pieces = found[source]
            texts += [pieces[digest].decode() for digest in sorted(pieces)]
            sources += [source] * len(pieces)
            labels += [label] * len(pieces)
        sides.append({digest for pieces in found.values() for digest in pieces})
    smaller, larger = sorted((0, 1), key=lambda label: len(sides[label]))
    if sides[smaller] <= sides[larger]:
        raise GristmillError(
            f"every {LABELS[smaller]} example is a {LABELS[larger]} one too, so nothing can be learned; name other "
            "text on one side"
        )
    return Examples(pa.array(texts, pa.large_string()), np.array(labels, np.int64), sources)


def pieces(text: str, size: int) -> Iterator[bytes]:
    """The text in pieces of at most `size` bytes, cut at blanks where there are any in a piece's second half."""
    data = text.encode()
    start = 0
    while start < len(data):
        end = min(start + size, len(data))
        if end < len(data):
            blank = max(data.rfind(b" ", start + size // 2, end), data.rfind(b"\n", start + size // 2, end))
            end = blank if blank > 0 else end
            while data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        piece = data[start:end].strip()
        if len(piece) >= _MIN_BYTES:
            yield piece
        start = end


def _choose(batches: Iterable[pa.RecordBatch], most: int, piece_bytes: int) -> _Pieces:
    """The pieces with the smallest digests of each source, so many of each that all together are at most `most`."""
    found: _Pieces = {}
    held = 0
    for batch in batches:
        for text, source in zip(batch.column("text").to_pylist(), batch.column("source").to_pylist(), strict=True):
            own = found.setdefault(source, {})
            for piece in pieces(text, piece_bytes):
                own[hashlib.blake2b(piece, digest_size=16).digest()] = piece
        held = sum(map(len, found.values()))
        if held > 2 * most:
            _thin(found, most)
    _thin(found, most)
    return {source: own for source, own in found.items() if own}


def _thin(found: _Pieces, most: int) -> None:
    share = _equal_share([len(own) for own in found.values()], most)
    for source, own in found.items():
        if len(own) > share:
            found[source] = {digest: own[digest] for digest in sorted(own)[:share]}


def _equal_share(sizes: Sequence[int], most: int) -> int:
    """The largest number n such that no more than `most` are left when every size is cut to n, at least 1."""
    left = most
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            return max(share, 1)
        left -= size
    return max(sizes, default=1)
