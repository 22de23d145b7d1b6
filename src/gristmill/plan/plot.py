"""Plots as data: the terminal and the page each draw them in their way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order of x. `kind` is how they are drawn; `label` says how they were come by."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["line", "points", "bars"] = "line"
    label: Literal["computed", "measured", "cited"] = "computed"


@dataclass(frozen=True)
class Plot:
    """`x_unit` and `y_unit` are SI units as those of a Quantity."""

    id: str  # stable, such as `roofline`
    title: str
    x_name: str
    x_unit: str
    y_name: str
    y_unit: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
