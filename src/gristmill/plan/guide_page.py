"""docs/planner-guide.md: the guide's table, recomputed, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .guide import Check, printed_number, reason, written

HEAD = """# The field guide's numbers, recomputed

Written by `gristmill plan guide --markdown > docs/planner-guide.md`; how to read it stands in
[planner.md](planner.md#the-guides-numbers). *Guide* is what the documents print, *ours* what the planner computes from
the inputs, *formula* how, and why the two differ. Of {count} numbers {counts}.
"""


def page(checks: Sequence[Check]) -> str:
    """The whole page: a table for each verdict, the worst first."""
    numbers = Counter(one.verdict for one in checks)
    order = ("wrong", "contradicts", "off", "unit: right only in GiB", "agrees")
    named = ", ".join(f"{numbers[verdict]} are `{verdict}`" for verdict in reversed(order) if numbers[verdict])
    parts = [HEAD.format(count=len(checks), counts=named)]
    for verdict in order:
        chosen = [one for one in checks if one.verdict == verdict]
        if chosen:
            parts.append(f"## {verdict.capitalize()}\n\n" + _table(chosen))
    return "\n".join(parts)


def _table(checks: Sequence[Check]) -> str:
    head = "| row | quantity | guide | ours | unit | formula |\n|---|---|---|---|---|---|\n"
    return head + "".join(_line(one) for one in checks)


def _line(one: Check) -> str:
    why = one.row.note if one.verdict != "agrees" else reason(one)
    formula = f"`{one.formula}`" + (f": {why}" if why else "")
    label = (one.row.inputs or {}).get("model") or (one.row.inputs or {}).get("hardware")
    about = one.row.quantity + (f", {label}" if label else "")
    cells = [one.row.id, about, printed_number(one), written(one.value, one.unit), one.unit, formula]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
