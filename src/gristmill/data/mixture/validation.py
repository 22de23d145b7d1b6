"""Which documents are kept for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

FEWEST_WORKS = 4


def choose_validation(
    domains: Sequence[str], works: Sequence[str], ids: Sequence[str], fraction: float, minimum: int
) -> list[bool]:
    """Whether each document is for validation.

    A work (a play's act, a book of the Bible, a file, a page: whatever shares a source and an origin up to `#`) goes as
    a whole, so its pieces never stand on both sides. It is chosen by its hash alone: when the hash, as a number from
    0 to 1, is below `fraction`, or is among the `minimum` lowest of its domain. So a work keeps its side when others
    come and go. At most a quarter of a domain's works is chosen; a domain of fewer than four works is divided by
    document instead, and a single document trains.
    """
    numbers = {domain: number for number, domain in enumerate(dict.fromkeys(domains))}
    of_document = np.fromiter((numbers[domain] for domain in domains), np.int64, len(domains))
    chosen: list[bool] = choose_validation_hashed(
        of_document, key_hashes(works), key_hashes(ids), fraction, minimum
    ).tolist()
    return chosen


def key_hashes(keys: Iterable[str]) -> U64:
    """uint64 `[keys]`: the first eight bytes of each key's sha256, which stand for it in `choose_validation_hashed`."""
    digests = b"".join(hashlib.sha256(key.encode()).digest()[:8] for key in keys)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def choose_validation_hashed(domains: NDArray[np.integer], works: U64, ids: U64, fraction: float, minimum: int) -> Mask:
    """`choose_validation` of numbered domains and hashed keys: 17 bytes a document, made where the documents are read.

    All arrays are `[documents]`, and so is the mask that comes back.
    """
    chosen = np.zeros(len(domains), np.bool_)
    order = np.argsort(domains, kind="stable")
    starts = np.flatnonzero(np.diff(domains[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        if len(members):
            chosen[members] = _choose(works[members], ids[members], fraction, minimum)
    return chosen


def _choose(works: U64, ids: U64, fraction: float, minimum: int) -> Mask:
    """The same inside one domain."""
    units, first, unit_of = np.unique(works, return_index=True, return_inverse=True)
    if len(units) < FEWEST_WORKS:
        units, first, unit_of = np.unique(ids, return_index=True, return_inverse=True)
    positions = units / 2.0**64
    most = max(len(units) // 4, 1) if len(units) > 1 else 0
    ranked: I64 = np.lexsort((first, positions))[:most]
    taken = np.zeros(len(units), np.bool_)
    taken[ranked] = (np.arange(most) < minimum) | (positions[ranked] < fraction)
    return taken[unit_of]
