"""`report.json` of a corpus: what came in, what each step took out and why, what is left. Counts only, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gristmill.artifact import rounded

from ..config import CorpusConfig
from ..mixture import Mixture
from ..rules import language_settings
from ..step import Rule
from . import bins
from .partial import KEPT, LARGEST_CLUSTERS, Part
from .thresholds import threshold

Count = dict[str, int]
SHOWN_SOURCES = 100
SHOWN_LANGUAGES = 60

# The coarse stages of `domains`: what is left once these families of reasons have been applied.
COARSE = (
    ("without_exact_duplicates", ("exact_duplicate",)),
    ("after_rules", None),  # every family that no other stage names
    ("after_privacy", ("privacy",)),
    ("without_near_duplicates", ("near_duplicate",)),
)


def make_report(
    part: Part,
    config: CorpusConfig,
    mixture: Mixture,
    *,
    order: Sequence[str],
    rules: Sequence[Rule] = (),
    near_duplicates: Mapping[str, int] | None = None,
    evaluation_sets: Mapping[str, Mapping[str, int]] | None = None,
    problems: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The report as a JSON value, from all parts merged.

    `order` are all reasons in the order in which they were asked about (a document has the first that fits); a reason
    that it lacks is put behind its own family, or before the near-duplicates. `near_duplicates` are the counts of the
    comparison, `evaluation_sets` those of the items of each set, `problems` what was wrong with the input. Tokens are
    estimated by `config.mixture.bytes_per_token`.
    """
    reasons = _ordered(order, part["reasons"])
    domains = sorted({*part["read"], *(domain for counts in part["reasons"].values() for domain in counts)})
    return rounded(
        {
            "domains": {domain: _coarse(part, reasons, domain) for domain in domains},
            "funnel": funnel(part, reasons, config.mixture.bytes_per_token),
            "removed": {
                reason: {domain: _count(counts) for domain, counts in sorted(part["reasons"][reason].items())}
                for reason in sorted(set(part["reasons"]) - {KEPT})
            },
            "samples": {key: [_shown(entry) for entry in part["samples"][key]] for key in sorted(part["samples"])},
            "histograms": _histograms(part, rules, config, domains),
            "languages": _sides(part["languages"], SHOWN_LANGUAGES),
            "sources": _sides(part["sources"], SHOWN_SOURCES),
            "licenses": _sides(part["licenses"], SHOWN_SOURCES),
            "clusters": _clusters(part["clusters"]),
            "personal_data": {
                kind: {domain: part["personal_data"][kind].get(domain, 0) for domain in domains}
                for kind in part["personal_data"]
            },
            "near_duplicates": dict(near_duplicates or {}),
            "evaluation_sets": dict(evaluation_sets or {}),
            "problems": list(problems),
            "weights": mixture.weights,
            "mixture": mixture.as_json(),
            "bytes_per_token": config.mixture.bytes_per_token,
            "settings": config.model_dump(mode="json"),
            "language_rules": language_settings(config.rules, _ruled(part["rule_languages"])),
        }
    ) | {"weights": mixture.weights}


def _ruled(languages: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of domain and language by which documents were judged."""
    return [(domain, language) for domain, found in languages.items() for language in found if language]


def funnel(part: Part, reasons: Sequence[str], bytes_per_token: float) -> list[dict[str, Any]]:
    """One entry a step: what came into it, what it took out, both in documents, bytes and estimated tokens, in total
    and for each domain. The first is `collected`, the second `prepared` (cleaned and cut: bytes shrink, documents may
    become more), then every reason, then `train` and `validation`, which share out what is left."""

    def measured(counts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        documents, size = (sum(count[i] for count in counts.values()) for i in (0, 1))
        return {
            "documents": documents,
            "bytes": size,
            "tokens": round(size / bytes_per_token),
            "domains": {domain: _count(count) for domain, count in sorted(counts.items())},
        }

    prepared = _sum_domains(part["reasons"].values())
    steps = [{"step": "collected", "left": measured(part["read"])}, {"step": "prepared", "left": measured(prepared)}]
    left = prepared
    for reason in reasons:
        taken = part["reasons"].get(reason, {})
        left = {d: [a - b for a, b in zip(left[d], taken.get(d, (0, 0)), strict=True)] for d in left}
        steps.append({"step": reason, "removed": measured(taken), "left": measured(left)})
    for split in ("train", "validation"):
        steps.append({"step": split, "left": measured(part["splits"].get(split, {}))})
    return steps


def _ordered(order: Sequence[str], found: Iterable[str]) -> list[str]:
    reasons = list(dict.fromkeys(order))
    for reason in sorted(set(found) - {KEPT, *reasons}):
        family = reason.partition(":")[0]
        places = [i for i, known in enumerate(reasons) if known.partition(":")[0] == family]
        near = reasons.index("near_duplicate") if "near_duplicate" in reasons else len(reasons)
        reasons.insert(places[-1] + 1 if places else near, reason)
    return reasons


def _coarse(part: Part, reasons: Sequence[str], domain: str) -> dict[str, Count]:
    """Documents and bytes of one domain after a few stages."""
    counts = {reason: part["reasons"].get(reason, {}).get(domain, (0, 0)) for reason in (*reasons, KEPT)}
    left = [sum(count[i] for count in counts.values()) for i in (0, 1)]
    stages = {"collected": _count(part["read"].get(domain, (0, 0))), "cut": _count(left)}
    named = {family for _, families in COARSE for family in families or ()}
    for stage, families in COARSE:
        for reason in reasons:
            family = reason.partition(":")[0]
            if family in families if families else family not in named:
                left = [a - b for a, b in zip(left, counts[reason], strict=True)]
        stages[stage] = _count(left)
    for split in ("train", "validation"):
        stages[split] = _count(part["splits"].get(split, {}).get(domain, (0, 0)))
    return stages


def _histograms(part: Part, rules: Sequence[Rule], config: CorpusConfig, domains: Sequence[str]) -> dict[str, Any]:
    """column -> bins, and for each domain the documents in each, of them removed, and where rules cut."""
    settings = config.model_dump(mode="json")
    found = {}
    in_order = dict.fromkeys(name for rule in rules for name in rule.reads if name in part["histograms"])
    for name in [*in_order, *sorted(set(part["histograms"]) - set(in_order))]:
        by_domain = part["histograms"][name]
        present = sorted(by_domain)
        series = [
            {int(cell): counts[side] for cell, counts in by_domain[domain].items()}
            for side in (0, 1)
            for domain in present
        ]
        drawn = bins.histogram(series)
        if not drawn.bins:
            continue
        reasons = [rule.reason for rule in rules if name in rule.reads]
        found[name] = {
            "bins": [list(span) for span in drawn.bins],
            "documents": dict(zip(present, drawn.rows, strict=False)),
            "removed": dict(zip(present, drawn.rows[len(present) :], strict=True)),
            "thresholds": {
                domain: {r: cut for r in reasons if (cut := threshold(settings, r, domain)) is not None}
                for domain in present
            },
        }
    return found


def _sides(table: Mapping[str, Mapping[str, Sequence[int]]], most: int) -> dict[str, dict[str, Count]]:
    """Documents and bytes kept and removed of each language, source or licence; the largest, and the others as one."""

    def size(name: str) -> tuple[int, str]:
        return -sum(count[1] for count in table[name].values()), name

    names = sorted(table, key=size)
    shown: dict[str, Mapping[str, Sequence[int]]] = {name: table[name] for name in names[:most]}
    if len(names) > most:
        shown[f"({len(names) - most} others)"] = _sum_domains(table[name] for name in names[most:])
    return {
        name: {side: _count(sides.get(side, (0, 0))) for side in (KEPT, "removed")} for name, sides in shown.items()
    }


def _clusters(found: Mapping[str, Any]) -> dict[str, Any]:
    """How many clusters there are of each size, and the largest with some of their members, but for empty texts."""
    worth_a_look = [id for id in found["counts"] if found["kept"].get(id, {"text": "?"})["text"]]
    largest = sorted(worth_a_look, key=lambda id: (-found["counts"][id], id))[:LARGEST_CLUSTERS]
    return {
        "sizes": {size: found["sizes"][size] for size in sorted(found["sizes"], key=int)},
        "largest": [
            {
                "duplicates": found["counts"][id],
                "kept": _shown(found["kept"][id]) if id in found["kept"] else {"id": id},
                "members": [_shown(entry) for entry in found["members"][id]],
            }
            for id in largest
        ],
    }


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "rank"}


def _sum_domains(tables: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for table in tables:
        for key, count in table.items():
            total[key] = [a + b for a, b in zip(total.get(key, (0, 0)), count, strict=True)]
    return total


def _count(count: Sequence[int]) -> Count:
    return {"documents": int(count[0]), "bytes": int(count[1])}
