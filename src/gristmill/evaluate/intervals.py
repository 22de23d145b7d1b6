"""Confidence intervals: a proportion, the difference of two paired proportions, a ratio over documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

MIN_DOCUMENTS = 5  # with fewer, the spread between documents is hardly known


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, `(low, high)` (Wilson 1927). It holds its level near 0 and 1, where
    small models live, and never leaves [0, 1]."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    z = normal_quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-18
    high = 1.0 if successes == n else centre + half
    return low, high


def paired_difference(a: Sequence[bool], b: Sequence[bool], confidence: float = 0.95) -> tuple[float, float, float]:
    """`(difference, low, high)` of the proportions `a - b`, where item i of both is the same task.

    Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10: the two Wilson intervals are squared and added
    with the correlation phi of the pairs, its numerator reduced by n/2 where positive. It keeps its level where
    few pairs differ, and there the normal approximation does not.
    """
    n = len(a)
    if n == 0 or n != len(b):
        raise ValueError(f"paired lists of {len(a)} and {len(b)} items")
    both = sum(1 for x, y in zip(a, b, strict=True) if x and y)
    only_a = sum(1 for x in a if x) - both
    only_b = sum(1 for y in b if y) - both
    neither = n - both - only_a - only_b
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n, confidence)
    low_b, high_b = wilson(both + only_b, n, confidence)
    phi = _phi(both, only_a, only_b, neither)
    down, up = p_a - low_a, high_b - p_b
    below = math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    down, up = p_b - low_b, high_a - p_a
    above = math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    difference = (only_a - only_b) / n
    return difference, difference - below, difference + above


def ratio_interval(
    strata: Sequence[tuple[np.ndarray, np.ndarray]], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval `(low, high)` of sum(numerators) / sum(denominators) over documents drawn from several domains.

    Each stratum is `(numerators [D], denominators [D])` of one domain's documents. The stratified combined ratio
    estimator (Cochran 1977, Sampling Techniques, section 6.11) with Student's t: whole documents are the units, since
    the tokens of one are anything but independent. None where a stratum has fewer than `MIN_DOCUMENTS`.
    """
    if not strata or min(len(numerators) for numerators, _ in strata) < MIN_DOCUMENTS:
        return None
    total = sum(denominators.sum() for _, denominators in strata)
    ratio = sum(numerators.sum() for numerators, _ in strata) / total
    variance = 0.0
    for numerators, denominators in strata:
        residuals = numerators - ratio * denominators
        variance += len(residuals) * residuals.var(ddof=1)
    freedom = sum(len(numerators) - 1 for numerators, _ in strata)
    half = student_t(freedom, confidence) * math.sqrt(variance) / total
    return float(ratio - half), float(ratio + half)


def student_t(freedom: int, confidence: float) -> float:
    """Two-sided quantile of Student's t by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5), which is
    within 0.1 % from four degrees of freedom on at 95 %."""
    z = normal_quantile(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def normal_quantile(confidence: float) -> float:
    """Two-sided quantile of the normal distribution."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Newcombe's corrected correlation of the pairs; 0 where a margin is empty."""
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(0.0, product - n / 2)
    return product / math.sqrt(margins)
