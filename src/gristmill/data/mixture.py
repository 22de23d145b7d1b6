"""Which documents are kept for validation, and how much each domain weighs in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from gristmill.errors import GristmillError


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
    chosen: list[bool] = [False] * len(ids)
    members: dict[str, list[int]] = {}
    for i, domain in enumerate(domains):
        members.setdefault(domain, []).append(i)
    for indices in members.values():
        few = len({works[i] for i in indices}) < 4
        units: dict[str, list[int]] = {}
        for i in indices:
            units.setdefault(ids[i] if few else works[i], []).append(i)
        ranked = sorted(units, key=_position)
        most = max(len(ranked) // 4, 1) if len(ranked) > 1 else 0
        for rank, unit in enumerate(ranked[:most]):
            if rank < minimum or _position(unit) < fraction:
                for i in units[unit]:
                    chosen[i] = True
    return chosen


def mixture(sizes: dict[str, int], weights: dict[str, float] | None, temperature: float) -> dict[str, float]:
    """Each domain's share in training, summing to 1: the given weights, or bytes ** temperature (as in multilingual
    BERT and XLM-R). GristmillError when the weights do not name the domains there are."""
    if weights is not None:
        missing, unknown = sorted(set(sizes) - set(weights)), sorted(set(weights) - set(sizes))
        if missing or unknown:
            said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"names {', '.join(unknown)}"] * bool(unknown)
            raise GristmillError(
                f"corpus.mixture.weights {' and '.join(said)}; the corpus holds {', '.join(sorted(sizes))}"
            )
        raw = {domain: float(weights[domain]) for domain in sorted(sizes)}
    else:
        raw = {domain: float(sizes[domain]) ** temperature for domain in sorted(sizes)}
    total = sum(raw.values())
    return {domain: value / total for domain, value in raw.items()}


def _position(key: str) -> float:
    """A hash of a key as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
