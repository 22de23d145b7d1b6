"""The report as plain text, to be read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH = 110  # samples are cut here, so that a table stays a table


def render(report: dict[str, Any]) -> str:
    """The text of `summary.txt` from the contents of `report.json`."""
    parts = [_models(report), _text(report), _tasks(report), _families(report), _samples(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _models(report: dict[str, Any]) -> str:
    rows = [
        [name, f"{model['parameters']:,}", f"{model['file_bytes'] / 1e6:.2f} MB"]
        for name, model in report["models"].items()
    ]
    return "Models\n" + table(["model", "parameters", "weights"], rows)


def _text(report: dict[str, Any]) -> str:
    scores = report["bits_per_byte"]
    every = [*scores["domains"].items(), ("all", scores["all"])]
    models = list(scores["all"]["models"])
    rows = [
        [domain, f"{part['bytes']:,}", f"{part['gzip']:.3f}", *(_value(part["models"][name]) for name in models)]
        for domain, part in every
    ]
    head = (
        f"Bits per byte of validation text, {100 * report['confidence']:g} % intervals; lower is better "
        f"(window {scores['window']}, stride {scores['stride']})"
    )
    text = f"{head}\n" + table(["domain", "bytes", "gzip -9", *models], rows)
    changes = scores["all"]["differences"]
    return text + "".join(f"\n{name}: {_value(change, '+.4f')} over all domains" for name, change in changes.items())


def _tasks(report: dict[str, Any]) -> str:
    scores = report["tasks"]
    rows = [
        [name, f"{model['correct']}/{model['tasks']}", _percent(model["accuracy"], model["low"], model["high"])]
        for name, model in scores["models"].items()
    ]
    head = f"Held-out tasks, {100 * report['confidence']:g} % intervals"
    text = f"{head}\n" + table(["model", "right", "accuracy"], rows)
    for name, change in scores["differences"].items():
        text += f"\n{name}: {_percent(change['difference'], change['low'], change['high'], '+')} points"
    checked = report["heldout_check"]["prompts_trained_on"]
    if checked:
        text += f"\nNone of these tasks is among the {sum(checked.values()):,} prompts of {' and '.join(checked)}."
    return text


def _families(report: dict[str, Any]) -> str:
    models = report["tasks"]["models"]
    families = next(iter(models.values()))["families"]
    rows = [
        [
            family,
            str(part["tasks"]),
            *(f"{100 * model['families'][family]['accuracy']:.1f} %" for model in models.values()),
        ]
        for family, part in families.items()
    ]
    return "Accuracy by family\n" + table(["family", "tasks", *models], rows)


def _samples(report: dict[str, Any]) -> str:
    blocks = []
    for sample in report["samples"]["continuations"]:
        blocks.append(_line(f"{sample['prompt']} ...", sample["text"]))
    for sample in report["samples"]["tasks"]:
        lines = [_line("task", sample["prompt"]), _line("  answer", sample["answer"])]
        blocks.append("\n".join(lines + [_line(f"  {name}", reply) for name, reply in sample["replies"].items()]))
    return "Samples\n" + "\n".join(blocks) if blocks else ""


def _line(label: str, text: str) -> str:
    line = f"{label}: {' '.join(text.split())}"
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _value(part: dict[str, Any], form: str = ".3f") -> str:
    if part["low"] is None:
        return f"{part['value']:{form}}"
    return f"{part['value']:{form}} [{part['low']:{form}}, {part['high']:{form}}]"


def _percent(value: float, low: float, high: float, sign: str = "") -> str:
    unit = "" if sign else " %"
    return f"{100 * value:{sign}.1f}{unit} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  " + "  ".join([first, *others])

    return "\n".join([line(head), "  " + "  ".join("-" * width for width in widths), *(line(row) for row in rows)])
