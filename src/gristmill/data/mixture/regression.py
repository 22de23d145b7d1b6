"""A metric of proxy models as a function of their mixture: loss = floor + exp(slopes . shares).

The form of Data Mixing Laws (arXiv 2403.16952) that Olmix calls log-linear (arXiv 2602.12237). As shares sum to 1, a
factor before the exponential is part of the slopes. Fitted with numpy alone: a start by linear least squares on
log(loss - floor) for a row of floors, then Levenberg-Marquardt on the losses themselves, with Huber's weights, so that
a few proxies that went wrong do not bend the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

STARTS = 12
STEPS = 200
HUBER = 1.345  # 95 % efficient where the noise is normal


@dataclass(frozen=True)
class MetricFit:
    """loss(w) = floor + exp(slopes . w); `slopes` is `[domains]`."""

    floor: float
    slopes: F64

    def predict(self, ratios: F64) -> F64:
        """Losses `[...]` of mixtures `[..., domains]`."""
        return np.asarray(self.floor + np.exp(ratios @ self.slopes))


def fit_metric(ratios: F64, losses: F64, start: MetricFit | None = None) -> MetricFit:
    """The fit of `losses` `[runs]`, all positive, to `ratios` `[runs, domains]`."""
    spread = float(losses.std())
    starts = [start] if start else _starts(ratios, losses, spread)
    fits = [_descend(ratios, losses, one, np.inf) for one in starts]
    best = min(fits, key=lambda fit: float(np.square(fit.predict(ratios) - losses).sum()))
    residuals = np.abs(best.predict(ratios) - losses)
    scale = 1.4826 * float(np.median(residuals))
    return _descend(ratios, losses, best, HUBER * max(scale, 1e-6 * spread))


def leave_one_out(ratios: F64, losses: F64, fit: MetricFit) -> F64:
    """What the fit of all other runs foretells for each run, `[runs]`."""
    foretold = np.empty_like(losses)
    for run in range(len(losses)):
        others = np.arange(len(losses)) != run
        foretold[run] = fit_metric(ratios[others], losses[others], fit).predict(ratios[run])
    return foretold


def rank_correlation(a: F64, b: F64) -> float:
    """Spearman's rho: the correlation of the ranks, equal values sharing their mean rank."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def _ranks(values: F64) -> F64:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - counts + ends - 1) / 2)[place])


def _starts(ratios: F64, losses: F64, spread: float) -> list[MetricFit]:
    """Linear fits of log(loss - floor), each row weighed by (loss - floor), for floors from 0 up to the least loss."""
    lowest = float(losses.min())
    below = np.geomspace(max(0.05 * spread, 1e-12), lowest, STARTS)
    found = []
    for floor in lowest - below:
        above = losses - floor
        slopes = np.linalg.lstsq(ratios * above[:, None], np.log(above) * above, rcond=None)[0]
        found.append(MetricFit(float(floor), slopes))
    return found


def _descend(ratios: F64, losses: F64, start: MetricFit, delta: float) -> MetricFit:
    """Levenberg-Marquardt on Huber's loss of the residuals (`delta` infinite: plain squares); the floor stays between 0
    and the least loss."""
    fit, damping = start, 1e-3
    cost = _cost(fit, ratios, losses, delta)
    for _ in range(STEPS):
        curve = np.exp(ratios @ fit.slopes)
        residuals = losses - fit.floor - curve
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        jacobian = np.column_stack([np.ones_like(losses), ratios * curve[:, None]])
        normal = jacobian.T @ (jacobian * weights[:, None])
        gradient = jacobian.T @ (weights * residuals)
        scale = np.diag(normal) + 1e-12
        step = np.linalg.solve(normal + damping * np.diag(scale), gradient)
        floor = min(max(fit.floor + float(step[0]), 0.0), float(losses.min()))
        tried = MetricFit(floor, np.clip(fit.slopes + step[1:], -50.0, 50.0))
        new = _cost(tried, ratios, losses, delta)
        if new < cost:
            done = cost - new <= 1e-12 * cost
            fit, cost, damping = tried, new, max(damping / 5, 1e-12)
            if done:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return fit


def _cost(fit: MetricFit, ratios: F64, losses: F64, delta: float) -> float:
    size = np.abs(fit.predict(ratios) - losses)
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2) if np.isfinite(delta) else 0.0).sum())
