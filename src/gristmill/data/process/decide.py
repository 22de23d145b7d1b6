"""The second phase, at its end: what becomes of every document, decided when all have been seen.

A document's reason is the first of: exact duplicate, the rules in their order (empty, language, heuristics,
contamination, privacy, perplexity, classifier, toxicity), near-duplicate. Of every document a few numbers are held, no
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..dedup.near import cluster_roots
from .compare import Duplicates
from .judge import NO_REASON

EXACT, NEAR = "exact_duplicate", "near_duplicate"
DECISION = np.dtype(
    [
        ("reason", np.int16),  # place in the list of reasons, or NO_REASON
        ("duplicate_of", "S16"),  # id of the document that it repeats, or nothing
        ("similarity", np.float32),  # to that document, or NaN
        ("cluster", "S16"),  # id of the document that stands for all that repeat it
        ("cluster_size", np.int32),
        ("validation", np.bool_),
    ]
)


def all_reasons(rules: Sequence[str]) -> list[str]:
    """Every reason there can be, in the order in which they are looked at."""
    return [EXACT, *rules, NEAR]


def decide(records: NDArray[Any], reasons: NDArray[np.int16], duplicates: Duplicates) -> NDArray[Any]:
    """`DECISION` of every document; nothing is set apart for validation yet. `records` are those of `judge`, `reasons`
    the places in the list of all reasons, or NO_REASON."""
    decided = np.zeros(len(records), DECISION)
    decided["reason"] = reasons
    decided["similarity"] = duplicates.similarity
    repeats = np.flatnonzero(duplicates.of >= 0)
    decided["duplicate_of"][repeats] = duplicates.ids(duplicates.of[repeats], records)
    roots = cluster_roots(duplicates.of)
    decided["cluster"] = duplicates.ids(roots, records)
    _, cluster, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    decided["cluster_size"] = sizes[cluster]
    return decided


def decision_columns(decided: NDArray[Any], reasons: pa.Array) -> dict[str, pa.Array]:
    """Decisions as columns of the tables. `reasons` is the list of all reasons."""
    kept = decided["reason"] == NO_REASON
    original, similarity = decided["duplicate_of"], np.ascontiguousarray(decided["similarity"])
    split = np.where(decided["validation"], "validation", "train")
    return {
        "reason": reasons.take(pa.array(decided["reason"].astype(np.int32), mask=kept)),
        "duplicate_of": pa.array(original.astype("U16"), pa.string(), mask=original == b""),
        "similarity": pa.array(similarity, mask=np.isnan(similarity)),
        "cluster": pa.array(decided["cluster"].astype("U16"), pa.string()),
        "cluster_size": pa.array(np.ascontiguousarray(decided["cluster_size"])),
        "split": pa.array(split, pa.string(), mask=~kept),
        "kept": pa.array(kept),
    }
