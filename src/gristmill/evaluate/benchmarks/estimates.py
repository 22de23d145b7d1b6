"""Figures of a sample with their standard errors and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..intervals import normal_quantile, wilson

RESAMPLES = 2000
RESAMPLE_SEED = 0
LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Estimate:
    """A figure, its standard error, and an interval of the confidence that was asked for."""

    value: float
    stderr: float
    low: float
    high: float


def proportion(correct: Sequence[bool], confidence: float = 0.95) -> Estimate:
    """The share of `correct` (two at least): the standard error of a sample's mean, sqrt(p (1 - p) / (n - 1)), and
    Wilson's interval."""
    n = len(correct)
    p = sum(correct) / n
    low, high = wilson(sum(correct), n, confidence)
    return Estimate(p, math.sqrt(p * (1 - p) / (n - 1)), low, high)


def perplexity(log_likelihoods: Sequence[float], confidence: float = 0.95) -> Estimate:
    """exp of the mean negative log-likelihood of an item. Items are drawn again with replacement (Efron 1979): the
    draws' standard deviation and percentiles are standard error and interval. The same items give the same draws."""
    values = np.asarray(log_likelihoods, dtype=np.float64)
    rng = np.random.default_rng(RESAMPLE_SEED)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)])
    draws = np.exp(np.minimum(-means, LARGEST_EXPONENT))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = math.exp(min(-float(values.mean()), LARGEST_EXPONENT))
    return Estimate(value, float(draws.std(ddof=1)), float(low), float(high))


def average(estimates: Sequence[Estimate], confidence: float = 0.95) -> Estimate:
    """The unweighted mean of independent figures: variances add, and the interval is the normal distribution's."""
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    stderr = math.sqrt(sum(estimate.stderr**2 for estimate in estimates)) / len(estimates)
    half = normal_quantile(confidence) * stderr
    return Estimate(value, stderr, value - half, value + half)
