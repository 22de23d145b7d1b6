"""Hashes of tokens, n-grams and signatures of whole columns: the compiled passes of `shingling.py`, called."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import shingling
from .layout import I64, U32, U64, Texts, texts_of

PART_BYTES = 1 << 20
_MASK = (1 << 64) - 1


def tokens_of(texts: Texts) -> tuple[U64, I64]:
    """(hashes, offsets): the tokens of text d are `hashes[offsets[d]:offsets[d + 1]]`, in order."""
    found = np.empty(texts.size // 2 + len(texts), np.uint64)  # two tokens that touch take four bytes
    places = np.zeros(len(texts) + 1, np.int64)
    shingling.tokens(texts.data, texts.offsets, shingling.classes(), found, places)
    return found[: places[-1]], places


def ngrams_of(texts: Texts, n: int, short: bool) -> tuple[U64, I64]:
    """The same of the n-grams of tokens; a text of 1 to n - 1 tokens has one, of all its tokens, if `short`."""
    tokens, places = tokens_of(texts)
    found, offsets = np.empty(len(tokens), np.uint64), np.zeros(len(texts) + 1, np.int64)
    shingling.ngrams(tokens, places, n, short, found, offsets)
    return found[: offsets[-1]], offsets


def minima_of(hashes: U64, offsets: I64, size: int) -> U32:
    """MinHash signatures `[texts, size]`: the minima of `size` permutations x -> a x + b (mod 2**32), a odd, of the
    upper halves of the n-grams' hashes (Broder 1997). A text without n-grams gets the largest value throughout."""
    factors, terms = permutations(size)
    result = np.empty((len(offsets) - 1, size), np.uint32)
    shingling.minima(hashes, offsets, factors, terms, result)
    return result


def signatures_of(texts: Texts, ngram: int, size: int) -> tuple[U32, NDArray[np.bool_]]:
    """(signatures `[texts, size]`, which texts have one: those with a token)."""
    result = np.empty((len(texts), size), np.uint32)
    some = np.empty(len(texts), np.bool_)
    for place, part in texts.parts(PART_BYTES):
        found, offsets = ngrams_of(part, ngram, short=True)
        result[place] = minima_of(found, offsets, size)
        some[place] = np.diff(offsets) > 0
    return result, some


@cache
def permutations(size: int) -> tuple[U32, U32]:
    """(factors, terms) of the permutations: splitmix64's numbers, the same for ever."""
    numbers = [_splitmix(i * 0x9E3779B97F4A7C15) >> 32 for i in range(1, 2 * size + 1)]
    return np.array(numbers[:size], np.uint32) | np.uint32(1), np.array(numbers[size:], np.uint32)


def _splitmix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def shingles(column: pa.Array | pa.ChunkedArray, ngram: int) -> tuple[U64, I64]:
    """(hashes, offsets): `hashes[offsets[d]:offsets[d + 1]]` is the set of n-grams of text d, sorted, each once. A
    text of fewer tokens has one n-gram, of all of them; one without tokens has none."""
    found, offsets = ngrams_of(texts_of(column), ngram, short=True)
    once = np.ones(len(found), np.bool_)
    for start, end in itertools.pairwise(offsets.tolist()):
        part = found[start:end]
        part.sort()
        once[start + 1 : end] = part[1:] != part[:-1]
    return found[once], np.concatenate([[0], np.cumsum(once)])[offsets]
