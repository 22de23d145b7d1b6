"""`report.html`: the whole report on one page that needs no network, no script and no other file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import figures, svg
from .style import STYLE

Report = dict[str, Any]
Counts = Mapping[str, Any]

SHOWN_ROWS = 12  # of languages, licences, sources; the others unfold

# Nothing may be loaded, whatever a document holds; text is escaped besides.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STEP_NAMES = {
    "collected": "as collected",
    "prepared": "cleaned and cut",
    "exact_duplicate": "exact duplicates",
    "near_duplicate": "near-duplicates",
    "train": "for training",
    "validation": "for validation",
}


def page(report: Report) -> str:
    """The page as text. `report` is what `make_report` gives, with counted tokens or without."""
    made = [(id, title, make(report)) for id, title, make in SECTIONS]
    return sheet("Corpus report", token_note(report), made, headline=_headline(report))


def sheet(
    title: str, note: str, sections: Iterable[tuple[str, str, str]], headline: str = "", more_style: str = ""
) -> str:
    """A page of sections (id, title, HTML), with links to those that are not empty. `headline` is HTML."""
    shown = [(id, name, body) for id, name, body in sections if body]
    links = "".join(f'<a href="#{id}">{escape(name)}</a>' for id, name, _ in shown)
    body = "".join(f'<section id="{id}"><h2>{escape(name)}</h2>{content}</section>' for id, name, content in shown)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{more_style}</style></head><body><header><h1>{title}</h1>"
        f'<p class="note">{escape(note)}</p>{headline}<nav>{links}</nav></header>'
        f"<main>{body}</main></body></html>\n"
    )


def token_note(report: Report) -> str:
    """Where the numbers of tokens come from."""
    counted = report.get("tokens")
    if counted is None:
        return f"Tokens are estimated at {report['bytes_per_token']:g} bytes each."
    ratio = counted["bytes"] / counted["tokens"] if counted["tokens"] else 0.0
    if counted["counted"] == "all documents":
        return f"Tokens are counted in all {figures.count(counted['documents'])} documents: {ratio:.3f} bytes each."
    return (
        f"Tokens are estimated from {figures.count(counted['documents'])} documents "
        f"({figures.size(counted['bytes'])}, {ratio:.3f} bytes a token), by domain and reason."
    )


def _headline(report: Report) -> str:
    steps = {step["step"]: step["left"] for step in report["funnel"]}
    before, cut, train, validation = (steps[name] for name in ("collected", "prepared", "train", "validation"))
    items = [
        ("documents collected", figures.count(before["documents"])),
        ("text collected", figures.size(before["bytes"])),
        (
            f"kept, of {figures.counted(cut['documents'], 'piece')}",
            figures.count(train["documents"] + validation["documents"]),
        ),
        ("text kept", figures.size(train["bytes"] + validation["bytes"])),
        ("tokens for training", figures.short(train["tokens"])),
        ("domains", figures.count(len(report["domains"]))),
    ]
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in items)
    return f'<dl class="figures">{cells}</dl>'


# ---- tables


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table of ready HTML cells; columns whose title begins with `#` hold numbers."""
    numeric = [title.startswith("#") for title in head]
    titles = "".join(
        f'<th scope="col"{_class("num" if number else "")}>{escape(title.removeprefix("#"))}</th>'
        for title, number in zip(head, numeric, strict=True)
    )
    lines = []
    for i, row in enumerate(rows):
        cells = [f'<th scope="row">{row[0]}</th>']
        cells += [f"<td{_class('num' if n else '')}>{cell}</td>" for cell, n in zip(row[1:], numeric[1:], strict=True)]
        lines.append(f"<tr{_class(classes[i] if i < len(classes) else '')}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _legend(cut: bool = False) -> str:
    keys = '<span class="key">kept</span><span class="key of-removed">removed</span>'
    keys += '<span class="key of-cut">threshold</span>' if cut else ""
    return f'<p class="note">{keys}</p>'


# ---- sections


def _funnel(report: Report) -> str:
    parts = ["<p>Each document counts for the first rule that it breaks.</p>", _legend(), _steps(report, None)]
    for domain in report["domains"]:
        parts.append(f"<details><summary>{escape(domain)}</summary>{_steps(report, domain)}</details>")
    return "".join(parts)


def _steps(report: Report, domain: str | None) -> str:
    """The steps that took something out of a domain, or of all, and the first and last ones."""

    def side(step: Counts, name: str) -> Counts:
        counts: Counts = step.get(name, {})
        return counts if domain is None or not counts else counts["domains"].get(domain, {})

    rows, classes = [], []
    first = side(report["funnel"][0], "left")
    largest = max(first.get("bytes", 0), side(report["funnel"][1], "left").get("bytes", 0), 1)
    for step in report["funnel"]:
        name, left, gone = str(step["step"]), side(step, "left"), side(step, "removed")
        if "removed" in step and not gone.get("documents"):
            continue
        row = [
            escape(STEP_NAMES.get(name, name)),
            figures.count(gone["documents"]) if gone else "",
            figures.size(gone["bytes"]) if gone else "",
            figures.count(left.get("documents", 0)),
            figures.size(left.get("bytes", 0)),
        ]
        row += [figures.short(left["tokens"])] if "tokens" in first else []
        rows.append([*row, svg.bar(left.get("bytes", 0), gone.get("bytes", 0), largest)])
        classes.append("split" if name in ("train", "validation") else "")
    head = ["step", "#removed", "#text", "#left", "#text", *["#tokens"] * ("tokens" in first), ""]
    return _table(head, rows, classes)


def _mixture(report: Report) -> str:
    mixture = report["mixture"]
    largest = max([entry["weight"] for entry in mixture["domains"].values()] + [0])
    rows = [
        [
            escape(domain),
            figures.size(entry["bytes"]),
            figures.short(entry["tokens"]),
            figures.share(entry["weight"]),
            figures.short(entry["drawn_tokens"]),
            f"{entry['epochs']:.2f}",
            svg.bar(entry["weight"], 0, largest),
        ]
        for domain, entry in mixture["domains"].items()
    ]
    said = "as many tokens as the corpus holds for training"
    given = report["settings"]["mixture"]["token_budget"]
    budget = (
        f"{figures.short(mixture['token_budget'])} tokens"
        if given
        else f"{said}, {figures.short(mixture['token_budget'])}"
    )
    head = ["domain", "#text", "#tokens", "#weight", "#tokens drawn", "#epochs", ""]
    return f"<p>Training text by domain, and what is drawn of it for {budget}.</p>{_table(head, rows)}"


def _removed(report: Report) -> str:
    steps = {step["step"]: step["removed"] for step in report["funnel"] if "removed" in step}
    parts = []
    for reason, removed in steps.items():
        if removed["documents"]:
            note = f"{figures.counted(removed['documents'], 'document')}, {figures.size(removed['bytes'])}"
            parts.append(_documents(reason, note, report["samples"].get(reason, [])))
    if not parts:
        return ""
    return (
        "<p>Some documents of each reason, chosen by a hash of their ids, with the values that decided.</p>"
        + "".join(parts)
    )


def _kept(report: Report) -> str:
    parts = []
    for domain in report["domains"]:
        entries = report["samples"].get(f"kept/{domain}", [])
        if entries:
            parts.append(_documents(domain, "", entries))
    return "".join(parts)


def _documents(title: str, note: str, entries: Sequence[Counts]) -> str:
    shown = "".join(_document(entry) for entry in entries)
    return f'<details><summary>{escape(title)} <span class="note">{note}</span></summary>{shown}</details>'


def _document(entry: Counts) -> str:
    if "text" not in entry:
        return f"<article><p><code>{escape(entry['id'])}</code></p></article>"
    values = [f"{name} {_value(value)}" for name, value in entry["values"].items()]
    where = [entry["domain"], entry["source"], entry["origin"], entry["id"]]
    cut = f"\n… {figures.count(entry['characters'] - len(entry['text']))} more characters"
    text = escape(entry["text"] or "(no text)") + (cut if entry["characters"] > len(entry["text"]) else "")
    decided = f"<p><b>{escape(', '.join(values))}</b></p>" if values else ""
    return f'<article>{decided}<p class="note">{escape(" · ".join(where))}</p><pre tabindex="0">{text}</pre></article>'


def _value(value: Any) -> str:
    return figures.plain(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _histograms(report: Report) -> str:
    if not report["histograms"]:
        return ""
    domains = list(report["domains"])
    by_domain = "".join(
        f"<details><summary>{escape(domain)}</summary>{_charts(report, [domain])}</details>" for domain in domains
    )
    return (
        "<p>All documents but exact copies, by the values that rules look at; point at a column for its numbers. An "
        "arrow stands over one that is cut off.</p>"
        f"{_legend(cut=True)}{_charts(report, domains)}<h3>By domain</h3>{by_domain}"
    )


def _charts(report: Report, domains: Sequence[str]) -> str:
    """The histograms of these domains together; values that are 0 everywhere are only named."""
    charts, idle = [], []
    for name, entry in report["histograms"].items():
        here = [domain for domain in domains if domain in entry["documents"]]
        whole, gone = (
            [sum(column) for column in zip(*(entry[side][domain] for domain in here), strict=True)]
            for side in ("documents", "removed")
        )
        filled = [span for span, number in zip(entry["bins"], whole, strict=False) if number]
        if filled == [[0, 0]]:
            idle.append(name)
        elif filled:
            cuts = _cuts({domain: entry["thresholds"].get(domain, {}) for domain in here})
            words = ", ".join(cuts)
            label = f"{name}: {words}" if len(domains) > 1 else f"{domains[0]}, {name}: {words}"
            caption = f'<b>{escape(name)}</b><span class="note">{escape(words)}</span>'
            picture = svg.histogram(entry["bins"], whole, gone, cuts, label)
            charts.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    note = f'<p class="note">0 in all documents: {escape(", ".join(idle))}.</p>' if idle else ""
    return f'<div class="charts">{"".join(charts)}</div>{note}'


def _cuts(thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The thresholds of a column by their words: `gopher_quality:min_words 50`, and for which domains, if not all."""
    found: dict[tuple[str, float], list[str]] = {}
    for domain, cuts in thresholds.items():
        for reason, cut in cuts.items():
            found.setdefault((reason, cut), []).append(domain)
    return {
        f"{reason} {figures.plain(cut)}" + ("" if len(domains) == len(thresholds) else f" ({', '.join(domains)})"): cut
        for (reason, cut), domains in found.items()
    }


def _groups(report: Report) -> str:
    parts = []
    for key, title in (("languages", "Languages"), ("licenses", "Licences"), ("sources", "Sources")):
        table = report[key]
        largest = max([entry["kept"]["bytes"] + entry["removed"]["bytes"] for entry in table.values()] + [1])
        rows = [
            [
                escape(name or "(none)"),
                figures.count(entry["kept"]["documents"]),
                figures.size(entry["kept"]["bytes"]),
                figures.count(entry["removed"]["documents"]),
                svg.bar(entry["kept"]["bytes"], entry["removed"]["bytes"], largest),
            ]
            for name, entry in table.items()
        ]
        if rows:
            head = [title.lower().removesuffix("s"), "#kept", "#text kept", "#removed", ""]
            rest = rows[SHOWN_ROWS:]
            more = f"<details><summary>{len(rest)} more</summary>{_table(head, rest)}</details>" if rest else ""
            parts.append(f"<div><h3>{title}</h3>{_table(head, rows[:SHOWN_ROWS])}{more}</div>")
    return f'{_legend()}<div class="pair">{"".join(parts)}</div>' if parts else ""


def _clusters(report: Report) -> str:
    found = report["clusters"]
    if not found["largest"] and not found["sizes"]:
        return ""
    counts = report["near_duplicates"]
    said = [f"{name.replace('_', ' ')} {figures.count(value)}" for name, value in counts.items()]
    largest = max([*found["sizes"].values(), 1])
    rows = [[f"{size} documents", figures.count(n), svg.bar(n, 0, largest)] for size, n in found["sizes"].items()]
    parts = [f"<p>Near-duplicates: {escape(', '.join(said))}.</p>" if said else ""]
    parts += ["<h3>Clusters of which one document stays</h3>", _table(["size", "#clusters", ""], rows)] if rows else []
    parts += ["<h3>The largest of all</h3>"] if found["largest"] else []
    for cluster in found["largest"]:
        title = cluster["kept"].get("origin", cluster["kept"]["id"])
        note = f"repeated by {figures.counted(cluster['duplicates'], 'document')}"
        parts.append(_documents(title, note, [cluster["kept"], *cluster["members"]]))
    return "".join(parts)


def _personal(report: Report) -> str:
    table = report["personal_data"]
    domains = list(report["domains"])
    rows = [
        [
            escape(kind.replace("_", " ")),
            figures.count(sum(counts.values())),
            *(figures.count(counts[d]) for d in domains),
        ]
        for kind, counts in table.items()
    ]
    return _table(["kind", "#found", *(f"#{domain}" for domain in domains)], rows) if rows else ""


def _evaluation_sets(report: Report) -> str:
    rows = [
        [
            escape(name),
            figures.count(counts["items"]),
            figures.count(counts["too_short"]),
            figures.count(sum(c["documents"] for c in report["removed"].get(f"contaminated:{name}", {}).values())),
        ]
        for name, counts in report.get("evaluation_sets", {}).items()
    ]
    if not rows:
        return ""
    said = "<p>Items of few words are not looked for: whether the corpus holds them is not known.</p>"
    return said + _table(["set", "#items", "#of them too short", "#documents removed"], rows)


def _problems(report: Report) -> str:
    problems = report["problems"]
    if not problems:
        return ""
    keys = list(dict.fromkeys(key for problem in problems for key in problem))
    rows = [[escape(str(problem.get(key, ""))) for key in keys] for problem in problems]
    return f"<p>What was wrong with the input.</p>{_table(keys, rows)}"


def _settings(report: Report) -> str:
    text = escape(json.dumps(report["settings"], indent=2, ensure_ascii=False))
    return f"<details><summary>All values, defaults too</summary><pre>{text}</pre></details>"


SECTIONS: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
    ("funnel", "Step by step", _funnel),
    ("mixture", "Mixture", _mixture),
    ("removed", "What each rule removed", _removed),
    ("kept", "What stays", _kept),
    ("histograms", "Values", _histograms),
    ("groups", "Languages, licences, sources", _groups),
    ("clusters", "Duplicates", _clusters),
    ("personal", "Personal data", _personal),
    ("evaluations", "Evaluation sets", _evaluation_sets),
    ("problems", "Problems", _problems),
    ("settings", "Settings", _settings),
)
