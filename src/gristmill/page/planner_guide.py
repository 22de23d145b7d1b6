"""The field guide's numbers, recomputed, as a table of the planner."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

from ..plan.guide import Check, check_table, printed_number, reason, written
from .planner_fields import fields
from .planner_form import Answer, InputError, Inputs, Question
from .sections import table

VERDICTS = ("agrees", "unit", "off", "contradicts", "wrong")


def guide(inputs: Inputs) -> Answer:
    only, patterns = inputs["only"], inputs["id"] or ()
    checks = check_table()
    for pattern in patterns:
        if not any(fnmatchcase(one.row.id, pattern) for one in checks):
            raise InputError("id", f"the table has no row {pattern}; its rows are A1, A2a and so on, A* is all of A")
    shown = [
        one
        for one in checks
        if (not patterns or any(fnmatchcase(one.row.id, pattern) for pattern in patterns))
        and (not only or (not one.passed if only == "failed" else (one.verdict or "").startswith(only)))
    ]
    columns = [(name, "text") for name in ("row", "quantity", "guide says", "ours", "verdict", "formula")]
    counts = Counter((one.verdict or "none").split(":")[0] for one in checks)
    passed = sum(one.passed for one in checks)
    sentences = (
        f"{len(checks)} rows, of which {passed} have the value and the verdict that the table expects: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        + f". {len(shown)} are shown.",
    )
    return Answer(sentences=sentences, sections=(table("guide", "Rows", columns, map(_row, shown), wide=True),))


def _row(one: Check) -> tuple[Any, ...]:
    said = " ".join(part for part in (one.error, one.formula and f"= {one.formula}", reason(one)) if part)
    quantity = f"{one.row.quantity.replace('_', ' ')} [{one.unit}]"
    return one.row.id, quantity, printed_number(one), written(one.value, one.unit), one.verdict or "–", said


GUIDE = (
    Question(
        "guide", "Guide", "Every computable number of the field guide again: what it prints, what is right, and why.",
        fields("only", "id"), guide,
    ),
)  # fmt: skip
