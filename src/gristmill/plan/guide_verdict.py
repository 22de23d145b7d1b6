"""What is to be said of a printed number, given the right one.

The rules, in this order:

1. `agrees`: a bound that holds; a number that rounds to what is printed, or is within half a percent of it. How many
   digits are printed is read from the number itself, without its last zeros: 300 has one, 295 three. Rounding excuses
   at most a tenth. What is exactly right in powers of two, and not in powers of ten, is not rounding.
2. `unit: right only in GiB`: right once bytes (or parameters, tokens) are counted in powers of two.
3. `contradicts`: the documents' own other numbers give another result: the same quantity of the same inputs stands in
   the table with another printed number, which agrees; or the inputs are themselves what the documents print
   (`guide_facts`).
4. `off`: less than a twentieth away; or a power of ten from a hundred on, which states an order of magnitude, within a
   factor of three; or right under a condition that is not stated, with which our formula gives the printed number
   (`guide_facts` says which, and it is computed each time).
5. `wrong`: everything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

Verdict = Literal["agrees", "unit: right only in GiB", "contradicts", "off", "wrong"]
Compute = Callable[[str, Mapping[str, Any]], float]

SAME = 0.005  # as near as the table's own tolerance
ROUNDED = 0.1  # the most that rounding to one digit excuses
NEAR = 0.05  # a miss of the rounding, not of the matter
ORDER = 3.0  # as far from a power of ten as still has its order of magnitude
EXACT = 1e-3  # of a number of powers of two
BINARY = (2**10 / 10**3, 2**20 / 10**6, 2**30 / 10**9, 2**40 / 10**12)
COUNTED_IN_BINARY = ("byte", "param", "token")


@dataclass(frozen=True)
class Fact:
    """What the numbers of a claim do not tell, and a reader of the documents knows. `kind`:

    about: printed as approximate (`within` so much); exactly: printed as exact; reading: the number is that of the
    formula with other inputs, which the text means; needs: it is right only with other inputs, which the text does not
    state; quoted: cited faithfully from a source that has it wrong; own: the inputs are the documents' own numbers.

    `inputs` change the row's (None takes one away), or are a whole set for another `quantity`."""

    kind: Literal["about", "exactly", "reading", "needs", "quoted", "own"]
    why: str
    inputs: Mapping[str, Any] | None = None
    quantity: str | None = None
    within: float = ROUNDED
    at_least: bool = False  # the printed number is a lower bound there
    rows: tuple[str, ...] = ()  # of the table, whose printed numbers are the inputs

    def value(self, quantity: str, inputs: Mapping[str, Any], compute: Compute) -> float:
        """The formula's value with the fact's inputs."""
        if self.quantity is not None:
            return compute(self.quantity, self.inputs if self.inputs is not None else inputs)
        changed = {**inputs, **(self.inputs or {})}
        return compute(quantity, {name: one for name, one in changed.items() if one is not None})


@dataclass(frozen=True)
class Claim:
    """A printed number, as text or number, in `unit`; `bound` says that it is meant as one, seen from our value."""

    printed: str | float
    unit: str
    bound: Literal["<=", ">=", ""] = ""

    @property
    def number(self) -> float:
        return float(self.printed)


def bound_of(note: str) -> Literal["<=", ">=", ""]:
    """Whether a note's first words say that the printed value must be at most (or at least) the expected one."""
    found = re.match(r"\s*bound\s*(<=|>=)", note)
    if found is None:
        return ""
    return "<=" if found[1] == "<=" else ">="


def agrees(value: float, claim: Claim) -> bool:
    """Rule 1, without facts."""
    printed = claim.number
    if claim.bound:
        return printed <= value * (1 + EXACT) if claim.bound == "<=" else printed >= value * (1 - EXACT)
    return not _binary(value, claim) and rounds_to(value, claim.printed)


def rounds_to(value: float, printed: str | float) -> bool:
    """Whether `value` is `printed` at the digits that it is printed with, or within half a percent."""
    target = float(printed)
    miss = abs(value - target)
    if target == 0:
        return miss == 0
    return miss <= max(SAME * abs(target), min(_half_unit(printed), ROUNDED * abs(target)))


def judge(
    value: float,
    claim: Claim,
    fact: Fact | None = None,
    quantity: str = "",
    inputs: Mapping[str, Any] | None = None,
    compute: Compute | None = None,
    other_agrees: bool = False,
) -> Verdict:
    """The verdict by the rules above. `other_agrees`: another printed number of the same thing is right."""
    own = fact is not None and fact.kind == "own"
    right = agrees(value, claim)
    conditional = False
    if fact is not None and fact.kind == "about":
        right = abs(value - claim.number) <= fact.within * abs(claim.number)
    elif fact is not None and fact.kind == "exactly":
        right = abs(value - claim.number) <= SAME * abs(claim.number)
    elif fact is not None and fact.kind in ("reading", "needs") and compute is not None:
        meant = fact.value(quantity, inputs or {}, compute)
        holds = meant >= claim.number if fact.at_least else rounds_to(meant, claim.printed)
        right, conditional = right or (holds and fact.kind == "reading"), holds and fact.kind == "needs"
        right = right and not conditional
    if right:
        return "agrees"
    if not claim.bound and _in_binary(value, claim):
        return "unit: right only in GiB"
    if own or other_agrees:
        return "contradicts"
    quoted = fact is not None and fact.kind == "quoted"
    return "off" if conditional or quoted or _near(value, claim) else "wrong"


def _near(value: float, claim: Claim) -> bool:
    printed = claim.number
    if abs(value - printed) <= NEAR * abs(printed):
        return True
    digits = Decimal(str(claim.printed)).normalize()
    power_of_ten = digits.as_tuple().digits == (1,) and printed >= 100
    return power_of_ten and value > 0 and abs(math.log(value / printed)) <= math.log(ORDER)


def _in_binary(value: float, claim: Claim) -> bool:
    """Whether the printed number is right in powers of two alone."""
    if _binary(value, claim):
        return True
    in_bytes = claim.unit.startswith("byte") and not rounds_to(value, claim.printed)
    return in_bytes and any(
        _prefix(claim.number, power) and _half_unit(claim.printed) < NEAR * claim.number
        and rounds_to(value / factor, claim.printed) for power, factor in enumerate(BINARY, 1)
    )  # fmt: skip


def _binary(value: float, claim: Claim) -> bool:
    """Whether the printed number is exact in powers of two and not in powers of ten."""
    if not claim.unit.startswith(COUNTED_IN_BINARY) or claim.number <= 0:
        return False
    return any(
        _prefix(claim.number, power) and abs(value / factor / claim.number - 1) <= EXACT
        for power, factor in enumerate(BINARY, 1)
    )


def _prefix(printed: float, power: int) -> bool:
    """Whether people would write the number with the prefix of this power of a thousand."""
    return 1000**power <= printed * 1.0001 and (power == len(BINARY) or printed < 1024 * 1000**power)


def _half_unit(printed: str | float) -> float:
    """Half of what the last printed digit that is not 0 stands for."""
    exponent = Decimal(str(printed)).normalize().as_tuple().exponent
    return 0.5 * 10.0 ** int(exponent)
