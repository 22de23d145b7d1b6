"""How well a classifier tells good from bad in sources it was not trained on.

Every source is held out once, whole: a classifier that has seen other pages of the same site, or of the same log, is
judged too well. The figure is the area under the ROC curve: the chance that a good example scores above a bad one.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gristmill.data.config import ClassifierTraining

from .examples import LABELS, Examples
from .predict import Classifier
from .train import fit

F64 = NDArray[np.float64]

FOLDS = 5
_DRAWS, _SEED = 1000, 20161
_INTERVAL = (2.5, 97.5)


def area_under_curve(good: NDArray[np.float32], bad: NDArray[np.float32]) -> float:
    """The share of pairs in which the good score is the higher one, equal scores counting half (Mann-Whitney U)."""
    ordered = np.sort(bad)
    below, up_to = np.searchsorted(ordered, good, "left"), np.searchsorted(ordered, good, "right")
    return float((below + up_to).sum() / (2 * len(good) * len(bad)))


def evaluate(examples: Examples, options: ClassifierTraining) -> dict[str, Any]:
    """Figures by cross-validation over sources: `auc`, the mean of the folds, `auc_interval`, 95 % by a bootstrap over
    sources, `fold_auc`, and for each source its AUC against the other side of its fold and its median score. `auc` is
    None where a side has fewer than two sources of its own, since then nothing can be held out."""
    sides = [sorted({s for s, own in zip(examples.sources, examples.labels, strict=True) if own == k}) for k in (0, 1)]
    folds = min(FOLDS, *map(len, sides))
    fold_of: dict[str, int] = {}
    for side in sides:  # a source that has good and bad examples is held out with both
        others = sorted((source for source in side if source not in fold_of), key=_digest)
        fold_of |= {source: place % folds for place, source in enumerate(others)}
    if folds < 2 or any({fold_of[source] for source in side} != set(range(folds)) for side in sides):
        return {"auc": None, "auc_interval": None, "fold_auc": [], "sources": {}}
    of_example = np.array([fold_of[source] for source in examples.sources])
    measured = []
    sources: dict[str, dict[str, Any]] = {}
    for fold in range(folds):
        model = fit(*examples.part(of_example != fold)[:2], LABELS, options)
        held_out = examples.part(of_example == fold)
        result = _measure(held_out, Classifier(model).scores(held_out.texts))
        measured.append(result)
        sources |= result.sources
    draws = _bootstrap(measured)
    low, high = np.percentile(draws, _INTERVAL)
    return {
        "auc": round(float(np.mean([result.auc for result in measured])), 4),
        "auc_interval": [round(float(low), 4), round(float(high), 4)],
        "fold_auc": [round(result.auc, 4) for result in measured],
        "sources": dict(sorted(sources.items())),
    }


class _Measured(NamedTuple):
    """One fold: its AUC, that of each pair of a good and a bad source [good, bad], and the pairs of examples."""

    auc: float
    areas: F64
    weights: F64
    sources: dict[str, dict[str, Any]]


def _measure(held_out: Examples, scores: NDArray[np.float32]) -> _Measured:
    names = np.array(held_out.sources)
    parts = [{str(n): scores[names == n] for n in np.unique(names[held_out.labels == k])} for k in (0, 1)]
    bad, good = parts
    areas = np.array([[area_under_curve(g, b) for b in bad.values()] for g in good.values()])
    weights = np.array([[len(g) * len(b) for b in bad.values()] for g in good.values()], np.float64)
    sources = {}
    for name, own in good.items():
        sources[name] = _figures("good", own, area_under_curve(own, np.concatenate(list(bad.values()))))
    for name, own in bad.items():
        sources[name] = _figures("bad", own, area_under_curve(np.concatenate(list(good.values())), own))
    return _Measured(float((areas * weights).sum() / weights.sum()), areas, weights, sources)


def _figures(label: str, scores: NDArray[np.float32], auc: float) -> dict[str, Any]:
    return {
        "label": label,
        "examples": len(scores),
        "auc": round(auc, 4),
        "median_score": round(float(np.median(scores)), 4),
    }


def _bootstrap(folds: list[_Measured]) -> F64:
    """The mean AUC of the folds, with the sources of each fold and side drawn anew with replacement."""
    random = np.random.Generator(np.random.PCG64(_SEED))
    draws = np.zeros(_DRAWS)
    for fold in folds:
        good, bad = fold.areas.shape
        for draw in range(_DRAWS):
            chosen = np.ix_(random.integers(good, size=good), random.integers(bad, size=bad))
            draws[draw] += (fold.areas[chosen] * fold.weights[chosen]).sum() / fold.weights[chosen].sum()
    return draws / len(folds)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
