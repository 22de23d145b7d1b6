"""The panel of processing: what each step took out and why, what it looked like, what is left and how it is weighed."""

from __future__ import annotations

from typing import Any

from .documents import count_by, samples_by
from .files import Run, as_dict, as_list, as_number, total
from .sections import Section, documents, figures, histograms, missing, table

STAGES = (
    ("collected", "collected"),
    ("cut", "cut to size"),
    ("without_exact_duplicates", "without exact duplicates"),
    ("after_rules", "passed the rules"),
    ("after_privacy", "passed privacy"),
    ("without_near_duplicates", "without near-duplicates"),
    ("train", "for training"),
    ("validation", "for validation"),
)
STEPS = {
    "collected": "as collected",
    "prepared": "cleaned and cut",
    "exact_duplicate": "exact duplicates",
    "near_duplicate": "near-duplicates",
    "train": "for training",
    "validation": "for validation",
}
ALWAYS_DRAWN = ("bytes", "language_score", "perplexity", "quality_score", "toxicity_score")
SHOWN_CLUSTERS = 10


def kept_and_removed(run: Run) -> Section:
    """What stayed and what went, by domain, counted in the tables themselves."""
    directory = run.artifact("corpus")
    if directory is None:
        return missing(run, "corpus", "Corpus")
    kept = _by_domain(count_by(directory / "documents", _hash(run), ("domain",)))
    removed = _by_domain(count_by(directory / "removed", _hash(run), ("domain",)))
    rows = []
    for domain in sorted({*kept, *removed}):
        stayed, gone = kept.get(domain, {}), removed.get(domain, {})
        left, taken = stayed.get("documents", 0), gone.get("documents", 0)
        rows.append((domain, left, taken, stayed.get("bytes"), taken / (left + taken)))
    columns = [
        ("domain", "text"),
        ("kept", "count"),
        ("removed", "count"),
        ("text kept", "bytes"),
        ("removed", "percent+bar"),
    ]
    return table("kept", "Kept and removed", columns, rows)


def mixture(run: Run) -> Section | None:
    """Each domain's share of training, what that draws of it, and how often it is gone through."""
    report = _report(run)
    settled = as_dict(as_dict(report.get("mixture")).get("domains"))
    if settled:
        rows = [
            (domain, *(as_dict(entry).get(key) for key in ("weight", "tokens", "drawn_tokens", "epochs")))
            for domain, entry in settled.items()
        ]
        columns = [
            ("domain", "text"),
            ("share of training", "percent+bar"),
            ("tokens", "short"),
            ("drawn", "short"),
            ("epochs", "number"),
        ]
        budget = as_number(as_dict(report.get("mixture")).get("token_budget")) or 0
        return table("mixture", "Mixture", columns, rows, f"Tokens are estimates; drawn for {budget:,.0f} of them.")
    weights = as_dict(report.get("weights"))
    rows = [(domain, weight) for domain, weight in sorted(weights.items())]
    columns = [("domain", "text"), ("share of training", "percent+bar")]
    return table("mixture", "Mixture", columns, rows) if rows else None


def funnel(run: Run) -> Section | None:
    """What every step took out and left, in the order of the steps; rules that took nothing are left out."""
    steps = [as_dict(step) for step in as_list(_report(run).get("funnel"))]
    rows = []
    for step in steps:
        left, removed = as_dict(step.get("left")), as_dict(step.get("removed"))
        if removed and not removed.get("documents"):
            continue
        name = str(step.get("step"))
        taken = (removed.get("documents"), removed.get("bytes"))
        rows.append((STEPS.get(name, name), *taken, *(left.get(key) for key in ("documents", "bytes", "tokens"))))
    columns = [
        ("step", "text"),
        ("removed", "count"),
        ("text removed", "bytes+bar"),
        ("left", "count"),
        ("text left", "bytes+bar"),
        ("tokens left", "short"),
    ]
    note = "A document counts for the first rule that it breaks. Tokens are estimates."
    return table("funnel", "Step by step", columns, rows, note, wide=True) if rows else None


def stages(run: Run) -> Section | None:
    """Documents left after each group of steps, by domain."""
    domains = as_dict(_report(run).get("domains"))
    shown = [(key, label) for key, label in STAGES if any(key in as_dict(part) for part in domains.values())]
    if not shown:
        return None
    rows = [
        (name, *(as_dict(as_dict(part).get(key)).get("documents") for key, _ in shown))
        for name, part in domains.items()
    ]
    rows.append(("all", *(sum(as_number(row[i]) or 0 for row in rows) for i in range(1, len(shown) + 1))))
    columns = [("domain", "text"), *((label, "count") for _, label in shown)]
    return table("stages", "By domain", columns, rows, "Documents left after each stage, in this order.", wide=True)


def reasons(run: Run) -> Section | None:
    directory = run.artifact("corpus")
    if directory is None:
        return None
    counted = count_by(directory / "removed", _hash(run), ("reason",))
    rows = sorted(((row["reason"], row["documents"]) for row in counted), key=lambda row: (-row[1], row[0]))
    columns = [("reason", "text"), ("documents", "count+bar")]
    return table("reasons", "Why documents were removed", columns, rows) if rows else None


def languages(run: Run) -> Section | None:
    found = as_dict(_report(run).get("languages"))
    rows = []
    for name, sides in found.items():
        kept, removed = as_dict(as_dict(sides).get("kept")), as_dict(as_dict(sides).get("removed"))
        rows.append((name or "(none)", kept.get("documents"), kept.get("bytes"), removed.get("documents")))
    columns = [("language", "text"), ("kept", "count"), ("text kept", "bytes+bar"), ("removed", "count")]
    return table("corpus-languages", "Languages", columns, rows) if rows else None


def values(run: Run) -> Section | None:
    """Histograms of the values that rules look at: those where a rule removed something, and a few others."""
    report = _report(run)
    removed = as_dict(report.get("removed"))
    items = []
    for name, entry in as_dict(report.get("histograms")).items():
        cuts: dict[str, set[float]] = {}
        for found in as_dict(entry["thresholds"]).values():
            for reason, cut in found.items():
                cuts.setdefault(reason, set()).add(cut)
        if name in ALWAYS_DRAWN or any(reason in removed for reason in cuts):
            items.append(_histogram(name, entry, {reason: sorted(found) for reason, found in cuts.items()}))
    note = "All documents but exact copies. Dashed lines are thresholds. The verb data report draws every value."
    return histograms("values", "What the rules saw", items, note) if items else None


def _histogram(name: str, entry: dict[str, Any], cuts: dict[str, list[float]]) -> dict[str, Any]:
    bins = entry["bins"]
    whole = [sum(column) for column in zip(*entry["documents"].values(), strict=True)]
    gone = [sum(column) for column in zip(*entry["removed"].values(), strict=True)]
    return {
        "title": name,
        "note": ", ".join(f"{reason} {' or '.join(f'{cut:,g}' for cut in found)}" for reason, found in cuts.items()),
        "bins": bins,
        "kept": [a - b for a, b in zip(whole, gone, strict=True)],
        "removed": gone,
        "cuts": [[cut, f"{reason}: {cut:,g}"] for reason, found in cuts.items() for cut in found],
    }


def personal_data(run: Run) -> Section | None:
    """What was found, by kind; most of it is replaced by a placeholder."""
    found = as_dict(_report(run).get("personal_data"))
    rows = [(kind.replace("_", " "), total(count)) for kind, count in found.items()]
    return table("personal-data", "Personal data", [("kind", "text"), ("found", "count+bar")], rows) if rows else None


def near_duplicates(run: Run) -> Section | None:
    found = as_dict(_report(run).get("near_duplicates"))
    items = [(name.replace("_", " "), as_number(value), "count") for name, value in found.items()]
    return figures("near-duplicates", "Near-duplicates", items) if items else None


def evaluation_sets(run: Run) -> Section | None:
    """What was kept out of training: items looked for, those too short for that, documents that held one."""
    report = _report(run)
    rows = []
    for name, items in as_dict(report.get("evaluation_sets")).items():
        held = total(_documents(report, f"contaminated:{name}")) or 0
        rows.append((name, as_dict(items).get("items"), as_dict(items).get("too_short"), held))
    columns = [("set", "text"), ("items", "count"), ("too short", "count"), ("documents removed", "count")]
    note = "Items with fewer words than are compared at once cannot be looked for."
    return table("evaluation-sets", "Evaluation sets", columns, rows, note) if rows else None


def clusters(run: Run) -> Section | None:
    """The largest groups of documents that are alike: the one that stays, then some of the others."""
    items = []
    for cluster in as_list(as_dict(_report(run).get("clusters")).get("largest"))[:SHOWN_CLUSTERS]:
        kept = cluster["kept"]
        group = {"group": str(kept.get("origin", kept["id"])), "group_note": f"{cluster['duplicates']:,} like it"}
        for entry in (kept, *cluster["members"]):
            if "text" in entry:
                values = entry["values"]
                label = "stays" if entry is kept else _similarity(values)
                items.append({**_sample(entry), **group, "label": label})
    return documents("clusters", "The largest clusters of duplicates", items) if items else None


def _similarity(values: dict[str, Any]) -> str:
    alike = as_number(values.get("similarity"))
    return f"{alike:.2f} alike" if alike is not None else str(values.get("reason", "removed")).replace("_", " ")


def removed_samples(run: Run) -> Section | None:
    """Some documents of each reason with the value that decided; of a corpus without them in its report, one each."""
    report = _report(run)
    sampled = as_dict(report.get("samples"))
    order = [str(as_dict(step).get("step")) for step in as_list(report.get("funnel"))]
    items = [
        {**_sample(entry), "group": reason, "group_note": f"{total(_documents(report, reason)) or 0:,} documents"}
        for reason in order
        for entry in as_list(sampled.get(reason))
    ]
    directory = run.artifact("corpus")
    if not items and directory is not None:
        items = [
            {
                "label": str(row["reason"]),
                "meta": f"{row['source']}, {row['origin']}",
                "text": row["text"],
                "characters": row["characters"],
            }
            for row in samples_by(directory / "removed", _hash(run), "reason", 1)
        ]
    return documents("removed-samples", "Removed documents", items) if items else None


def kept_samples(run: Run) -> Section | None:
    """Some documents of each domain that stay."""
    items = [
        {**_sample(entry), "group": key.removeprefix("kept/")}
        for key, entries in as_dict(_report(run).get("samples")).items()
        if key.startswith("kept/")
        for entry in as_list(entries)
    ]
    return documents("kept-samples", "Documents that stay", items) if items else None


def problems(run: Run) -> Section | None:
    """What was wrong with the input."""
    found = [as_dict(problem) for problem in as_list(_report(run).get("problems"))]
    keys = list(dict.fromkeys(key for problem in found for key in problem))
    rows = [[str(problem.get(key, "")) for key in keys] for problem in found]
    return (
        table("problems", "Problems in the input", [(key, "text") for key in keys], rows, wide=True) if rows else None
    )


def _sample(entry: dict[str, Any]) -> dict[str, Any]:
    values = [
        f"{name} {value:,g}" if as_number(value) is not None else f"{name} {value}"
        for name, value in entry["values"].items()
    ]
    return {
        "label": ", ".join(values) or str(entry["source"]),
        "meta": ", ".join(str(entry[key]) for key in ("domain", "source", "origin", "id") if entry.get(key)),
        "text": entry["text"],
        "characters": entry["characters"],
    }


def _documents(report: dict[str, Any], reason: str) -> dict[str, Any]:
    by_domain = as_dict(as_dict(report.get("removed")).get(reason))
    return {domain: as_dict(count).get("documents") for domain, count in by_domain.items()}


def _report(run: Run) -> dict[str, Any]:
    return as_dict(run.json("corpus", "report.json"))


def _by_domain(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["domain"]: row for row in rows}


def _hash(run: Run) -> str:
    manifest = run.manifest("corpus")
    return manifest.hash if manifest else ""


PROCESSING = (
    kept_and_removed,
    mixture,
    funnel,
    stages,
    values,
    reasons,
    languages,
    personal_data,
    near_duplicates,
    evaluation_sets,
    removed_samples,
    kept_samples,
    clusters,
    problems,
)
