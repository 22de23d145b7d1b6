"""A report of benchmarks as plain text."""

from __future__ import annotations

from typing import Any

from ..summary import table


def render(report: dict[str, Any]) -> str:
    """One line a figure, the quoted ones marked; then the averages."""
    rows = []
    for name, one in report["benchmarks"].items():
        items = f"{one['items']:,}" + (f" of {one['of']:,}" if one["of"] != one["items"] else "")
        head = [name, items, str(one["num_fewshot"])]
        for figure, estimate in one["figures"].items():
            mark = "*" if figure == one["quoted"] else ""
            rows.append([*head, figure + mark, *_shown(figure, estimate), _chance(one)])
            head = ["", "", ""]
    for label, estimate in report["averages"].items():
        rows.append([label, "", "", f"mean of {len(estimate['benchmarks'])}", *_shown("accuracy", estimate), ""])
    confidence = f"{100 * report['protocol']['confidence']:g} % interval"
    return table(["benchmark", "items", "shots", "figure", "value", "std. error", confidence, "chance"], rows)


def _shown(figure: str, estimate: dict[str, float]) -> tuple[str, str, str]:
    """Value, standard error and interval: accuracies in percent, perplexities as they are."""
    scale = 1 if figure == "perplexity" else 100
    value, stderr, low, high = (scale * estimate[key] for key in ("value", "stderr", "low", "high"))
    return f"{value:.2f}", f"{stderr:.2f}", f"{low:.2f} to {high:.2f}"


def _chance(one: dict[str, Any]) -> str:
    return "" if one["chance"] is None else f"{100 * one['chance']:.1f}"
