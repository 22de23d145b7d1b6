"""Which domain each sample of a run is drawn from: by weights that may change at given steps."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import GristmillError
from .config import MixturePhase

I64 = NDArray[np.int64]


class Mixture:
    """Sample number i takes its domain from the i-th number of one seeded stream, by the weights of its step.

    So a phase that is added or changed leaves everything before it as it was. `weights`: by domain, in the order by
    which the domains are numbered here, for the steps before the first phase; they need not sum to 1, in phases
    neither.
    """

    def __init__(
        self, weights: Mapping[str, float], phases: Sequence[MixturePhase], batch_size: int, seed: int, source: str
    ):
        self.domains = list(weights)
        steps = [(0, weights), *((phase.from_step, phase.weights) for phase in phases)]
        if len(steps) > 1 and steps[1][0] == 0:
            steps.pop(0)
        for step, named in steps:
            _check(named, self.domains, step, source)
        table = np.array([[named.get(name, 0.0) for name in self.domains] for _, named in steps])  # [phases, domains]
        self.drawn_domains = [name for name, column in zip(self.domains, table.T, strict=True) if column.any()]
        self._starts = np.array([step * batch_size for step, _ in steps])
        self._cumulative = [_cumulative(row) for row in table]
        self._rng = np.random.default_rng([seed, 0])
        self._domain_of = np.empty(0, np.int32)
        self._rank_of = np.empty(0, np.int64)
        self._counts = np.zeros(len(self.domains), np.int64)

    def drawn(self, start: int, end: int) -> tuple[NDArray[np.int32], I64]:
        """For the samples from `start` to `end` (behind the last): the number of each one's domain, and how many
        samples before it were of that domain."""
        self._extend(end)
        return self._domain_of[start:end], self._rank_of[start:end]

    def counts(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples are of each domain that is drawn at all."""
        domains, _ = self.drawn(0, samples)
        counts = np.bincount(domains, minlength=len(self.domains)).tolist()
        return {name: count for name, count in zip(self.domains, counts, strict=True) if name in self.drawn_domains}

    def _extend(self, samples: int) -> None:
        """Know the first `samples` samples, and as many again to come this way seldom."""
        known = len(self._domain_of)
        if samples <= known:
            return
        samples = max(samples, 2 * known, 4096)
        numbers = self._rng.random(samples - known)
        phase_of = np.searchsorted(self._starts, np.arange(known, samples), side="right") - 1
        domain_of = np.empty(samples - known, np.int32)
        rank_of = np.empty(samples - known, np.int64)
        for phase, cumulative in enumerate(self._cumulative):
            mine = phase_of == phase
            domain_of[mine] = np.searchsorted(cumulative, numbers[mine], side="right")
        for domain in range(len(self.domains)):
            mine = domain_of == domain
            count = int(mine.sum())
            rank_of[mine] = np.arange(self._counts[domain], self._counts[domain] + count)
            self._counts[domain] += count
        self._rank_of = np.concatenate([self._rank_of, rank_of])
        self._domain_of = np.concatenate([self._domain_of, domain_of])


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bounds of the domains' shares of [0, 1); exactly 1 from the last domain with a weight on."""
    bounds = np.cumsum(weights / weights.sum())
    bounds[int(np.flatnonzero(weights)[-1]) :] = 1.0
    return bounds


def _check(weights: Mapping[str, float], domains: Sequence[str], step: int, source: str) -> None:
    place = f"the mixture from step {step}"
    for name, weight in weights.items():
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(domains) or 'none'}"
            raise GristmillError(f"{place} names the domain {name!r}, which {source} does not hold: {hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise GristmillError(f"{place} gives domain {name!r} the weight {weight}: give a number from 0 up")
    if not any(weights.values()):
        raise GristmillError(f"{place} gives no domain of {source} a weight above 0")
