"""Interpolated modified Kneser-Ney smoothing: from counts to a model.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98, 1998), in the form of
Heafield, Pouzyrevsky, Clark and Koehn (ACL 2013), whose lmplz gives the same numbers: a discount for counts of 1, 2 and
more at each order, each order interpolated with the one below, unigrams with a uniform distribution over all words
(`<unk>` among them, `<s>` not). Nothing is pruned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled
from gristmill.errors import GristmillError

from .counts import NgramCounts
from .model import BEGIN, NgramModel, empty_table, insert

F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]

FALLBACK = (0.5, 1.0, 1.5)  # lmplz's, where counts are too few to estimate discounts from
_HALF = np.uint64(32)


def discounts(counts: U32) -> tuple[float, float, float]:
    """What is taken off counts of 1, 2, and 3 or more (Chen and Goodman, equation 26). FALLBACK where that has no
    answer or none in range."""
    _, n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[:5].tolist()
    if not (n1 and n2 and n3):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= value <= k for k, value in enumerate(found, 1)) else FALLBACK


def estimate(counts: NgramCounts) -> tuple[NgramModel, list[tuple[float, float, float]]]:
    """(the model, the discounts of each order). Empties `counts` on the way. GristmillError when there is no text."""
    if not counts.tokens:
        raise GristmillError("there is no word to train an n-gram model on: all of the text is empty or blank")
    counts.finish()
    sizes = [len(counts.counts(order)) for order in range(1, counts.order + 1)]
    table, slots = empty_table(sizes)
    values = table.view(np.float32)
    shares = _unigrams(counts.counts(1))
    used = [discounts(counts.counts(1))]
    table[: sizes[0], 0] = np.arange(sizes[0])
    values[: sizes[0], 2] = _log(shares)
    numbers = np.arange(sizes[0], dtype=np.uint32)  # slots of the order below, by number
    for order in range(2, counts.order + 1):
        of_order, keys = counts.counts(order), counts.keys(order)
        used.append(discounts(of_order))
        totals, left = np.zeros(len(shares)), np.zeros(len(shares))
        taken = np.array([0.0, *used[-1]])
        _context_masses(keys, of_order, taken, totals, left)
        np.divide(left, totals, out=left, where=totals > 0)
        values[numbers, 3] = _log(left)
        found = np.empty(len(keys), np.uint32)
        words = keys.astype(np.uint32)  # the lower half
        insert(table, slots[order - 2], slots[order - 1], numbers[keys >> _HALF], words, found)
        shares = _interpolated(keys, of_order, counts.suffixes(order), taken, totals, left, shares)
        values[found, 2] = _log(shares)
        numbers = found
        counts.release(order)
    return NgramModel(counts.tokenization, counts.words, sizes, slots, table), used


def _unigrams(counts: U32) -> F64:
    """Probabilities of single words; that of `<s>` is 1, since it is never asked for."""
    counts = counts.copy()
    counts[BEGIN] = 0
    taken = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
    total = counts.sum(dtype=np.int64)
    shares = (counts - taken) / total + taken.sum() / total / (len(counts) - 1)
    shares[BEGIN] = 1
    return shares


def _log(shares: F64) -> NDArray[np.float32]:
    """log10 where there is something to take it of, else 0: nothing stands behind a context that was never one."""
    return np.log10(shares, out=np.zeros(len(shares)), where=shares > 0).astype(np.float32)


@compiled
def _context_masses(keys, counts, taken, totals, left):  # type: ignore[no-untyped-def]
    """Of each context the sum of its n-grams' counts, and of what the discounts take off them."""
    for i in range(len(keys)):
        context = keys[i] >> _HALF
        totals[context] += counts[i]
        left[context] += taken[min(counts[i], 3)]


@compiled
def _interpolated(keys, counts, suffixes, taken, totals, left, below):  # type: ignore[no-untyped-def]
    """float64 probabilities of the n-grams of one order, from those of the order below."""
    shares = np.empty(len(keys), np.float64)
    for i in range(len(keys)):
        context = keys[i] >> _HALF
        shares[i] = (counts[i] - taken[min(counts[i], 3)]) / totals[context] + left[context] * below[suffixes[i]]
    return shares
