"""The second phase, at its end: what becomes of every document, decided when all have been seen.

A document's reason is the first of: exact duplicate, the rules in their order (empty, language, heuristics,
contamination, privacy, names, perplexity, classifier, toxicity), near-duplicate. Of every document a few numbers are
held, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.artifact import Figures
from gristmill.errors import GristmillError

from ..dedup.near import cluster_roots
from ..mixture import Mixture, choose_validation_hashed, settle_mixture
from ..step import Rule
from .compare import Duplicates, find_equal, find_similar
from .judge import NO_REASON, judge_all, reasons_of, rules_of
from .models import perplexity_cuts
from .work import Annotated, Work

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


TABLES = ("documents", "removed", "signatures")


@dataclass(frozen=True)
class Verdict:
    """What was decided. `path` is the file of all decisions, one `DECISION` a document; `tables` are those that each
    part has rows for, `clusters` the ids of documents that most others repeat, `figures` numbers for the manifest."""

    path: Path
    reasons: list[str]
    rules: tuple[Rule, ...]
    cuts: str
    tables: list[list[str]]
    clusters: list[str]
    near: dict[str, int]
    mixture: Mixture
    figures: Figures


def decide_all(work: Work, annotated: Annotated) -> Verdict:
    """Decide what becomes of every document."""
    cuts = perplexity_cuts(work, annotated)
    rules = rules_of(work.settings, cuts)
    reasons = [EXACT, *reasons_of(rules), NEAR]
    records, domains = judge_all(work, annotated, cuts)
    duplicates = find_equal(work, annotated, records["reason"] != NO_REASON)
    found = np.where(records["reason"] == NO_REASON, NO_REASON, records["reason"] + 1).astype(np.int16)
    found[duplicates.of >= 0] = 0
    find_similar(work, annotated, duplicates, found == NO_REASON)
    if duplicates.near is not None:
        found[duplicates.near.removed] = len(reasons) - 1
    decided = decisions(records, found, duplicates)
    kept = np.flatnonzero(found == NO_REASON)
    if not len(kept):
        most = reasons[int(np.argmax(np.bincount(found)))]
        raise GristmillError(f"no document is left in the corpus; most were removed as {most}: see corpus.rules")
    keys = [records[name][kept] for name in ("domain", "work", "document")]
    fraction, fewest = work.config.validation_fraction, work.config.min_validation_works
    decided["validation"][kept] = choose_validation_hashed(keys[0], keys[1], keys[2], fraction, fewest)
    train = kept[~decided["validation"][kept]]
    sizes = np.bincount(records["domain"][train], records["bytes"][train], len(domains))
    mixture = settle_mixture({name: int(size) for name, size in zip(domains, sizes, strict=True)}, work.config.mixture)
    path = work.path("decided.npy")
    with work.place.writing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, decided)
    figures = {
        "pieces": len(records),
        "documents": len(kept),
        "bytes": int(records["bytes"][kept].sum()),
        "validation_documents": int(decided["validation"].sum()),
        "removed": _by_family(found, reasons),
        "compared_pairs": duplicates.counts.get("pairs_compared", 0),
        "near_duplicate_pairs": duplicates.counts.get("pairs_similar", 0),
    }
    tables, clusters = _tables(annotated, found), duplicates.largest(records)
    return Verdict(path, reasons, rules, cuts, tables, clusters, duplicates.counts, mixture, figures)


def decisions(records: NDArray[Any], reasons: NDArray[np.int16], duplicates: Duplicates) -> NDArray[Any]:
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


def _by_family(found: NDArray[np.int16], reasons: list[str]) -> dict[str, int]:
    families: dict[str, int] = {}
    for reason, number in zip(reasons, np.bincount(found + 1, minlength=len(reasons) + 1)[1:].tolist(), strict=True):
        if number:
            family = reason.partition(":")[0]
            families[family] = families.get(family, 0) + number
    return dict(sorted(families.items()))


def _tables(annotated: Annotated, found: NDArray[np.int16]) -> list[list[str]]:
    """The tables that each part has rows for; a table without any rows is written by the first part."""
    tables: list[list[str]] = []
    for part in annotated.parts:
        kept = found[annotated.rows(part)] == NO_REASON
        has = {"documents": kept.any(), "removed": not kept.all(), "signatures": True}
        tables.append([table for table in TABLES if has[table]])
    for table in TABLES:
        if not any(table in of_part for of_part in tables):
            tables[0].append(table)
    return tables
