"""Tokens, word n-grams and MinHash signatures.

A token is a run of letters, digits, underscores and combining marks, with ASCII capitals taken as small letters; each
ideograph or kana is one by itself. An n-gram's hash is that of its tokens in order, so the same words have the same
hash whatever stands between them.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import characters
from .jit import compiled
from .layout import I64, U8, U32, U64

TOKEN, SINGLE, CAPITAL = 1, 2, 4

_SEED, _P = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xA24BAED4963EE407)
_HALF = np.uint64(32)
_CHUNK = 4096  # n-grams whose minima are taken at a time: they stay in the processor's first cache
_LARGEST = np.uint32(0xFFFFFFFF)


@cache
def classes() -> NDArray[np.uint8]:
    """The table of character classes that `tokens` takes."""
    of = characters.alphabet()
    return characters.table({TOKEN: of.tokens, SINGLE: of.singles, CAPITAL: of.among(string.ascii_uppercase)})


@compiled
def _mixed(h: Any) -> Any:
    """splitmix64's finalizer, as in `scan.py`."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@compiled
def _character(data: U8, i: int, end: int) -> tuple[Any, int]:
    """(code point, length in bytes) of the character outside ASCII at `i`, as in `scan.py`."""
    lead = data[i]
    if lead >= 0xF0 and i + 3 < end:
        high = (np.int64(lead & 7) << 18) | (np.int64(data[i + 1] & 63) << 12)
        return high | (np.int64(data[i + 2] & 63) << 6) | np.int64(data[i + 3] & 63), 4
    if lead >= 0xE0 and i + 2 < end:
        return (np.int64(lead & 15) << 12) | (np.int64(data[i + 1] & 63) << 6) | np.int64(data[i + 2] & 63), 3
    if lead >= 0xC0 and i + 1 < end:
        return (np.int64(lead & 31) << 6) | np.int64(data[i + 1] & 63), 2
    return np.int64(lead), 1


@compiled
def tokens(data: U8, offsets: I64, classes: U8, hashes: U64, places: I64) -> None:
    """uint64 `hashes` of the tokens; those of document d, which is `data[offsets[d]:offsets[d + 1]]`, come to stand
    from `places[d]` to `places[d + 1]`."""
    found = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        h, length = _SEED, 0
        while i < end:
            code, step = np.int64(data[i]), 1
            if code >= 0x80:
                code, step = _character(data, i, end)
            flags = classes[code]
            if length and (not flags & TOKEN or flags & SINGLE):
                hashes[found] = _mixed(h ^ np.uint64(length))
                found += 1
                h, length = _SEED, 0
            if flags & TOKEN:
                h = (h ^ np.uint64(data[i] | np.uint8((flags & CAPITAL) << 3))) * _P
                for k in range(1, step):
                    h = (h ^ np.uint64(data[i + k])) * _P
                length += step
                if flags & SINGLE:
                    hashes[found] = _mixed(h ^ np.uint64(length))
                    found += 1
                    h, length = _SEED, 0
            i += step
        if length:
            hashes[found] = _mixed(h ^ np.uint64(length))
            found += 1
        places[d + 1] = found


@compiled
def ngrams(tokens: U64, places: I64, n: int, short: bool, hashes: U64, offsets: I64) -> None:
    """uint64 `hashes` of the n-grams of each document, in order; those of document d from `offsets[d]` to
    `offsets[d + 1]`. A document of 1 to n - 1 tokens has one n-gram, all its tokens, if `short`, else none."""
    power = np.uint64(1)
    for _ in range(n):
        power *= _MULTIPLIER
    found = 0
    for d in range(len(places) - 1):
        start, end = places[d], places[d + 1]
        rolling = np.uint64(0)
        for i in range(start, end):
            rolling = rolling * _MULTIPLIER + tokens[i]
            if i >= start + n:
                rolling -= power * tokens[i - n]
            if i >= start + n - 1:
                hashes[found] = _mixed(rolling)
                found += 1
        if short and start < end < start + n:
            hashes[found] = _mixed(rolling)
            found += 1
        offsets[d + 1] = found


@compiled
def minima(hashes: U64, offsets: I64, factors: U32, terms: U32, result: U32) -> None:
    """uint32 `result[documents, permutations]`: the smallest factor * x + term (mod 2**32) of the n-grams of each
    document, x the upper half of an n-gram's hash; the largest uint32 where there is none."""
    chunk = np.empty(_CHUNK, np.uint32)
    for d in range(len(offsets) - 1):
        result[d, :] = _LARGEST
        for start in range(offsets[d], offsets[d + 1], _CHUNK):
            size = min(_CHUNK, offsets[d + 1] - start)
            for i in range(size):
                chunk[i] = np.uint32(hashes[start + i] >> _HALF)
            for p in range(len(factors)):
                factor, term, smallest = factors[p], terms[p], result[d, p]
                for i in range(size):
                    smallest = min(smallest, np.uint32(factor * chunk[i] + term))
                result[d, p] = smallest
