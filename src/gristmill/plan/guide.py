"""`gristmill plan guide`: every computable number of the field guide again, and any table of the same columns.

A row's value comes from its `quantity` and `inputs` alone (`value`); what was expected or printed is compared after.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import GristmillError
from . import guide_arithmetic, guide_cost, guide_memory, guide_model, guide_speed
from .guide_facts import FACTS
from .guide_inputs import Answer, Formula, Inputs
from .guide_table import Row, guide_path, read_table
from .guide_verdict import Claim, Fact, agrees, bound_of, judge
from .names import nearest
from .quantity import Quantity, in_bytes

FORMULAS: dict[str, Formula] = (
    guide_speed.FORMULAS
    | guide_memory.FORMULAS
    | guide_model.FORMULAS
    | guide_cost.FORMULAS
    | guide_arithmetic.FORMULAS
)
LABELS = ("model", "hardware")
PREFIXES: dict[str, float] = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3, "u": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A row, recomputed. `value` is in `unit`, None where it could not be computed, and `error` says why. `verdict` is
    ours of the printed number, `given_verdict` the table's; `within_tolerance` is None where nothing was expected."""

    row: Row
    value: float | None = None
    unit: str = ""
    formula: str = ""
    within_tolerance: bool | None = None
    verdict: str | None = None
    error: str = ""

    @property
    def verdict_holds(self) -> bool:
        """Whether ours is the table's verdict, as far as both are there."""
        given = self.row.verdict
        if not given or self.verdict is None:
            return True
        return given.split(":")[0].strip().lower() == self.verdict.split(":")[0]

    @property
    def passed(self) -> bool:
        return not self.error and self.within_tolerance is not False and self.verdict_holds

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": self.row.id,
            "value": self.value,
            "unit": self.unit or self.row.unit or None,
            "expected": self.row.expected,
            "within_tolerance": self.within_tolerance,
            "verdict": self.verdict,
            "formula": self.formula or None,
        }
        return found | ({"error": self.error} if self.error else {})


def answer(quantity: str, inputs: Mapping[str, Any]) -> Answer:
    """What a quantity comes to, and how. GristmillError for a quantity that is not known, and for inputs that are
    missing or cannot be."""
    if quantity not in FORMULAS:
        raise GristmillError(f"no quantity is called {quantity!r}; {nearest(quantity, FORMULAS)}")
    given = Inputs(inputs)
    try:
        found = FORMULAS[quantity].of(given)
        finite = math.isfinite(found.value)
    except (OverflowError, ZeroDivisionError):
        finite = False
    if not finite:
        raise GristmillError(f"{quantity} of these inputs is no finite number")
    _refuse_misspelt(given)
    filled = "".join(f"; of {source}: {', '.join(names)}" for source, names in given.filled.items())
    return Answer(found.value, found.formula + filled)


def value(quantity: str, inputs: Mapping[str, Any]) -> float:
    """The value alone, in the quantity's unit (`FORMULAS`)."""
    return answer(quantity, inputs).value


def _refuse_misspelt(given: Inputs) -> None:
    """A name that nothing reads, and that is nearly one that was looked for in vain, would be lost in silence."""
    absent = [name for name in given.read if name not in given.given]
    for name in given.given:
        if name not in given.read and (near := get_close_matches(name, absent, n=1, cutoff=0.85)):
            raise GristmillError(f"input {name!r} is not known; did you mean {near[0]!r}?")


def check_table(path: Path | None = None) -> list[Check]:
    """Every row of a file, the guide's own by default, recomputed and judged, in the file's order."""
    return check(read_table(path or guide_path()))


def check(rows: Sequence[Row]) -> list[Check]:
    """Rows recomputed and judged, each in its place; one that cannot be computed has an error."""
    found = [_computed(row) for row in rows]
    right: dict[str, set[float]] = {}  # printed numbers that agree, by what they are of
    for one in found:
        claim = _claim(one)
        if claim is not None and agrees(_in_si(one), claim):
            right.setdefault(_matter(one.row), set()).add(claim.number)
    return [_judged(one, right) for one in found]


def _computed(row: Row) -> Check:
    if row.error:
        return Check(row, error=f"{row.where}: {row.error}")
    try:
        found = answer(row.quantity, row.inputs or {})
        unit = FORMULAS[row.quantity].unit
        scale = scale_of(row.unit or unit, unit)
        size = found.value if scale == 1 else found.value / scale
    except GristmillError as error:
        return Check(row, error=f"{row.where}: {error}")
    within = None
    if row.expected is not None:
        within = abs(size - row.expected) <= row.rel_tol * abs(row.expected)
    return Check(row, size, row.unit or unit, found.formula, within)


def _judged(one: Check, right: Mapping[str, set[float]]) -> Check:
    claim = _claim(one)
    if claim is None:
        return one
    row = one.row
    others = right.get(_matter(row), set()) - {claim.number}
    verdict = judge(_in_si(one), claim, _fact(row), row.quantity, row.inputs, value, bool(others))
    return Check(row, one.value, one.unit, one.formula, one.within_tolerance, verdict)


def _claim(one: Check) -> Claim | None:
    row = one.row
    if not row.printed or one.value is None:
        return None
    own, unit = _own_row(row), FORMULAS[row.quantity].unit
    scale = scale_of(one.unit, unit)
    printed = row.printed if scale == 1 else format(Decimal(row.printed) * Decimal(scale), "f")
    return Claim(printed, unit, bound_of(row.note or (own.note if own else "")))


def _in_si(one: Check) -> float:
    assert one.value is not None
    return one.value * scale_of(one.unit, FORMULAS[one.row.quantity].unit)


def scale_of(unit: str, own: str) -> float:
    """How many of a quantity's own unit one of `unit` is; GristmillError where it is of another kind."""
    if unit == own or {unit, own} <= {"1", "x", "ratio", "fraction", "share"}:
        return 1
    plain, of = (re.sub(r"(?<=[a-z]{3})s\b", "", text).replace("bytes", "byte") for text in (unit, own))
    if plain.lower() == of.lower():
        return 1
    first, slash, per = of.partition("/")
    short = {"byte": ("B", "byte"), "param": ("param", "parameter", "")}.get(first, (first,))
    for prefix, size in PREFIXES.items():
        if any(plain == prefix + name + slash + per for name in short):
            return size
    raise GristmillError(f"column unit says {unit!r}, but {own!r} is what this quantity is in")


def _matter(row: Row) -> str:
    """What a row is about, its labels aside."""
    inputs = {name: given for name, given in (row.inputs or {}).items() if name not in LABELS}
    return json.dumps([row.quantity, inputs], sort_keys=True, default=str)


@cache
def _own_rows() -> dict[str, Row]:
    return {row.id: row for row in read_table(guide_path())}


def _own_row(row: Row) -> Row | None:
    """The guide's row that makes the same claim: same id, matter and printed number."""
    own = _own_rows().get(row.id)
    if own is None or _matter(own) != _matter(row) or float(own.printed) != float(row.printed):
        return None
    return own


def _fact(row: Row) -> Fact | None:
    return FACTS.get(row.id) if row.id in FACTS and _own_row(row) is not None else None


def reason(one: Check) -> str:
    """Why the verdict is what it is, where the numbers alone do not say it."""
    fact = _fact(one.row) if one.row.printed else None
    if fact is None:
        return ""
    return {"needs": "right with: ", "reading": "read as: ", "own": "contradicts "}.get(fact.kind, "") + fact.why


def printed_number(one: Check) -> str:
    """What the documents print, as `written`; a bound with its sign."""
    claim = _claim(one)
    if claim is None:
        return written(float(one.row.printed), one.row.unit) if one.row.printed else "-"
    sign = {"<=": ">= ", ">=": "<= ", "": ""}[claim.bound]
    return sign + written(float(one.row.printed), one.unit)


def written(number: float | None, unit: str) -> str:
    """A value as a person reads it; bytes in powers of ten and of two."""
    if number is None:
        return "-"
    if unit == "byte" and number >= 0:
        return in_bytes(number)
    if unit == "FLOP/s":
        return Quantity("", number, unit, "").shown()
    if abs(number) >= 1e6 and (number != int(number) or abs(number) >= 1e13):
        return f"{number:.5g}"
    return f"{number:,.0f}" if number == int(number) else f"{number:,.5g}"
