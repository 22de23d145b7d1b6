"""The mixture of the smallest predicted loss, under caps and with a pull towards the natural shares.

A mean of exponentials of linear functions plus a Kullback-Leibler divergence is convex, so there is one smallest value.
It is found by mirror descent on the simplex: multiplicative steps, a projection that only caps and rescales, and a
certificate (the Frank-Wolfe gap) for when to stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .regression import MetricFit

F64 = NDArray[np.float64]

STEPS = 50_000
GAP = 1e-9
SMALLEST = 1e-300
SMALLEST_RATE = 1e-12


def minimise(
    fits: Sequence[MetricFit], importance: F64, natural: F64, caps: F64 | None = None, pull: float = 0.0
) -> F64:
    """The shares `[domains]` of the smallest sum of importance * loss + pull * KL(shares || natural).

    `importance` is `[metrics]` and sums to 1, `natural` `[domains]` likewise; `caps` are the largest shares, summing to
    1 or more. Where the losses do not decide, the shares stay as near to the natural ones as they began.
    """
    slopes = np.stack([fit.slopes for fit in fits])
    most = np.ones_like(natural) if caps is None else np.minimum(caps, 1.0)
    log_natural = np.log(np.maximum(natural, SMALLEST))
    shares = _capped(np.maximum(natural, SMALLEST), most)
    gradient = _gradient(slopes, importance, shares)
    rate = 1.0
    for _ in range(STEPS):
        logs = np.log(np.maximum(shares, SMALLEST))
        full = gradient + pull * (logs - log_natural)
        if full @ (shares - _vertex(full, most)) <= GAP:
            break
        while True:
            aim = (logs + rate * (pull * log_natural - gradient)) / (1 + rate * pull)
            tried = _capped(np.maximum(np.exp(aim - aim.max()), SMALLEST), most)
            slope, step = _gradient(slopes, importance, tried), tried - shares
            # Small enough when the gradient changes by less than the divergence allows. Both sides are sums of
            # products of differences, so they are still exact where the loss itself no longer changes.
            allowed = step @ (np.log(np.maximum(tried, SMALLEST)) - logs) / (2 * rate)
            if (slope - gradient) @ step <= allowed or rate < SMALLEST_RATE:
                break
            rate /= 2
        shares, gradient = tried, slope
        rate *= 1.5
    return shares


def _gradient(slopes: F64, importance: F64, shares: F64) -> F64:
    return np.asarray((importance * np.exp(slopes @ shares)) @ slopes)


def _capped(shares: F64, most: F64) -> F64:
    """The shares on the simplex nearest in KL to the given ones: min(most, factor * share), summing to 1."""
    result = shares / shares.sum()
    open_ones = np.ones(len(shares), np.bool_)
    while True:
        over = open_ones & (result > most)
        if not over.any():
            return result
        open_ones &= ~over
        result = np.where(open_ones, result, most)
        left = max(1.0 - float(result[~open_ones].sum()), 0.0)
        held = float(result[open_ones].sum())
        if not held:
            return result
        result = np.where(open_ones, result * (left / held), result)


def _vertex(gradient: F64, most: F64) -> F64:
    """The allowed shares at which a linear function is smallest: the domains in ascending order, each filled up."""
    shares = np.zeros_like(most)
    left = 1.0
    for domain in np.argsort(gradient, kind="stable"):
        shares[domain] = min(most[domain], left)
        left -= shares[domain]
    return shares
