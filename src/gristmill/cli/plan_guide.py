"""`gristmill plan guide`: the field guide's numbers, or a table of one's own, recomputed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import GristmillError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..plan.guide import Check

COLOURS = {"agrees": "green", "unit": "yellow", "off": "yellow", "contradicts": "magenta", "wrong": "red"}
CHOICES = (*COLOURS, "failed")


def guide(
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="FILE", help="A table of the same columns instead, .csv or .json."),
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="This row alone, or those of A*; repeatable.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", help="Rows of one verdict: agrees, unit, off, contradicts, wrong; or failed."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/planner-guide.md.")] = False,
) -> None:
    """Every computable number of the field guide again: what it prints, what is right, verdict and formula.

    Exits with 1 where a row cannot be computed, or misses the table's expected value or verdict.

    Example: gristmill plan guide --only wrong
    """
    from ..plan.guide import check_table
    from ..plan.guide_page import page

    if only is not None and only not in CHOICES:
        raise GristmillError(f"--only {only}: there is no such verdict; use one of {', '.join(CHOICES)}")
    if as_json and markdown:
        raise GristmillError("--json and --markdown cannot both be printed")
    checks = _chosen(check_table(table), ids or [], only)
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in checks], indent=2, allow_nan=False))
    elif markdown:
        typer.echo(page(checks), nl=False)
    else:
        _print(checks)
    if missed := _missed(checks):
        raise GristmillError(f"{sum(not one.passed for one in checks)} of {len(checks)} rows: {missed}")


def _chosen(checks: Sequence[Check], ids: list[str], only: str | None) -> list[Check]:
    from fnmatch import fnmatchcase

    from ..plan.names import nearest

    for pattern in ids:
        if not any(fnmatchcase(one.row.id, pattern) for one in checks):
            raise GristmillError(f"--id {pattern}: the table has no such row; {nearest(pattern, _first_ids(checks))}")
    chosen = [one for one in checks if not ids or any(fnmatchcase(one.row.id, pattern) for pattern in ids)]
    if only == "failed":
        return [one for one in chosen if not one.passed]
    return [one for one in chosen if only is None or (one.verdict or "").startswith(only)]


def _first_ids(checks: Sequence[Check]) -> list[str]:
    return [one.row.id for one in checks]


def _print(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..plan.guide import printed_number, reason, written

    console = Console(highlight=False)
    table = Table("row", "guide", "ours", "verdict", "formula", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    for one in checks:
        failed = Text(f"\n{_failure(one)}" if not one.passed and not one.error else "", "red")
        if one.error:
            table.add_row(
                Text(one.row.id), Text(one.row.printed or "-"), "-", Text("error", "red"), Text(one.error, "red")
            )
            continue
        kind = (one.verdict or "").split(":")[0]
        why = reason(one)
        about = Text(f"{one.row.quantity} [{one.unit}]")
        formula = Text.assemble(about, "\n", (f"= {one.formula}", "dim"), "\n" + why if why else "", failed)
        verdict = Text(one.verdict or "-", COLOURS.get(kind, ""))
        shown = [text.replace(" = ", "\n= ") for text in (printed_number(one), written(one.value, one.unit))]
        table.add_row(Text(one.row.id), *shown, verdict, formula)
    console.print(table)
    console.print(_summary(checks))


def _failure(one: Check) -> str:
    """What of the table a row misses."""
    said = []
    if one.within_tolerance is False:
        said.append(f"expected {one.row.expected:.10g} within {one.row.rel_tol:g}")
    if not one.verdict_holds:
        said.append(f"the table's verdict is {one.row.verdict!r}")
    return "; ".join(said)


def _summary(checks: Sequence[Check]) -> str:
    from collections import Counter

    verdicts = Counter(one.verdict.split(":")[0] for one in checks if one.verdict)
    counted = ", ".join(f"{verdicts[kind]} {kind}" for kind in COLOURS if verdicts[kind])
    return f"{len(checks)} rows" + (f": {counted}" if counted else "")


def _missed(checks: Sequence[Check]) -> str:
    """What went wrong, and in which rows; nothing where every row passes."""
    kinds = {
        "cannot be computed": [one.row.id for one in checks if one.error],
        "outside of their tolerance": [one.row.id for one in checks if one.within_tolerance is False],
        "with another verdict than the table's": [one.row.id for one in checks if not one.verdict_holds],
    }
    counted = {kind: f"{', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}" for kind, ids in kinds.items() if ids}
    return "; ".join(f"{len(kinds[kind])} {kind} ({ids})" for kind, ids in counted.items())
