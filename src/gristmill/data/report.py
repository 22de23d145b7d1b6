"""`report.json` of a corpus: what came in, what each step took out and why, what is left. Counts only, no clock."""

from __future__ import annotations

from typing import Any

from .config import CorpusConfig
from .minhash import Matches
from .privacy import KINDS

Count = dict[str, int]


def make_report(
    columns: dict[str, list[Any]],
    read: dict[str, list[int]],
    validation: list[bool],
    matches: Matches,
    weights: dict[str, float],
    config: CorpusConfig,
) -> dict[str, Any]:
    """The report as a JSON value. `columns` holds lists of each document's domain, bytes, reason and personal data."""
    domains = sorted(read)
    rows = list(zip(columns["domain"], columns["bytes"], columns["reason"], validation, strict=True))
    return {
        "domains": {domain: _stages([row for row in rows if row[0] == domain], read[domain]) for domain in domains},
        "removed": _removed(rows),
        "personal_data": {
            kind: {domain: _sum(columns["domain"], columns[kind], domain) for domain in domains} for kind in KINDS
        },
        "near_duplicates": {
            "pairs_compared": matches.compared,
            "pairs_similar": matches.similar,
            "removed": len(matches.duplicates),
        },
        "weights": weights,
        "settings": config.model_dump(mode="json"),
    }


def _stages(rows: list[tuple[str, int, str | None, bool]], read: list[int]) -> dict[str, Count]:
    """Documents and bytes of one domain after each step, in the order of the steps."""
    left = rows
    stages = {"collected": {"documents": read[0], "bytes": read[1]}, "cut": _count(rows)}
    for step, families in (
        ("without_exact_duplicates", ("exact_duplicate",)),
        ("after_rules", ("empty", "code", "gopher_quality", "gopher_repetition", "page")),
        ("after_privacy", ("privacy",)),
        ("without_near_duplicates", ("near_duplicate",)),
    ):
        left = [row for row in left if row[2] is None or row[2].partition(":")[0] not in families]
        stages[step] = _count(left)
    stages["train"] = _count([row for row in left if not row[3]])
    stages["validation"] = _count([row for row in left if row[3]])
    return stages


def _removed(rows: list[tuple[str, int, str | None, bool]]) -> dict[str, dict[str, Count]]:
    """reason -> domain -> documents and bytes."""
    reasons = sorted({reason for _, _, reason, _ in rows if reason is not None})
    return {
        reason: {
            domain: _count([row for row in rows if row[2] == reason and row[0] == domain])
            for domain in sorted({row[0] for row in rows if row[2] == reason})
        }
        for reason in reasons
    }


def _count(rows: list[tuple[str, int, str | None, bool]]) -> Count:
    return {"documents": len(rows), "bytes": sum(row[1] for row in rows)}


def _sum(domains: list[str], values: list[int], domain: str) -> int:
    return sum(value for name, value in zip(domains, values, strict=True) if name == domain)
