"""How the fertility report looks: tables for the terminal, and `report.html`, one page that needs no other file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from gristmill.data.report import svg
from gristmill.data.report.figures import count, share, size
from gristmill.data.report.html import sheet
from gristmill.data.rules import LANGUAGES

Report = dict[str, Any]
Cell = str
NONE = "–"
SIDE_BY_SIDE = 6  # columns of a table that has room beside another

_MORE_STYLE = "svg.bar { width: 8rem; } @media (max-width: 36rem) { svg.bar { width: 3rem; } }"
_FIGURES = {
    "bytes_per_token": "bytes per token",
    "tokens_per_word": "tokens per word",
    "tokens_per_character": "tokens per character",
    "whole_words": "words of one token",
}
_WORDS = (
    "A word is a stretch without white space. Texts in Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan, which "
    "are written without spaces, are left out of what is said of words: there tokens per character tell more. Words of "
    "one token are runs of letters that, behind a blank, are a single token."
)


def table(report: Report) -> str:
    """The report as lines of text: figures over all text, bytes per token by domain and by language, costs (of the
    languages that the data stages know, where there are more)."""
    overall, names = report["overall"], [entry["name"] for entry in report["tokenizers"]]
    rows = [
        [entry["name"], count(entry["vocab_size"]), *(_figure(overall[entry["name"]], key) for key in _FIGURES)]
        for entry in report["tokenizers"]
    ]
    blocks = [_lines(["tokenizer", "entries", *_FIGURES.values()], rows)]
    for key, title in (("domains", "domain"), ("languages", "language")):
        groups = report[key]
        if len(groups) > 1:
            rows = [[name, *(_figure(found[name], "bytes_per_token") for found in groups.values())] for name in names]
            blocks.append(_lines([f"bytes per token by {title}", *(group or NONE for group in groups)], rows))
    cost = report["cost"]
    if cost is not None:
        listed, codes = _dearest_last(cost), {path.stem for path in LANGUAGES.glob("*.yaml")}
        shown = [item for item in listed if item[0] in codes] if len(listed) > len(codes) else listed
        rows = [[language, *(_ratio(entry, name) for name in names)] for language, entry in shown]
        more = f"\n\nThe page shows {len(listed) - len(shown)} more languages." if len(listed) > len(shown) else ""
        blocks.append(f"{cost['meaning']}: {cost['basis']}\n\n{_lines(['language', *names], rows)}{more}")
    if report["absent"]:
        blocks.append("\n".join(f"{name}: {why}" for name, why in report["absent"].items()))
    return "\n\n".join([f"Measured on {_measured(report)}.", *blocks])


def page(report: Report) -> str:
    """The report as a page of HTML."""
    made = [(id, title, make(report)) for id, title, make in _SECTIONS]
    return sheet("Fertility report", f"Measured on {_measured(report)}.", made, more_style=_MORE_STYLE)


# ---- sections


def _overall(report: Report) -> str:
    largest = max(figures["bytes_per_token"] for figures in report["overall"].values())
    own = next(iter(report["overall"].values()))["tokens"]
    rows: list[list[Cell]] = []
    for entry in report["tokenizers"]:
        figures = report["overall"][entry["name"]]
        beside = "" if len(rows) == 0 else f"{100 * (figures['tokens'] / max(own, 1) - 1):+.1f} %".replace("-", "−")
        cells = [
            escape(entry["name"]),
            svg.bar(figures["bytes_per_token"], 0, largest),
            *(_figure(figures, key) for key in _FIGURES),
            count(figures["tokens"]),
            beside,
        ]
        rows.append(cells)
    first = escape(report["tokenizers"][0]["name"])
    head = ["tokenizer", "", *(f"#{title}" for title in _FIGURES.values()), "#tokens", f"#beside {first}"]
    return f"<p>{escape(_WORDS)}</p>{_table(head, rows)}"


def _groups(key: str) -> Callable[[Report], str]:
    """The section of the figures by domain (key "domains") or by language."""

    def make(report: Report) -> str:
        groups: Mapping[str, Any] = report[key]
        if len(groups) < 2:
            return ""
        parts = []
        for figure, words in _FIGURES.items():
            if figure == "tokens_per_character" and key == "domains":
                continue
            rows = [
                [escape(name), *(_figure(found[name], figure) for found in groups.values())]
                for name in report["overall"]
            ]
            head = ["tokenizer", *(f"#{group or NONE}" for group in groups)]
            parts.append(f"<div><h3>{words.capitalize()}</h3>{_table(head, rows)}</div>")
        narrow = len(groups) <= SIDE_BY_SIDE
        return f'<div class="pair">{"".join(parts)}</div>' if narrow else "".join(parts)

    return make


def _cost(report: Report) -> str:
    cost = report["cost"]
    if cost is None:
        return ""
    names = [entry["name"] for entry in report["tokenizers"]]
    listed = _dearest_last(cost)
    largest = max(entry["ratios"][names[0]] for _, entry in listed)
    rows = [
        [escape(language), svg.bar(entry["ratios"][names[0]], 0, largest), *(_ratio(entry, name) for name in names)]
        for language, entry in listed
    ]
    means = ["mean", "", *(f"{sum(e['ratios'][name] for _, e in listed) / len(listed):.2f}" for name in names)]
    said = f"{cost['meaning'][0].upper()}{cost['meaning'][1:]}. Text: {cost['basis']}."
    if "texts" in listed[0][1]:
        counts = [entry["texts"] for _, entry in listed]
        said += f" {min(counts)} to {max(counts)} texts of a language, each beside its own English."
    return f"<p>{escape(said)}</p>{_table(['language', '', *(f'#{name}' for name in names)], [*rows, means])}"


def _sources(report: Report) -> str:
    rows = [
        [
            escape(entry["name"]),
            escape(entry["kind"]),
            count(entry["vocab_size"]),
            escape(entry["source"] or NONE),
            escape(entry["licence"] or NONE),
        ]
        for entry in report["tokenizers"]
    ]
    absent = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in report["absent"].items())
    missing = f'<h3>Not on this machine</h3><ul class="note">{absent}</ul>' if absent else ""
    return _table(["tokenizer", "kind", "#entries", "from", "licence"], rows) + missing


def _text(report: Report) -> str:
    rows = [
        [
            escape(entry["domain"]),
            escape(entry["language"] or NONE),
            count(entry["documents"]),
            size(entry["bytes"]),
            count(entry["characters"]),
            count(entry["words"]) if entry["words"] else NONE,
        ]
        for entry in report["text"]["groups"]
    ]
    return _table(["domain", "language", "#documents", "#text", "#characters", "#words"], rows)


_SECTIONS = (
    ("overall", "All text", _overall),
    ("domains", "By domain", _groups("domains")),
    ("languages", "By language", _groups("languages")),
    ("cost", "What other languages cost", _cost),
    ("sources", "The vocabularies", _sources),
    ("text", "What was measured on", _text),
)


# ---- parts


def _measured(report: Report) -> str:
    groups = report["text"]["groups"]
    documents, measured = (sum(group[key] for group in groups) for key in ("documents", "bytes"))
    return f"{report['text']['said']}: {count(documents)} documents, {size(measured)}"


def _figure(figures: Mapping[str, Any], key: str) -> Cell:
    value = figures[key]
    if value is None:
        return NONE
    return share(value) if key == "whole_words" else f"{value:.3f}"


def _ratio(entry: Mapping[str, Any], name: str) -> Cell:
    return f"{entry['ratios'][name]:.2f}"


def _dearest_last(cost: Report) -> list[tuple[str, Any]]:
    """The languages in the order of what they cost with the first tokenizer."""
    return sorted(cost["languages"].items(), key=lambda item: (next(iter(item[1]["ratios"].values())), item[0]))


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table of ready HTML cells; columns whose title begins with `#` hold numbers."""
    numeric = [' class="num"' if title.startswith("#") else "" for title in head]
    titles = "".join(
        f'<th scope="col"{number}>{escape(title.removeprefix("#"))}</th>'
        for title, number in zip(head, numeric, strict=True)
    )
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{number}>{cell}</td>" for cell, number in zip(row[1:], numeric[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _lines(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Columns for the terminal, the first to the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    made = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in [head, *rows]
    ]
    return "\n".join([made[0].rstrip(), "-" * len(made[0]), *(line.rstrip() for line in made[1:])])
