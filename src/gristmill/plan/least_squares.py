"""Least squares whose unknowns cannot be negative."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray


def non_negative_least_squares(matrix: NDArray, target: NDArray, rounds: int = 300) -> NDArray:
    """The x >= 0 with the least |matrix x - target|, by active sets (Lawson and Hanson 1974, chapter 23): unknowns are
    let go from 0 one at a time, the steepest first, and go back where their solution would be negative."""
    import numpy as np

    columns = matrix.shape[1]
    free, x = np.zeros(columns, dtype=bool), np.zeros(columns)
    tolerance = 1e-12 * max(float(np.abs(matrix.T @ target).max(initial=0.0)), 1.0)
    for _ in range(rounds):
        slope = matrix.T @ (target - matrix @ x)
        if free.all() or slope[~free].max() <= tolerance:
            break
        free[np.argmax(np.where(free, -np.inf, slope))] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            falling = free & (trial <= 0)
            if not falling.any():
                x = trial
                break
            # As far towards the trial as all stay above 0; who arrives there is held at 0.
            gap = x[falling] - trial[falling]
            reach = float((x[falling] / np.where(gap == 0, 1.0, gap)).min())
            x = x + reach * (trial - x)
            free &= x > 1e-15
            x[~free] = 0.0
            if not free.any():
                break
    return x
