"""What the planner's commands share: which model is meant, and how figures, sentences and plots are printed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .plan_settings import recipe_base
from .shapes import override, shape_of, source_of

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.plot import Plot
    from ..plan.quantity import Quantity
    from ..train.config import PretrainConfig

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A preset's name, a model or run directory, a recipe (.yaml) or a config.json."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the shape; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def model_of(target: str, overrides: list[str] | None) -> tuple[str, ModelConfig, PretrainConfig | None]:
    """What is read for MODEL, its shape, and of a recipe its stage base."""
    source = source_of(target)
    return source, override(shape_of(source), overrides or []), recipe_base(source)


def print_answer(
    head: dict[str, Any],
    title: str,
    meaning: str,
    quantities: Sequence[Quantity],
    as_json: bool,
    sentences: Sequence[str] = (),
    plots: Sequence[Plot] = (),
) -> None:
    """A planner's answer: as one JSON object that begins with `head`, or as a page for a terminal. `meaning` says what
    the formulas' symbols stand for."""
    if as_json:
        answer = head | {"quantities": [quantity.as_json() for quantity in quantities]}
        if sentences:
            answer["sentences"] = list(sentences)
        if plots:
            answer["plots"] = [plot.as_json() for plot in plots]
        typer.echo(json.dumps(answer, indent=2))
        return
    print_figures(title, meaning, quantities)
    if plots:
        from .text_plot import print_plot

        for plot in plots:
            print_plot(plot)
    if sentences:
        print_sentences(sentences)


def print_figures(title: str, meaning: str, quantities: Sequence[Quantity]) -> None:
    """A line for each figure, grouped by the first part of the ids; a formula that does not fit behind its figure
    stands on lines of its own, whole words together."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def put(line: str, formula: str = "") -> None:
        console.print(Text.assemble(line, (formula, "dim")), soft_wrap=True)

    def wrapped(text: str, indent: str) -> list[str]:
        width = max(console.width, 30)
        return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)

    put(title)
    for line in wrapped(meaning, ""):
        put(line)
    rows = [(*quantity.id.partition(".")[::2], quantity.shown(), quantity.formula) for quantity in quantities]
    names, figures = max(len(name) for _, name, _, _ in rows), max(len(shown) for _, _, shown, _ in rows)
    group = ""
    for first, name, shown, formula in rows:
        if first != group:
            put(f"{chr(10) if group else ''}{first}")
            group = first
        line = f"  {name:<{names}}  {shown:>{figures}}"
        if len(line) + 2 + len(formula) <= console.width:
            put(f"{line}  ", formula)
            continue
        put(line)
        for part in wrapped(formula, " " * 6):
            put("", part)


def print_sentences(sentences: Sequence[str]) -> None:
    """Each as a paragraph of its own, after an empty line."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print()
    for sentence in sentences:
        lines = textwrap.wrap(sentence, max(console.width, 30), initial_indent="- ", subsequent_indent="  ")
        console.print("\n".join(lines), soft_wrap=True)
