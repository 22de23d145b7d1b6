"""What a panel is made of: sections, plain dictionaries that static/sections.js turns into elements.

A table column's `unit` is one of count, short, bytes, seconds, percent, number, text, code (static/format.js).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .files import Run

Section = dict[str, Any]
Column = tuple[str, str]  # label, unit; a unit that ends in "+bar" draws a bar beside the number


def table(
    id: str,
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    note: str | None = None,
    wide: bool = False,
) -> Section:
    """A table whose first column names the row; a `wide` one has the panel's whole width to itself."""
    return {
        "id": id,
        "kind": "table",
        "title": title,
        "columns": [
            {"label": label, "unit": unit.removesuffix("+bar"), "bar": unit.endswith("+bar")} for label, unit in columns
        ],
        "rows": [list(row) for row in rows],
        "note": note,
        "wide": wide,
    }


def figures(id: str, title: str, items: Iterable[tuple[str, Any, str]], note: str | None = None) -> Section:
    """Single figures, each a (label, value, unit); those that are None are left out."""
    shown = [{"label": label, "value": value, "unit": unit} for label, value, unit in items if value is not None]
    return {"id": id, "kind": "figures", "title": title, "items": shown, "note": note}


def charts(
    id: str, title: str, stage: str, specs: list[dict[str, Any]], rows: list[dict[str, Any]], note: str | None = None
) -> Section:
    """Line charts over the steps of one stage; `rows` have `step` and any of the series' keys. A spec has `title`,
    `unit`, `series` (key, label), `size` (wide, half or third of the panel), `log` (a logarithmic axis), `mark` (key
    and label of what is ringed where a row has it) and `format` (a unit of static/format.js, else plain numbers)."""
    return {
        "id": id,
        "kind": "charts",
        "title": title,
        "stage": stage,
        "x": "step",
        "charts": specs,
        "rows": rows,
        "note": note,
    }


def intervals(
    id: str, title: str, unit: str, labels: tuple[str, str, str], rows: list[dict[str, Any]], **options: Any
) -> Section:
    """Values with confidence intervals; `labels` name the columns of value, interval and n."""
    value_label, interval_label, n_label = labels
    return {
        "id": id,
        "kind": "intervals",
        "title": title,
        "unit": unit,
        "value_label": value_label,
        "interval_label": interval_label,
        "n_label": n_label,
        "rows": rows,
        **options,
    }


def pairs(id: str, title: str, items: list[dict[str, Any]], note: str | None = None) -> Section:
    """Prompts with the texts that answer them: items of `prompt` and `texts` (label, text, mark)."""
    return {"id": id, "kind": "pairs", "title": title, "items": items, "note": note}


def histograms(id: str, title: str, items: list[dict[str, Any]], note: str | None = None) -> Section:
    """Columns of documents kept and removed over a value: items of `title`, `note`, `bins` (above, up to and with),
    `kept` and `removed` (a number a bin), `cuts` (thresholds and their words)."""
    return {"id": id, "kind": "histograms", "title": title, "items": items, "note": note}


def documents(id: str, title: str, items: list[dict[str, Any]], note: str | None = None) -> Section:
    """Texts to unfold: items of `label`, `meta`, `text` and `characters` (its full length); those of one `group` (a
    heading, and where given a `group_note`) unfold together."""
    return {"id": id, "kind": "documents", "title": title, "items": items, "note": note}


def judgement(id: str, title: str, state: str, sentence: str, items: list[dict[str, Any]]) -> Section:
    """Checks and what they come to: `state` is good, watch or bad; items have `label`, `state`, `value`, `unit`,
    `words`."""
    return {"id": id, "kind": "judgement", "title": title, "state": state, "sentence": sentence, "items": items}


def lines(id: str, title: str, items: list[str], sentences: bool = False) -> Section:
    """Short pieces of text one after another; `sentences` each on lines of its own."""
    return {"id": id, "kind": "lines", "title": title, "items": items, "sentences": sentences}


def empty(id: str, title: str, message: str, command: str | None = None) -> Section:
    """What stands where there is nothing to show yet: why, and the command that makes it."""
    return {"id": id, "kind": "empty", "title": title, "message": message, "command": command}


def missing(run: Run, stage: str, title: str) -> Section:
    """The empty section of an artifact that is not there: still being made, or not begun."""
    if run.stage(stage).state == "running":
        return empty(stage, title, f"The stage {stage} is running; what it finds shows here when it is done.")
    if run.is_running():
        return empty(stage, title, f"The run has not come to the stage {stage} yet.")
    command = f"gristmill run {run.directory} --until {stage}"
    return empty(stage, title, f"No artifact {stage} in this run yet. This makes it:", command)
