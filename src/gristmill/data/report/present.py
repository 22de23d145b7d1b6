"""The report of a finished corpus: a table for the terminal, `report.json`, and `report.html` to pass on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gristmill.artifact import rounded, write_json, write_text
from gristmill.errors import GristmillError

from . import figures
from .html import page, token_note
from .tokens import CountTokens, Group, Tally, bytes_per_token, count_corpus

Report = dict[str, Any]


def write_report(corpus: Path, out: Path, count_tokens: CountTokens | None = None, exact: bool = False) -> Report:
    """Write `report.json` and `report.html` of the artifact `corpus` into the directory `out`; returns the report.

    With `count_tokens` real token counts take the place of the estimate: of a sample of the documents of each domain
    and reason, carried over by their bytes, or of all documents with `exact`. GristmillError where there is no report.
    """
    report = read_report(corpus)
    if count_tokens is not None:
        report = with_tokens(report, count_corpus(corpus, count_tokens, exact), exact)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    write_text(out / "report.html", page(report))
    return report


def read_report(corpus: Path) -> Report:
    """`report.json` of an artifact `corpus`."""
    path = corpus / "report.json"
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report["funnel"], list):
            raise ValueError("no funnel")
    except (OSError, ValueError, KeyError, TypeError):
        raise GristmillError(f"{path} is missing or no corpus report; run stage 'corpus' again") from None
    return report


def with_tokens(report: Report, tallies: Mapping[Group, Tally], exact: bool) -> Report:
    """The report with its tokens counted: in the funnel, the mixture, and, of the sample, in `tokens`."""
    overall = bytes_per_token(tallies) or float(report["bytes_per_token"])

    def tokens(label: str, counts: Mapping[str, Mapping[str, int]]) -> float:
        return sum(_carried(tallies, label, domain, count["bytes"], overall) for domain, count in counts.items())

    steps = [dict(step) for step in report["funnel"]]
    left = sum(tokens(step["step"], step["left"]["domains"]) for step in steps[-2:])
    for step in reversed(steps[:-2]):
        step["left"] = step["left"] | {"tokens": round(left)}
        if "removed" in step:
            gone = tokens(step["step"], step["removed"]["domains"])
            step["removed"] = step["removed"] | {"tokens": round(gone)}
            left += gone
    collected = report["funnel"][0]["left"]
    steps[0]["left"] = collected | {"tokens": round(collected["bytes"] / overall)}  # no text of it is left to count
    for step in steps[-2:]:
        step["left"] = step["left"] | {"tokens": round(tokens(step["step"], step["left"]["domains"]))}
    return rounded(
        report
        | {
            "funnel": steps,
            "mixture": _mixture(report, tallies, overall),
            "bytes_per_token": overall,
            "tokens": {
                "counted": "all documents" if exact else "a sample",
                "documents": sum(tally.documents for tally in tallies.values()),
                "bytes": sum(tally.bytes for tally in tallies.values()),
                "tokens": sum(tally.tokens for tally in tallies.values()),
                "groups": {
                    label: {domain: tally._asdict() for (name, domain), tally in tallies.items() if name == label}
                    for label in dict.fromkeys(name for name, _ in tallies)
                },
            },
        }
    )


def _carried(tallies: Mapping[Group, Tally], label: str, domain: str, size: int, overall: float) -> float:
    """Tokens of `size` bytes of a group, by the bytes per token that were found in it."""
    tally = tallies.get((label, domain))
    return size * tally.tokens / tally.bytes if tally and tally.bytes else size / overall


def _mixture(report: Report, tallies: Mapping[Group, Tally], overall: float) -> Report:
    mixture = report["mixture"]
    domains = {name: dict(entry) for name, entry in mixture["domains"].items()}
    for name, entry in domains.items():
        entry["tokens"] = round(_carried(tallies, "train", name, entry["bytes"], overall))
    fixed = report["settings"]["mixture"]["token_budget"]
    budget = fixed or sum(entry["tokens"] for entry in domains.values())
    for entry in domains.values():
        entry["drawn_tokens"] = round(entry["weight"] * budget)
        entry["epochs"] = round(entry["weight"] * budget / entry["tokens"], 4) if entry["tokens"] else 0.0
    return {"token_budget": budget, "domains": domains}


def funnel_table(report: Report) -> str:
    """The funnel as lines of text: what each step took out and what it left; then how many rules took nothing."""
    rows = [("step", "removed", "bytes", "left", "bytes", "tokens")]
    idle = 0
    for step in report["funnel"]:
        left, removed = step["left"], step.get("removed")
        if removed is not None and not removed["documents"]:
            idle += 1
            continue
        gone = (figures.count(removed["documents"]), figures.size(removed["bytes"])) if removed else ("", "")
        measured = (figures.count(left["documents"]), figures.size(left["bytes"]), figures.short(left["tokens"]))
        rows.append((step["step"], *gone, *measured))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    notes = [f"{figures.counted(idle, 'more rule')} removed nothing."] if idle else []
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *notes, token_note(report)])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()
