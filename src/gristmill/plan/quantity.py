"""A figure of the planner: value, unit, how it was come by; and how figures are written for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Label = Literal["computed", "measured", "cited"]

_DECIMAL = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True)
class Quantity:
    """`id` is a stable key such as `parameters.attention`; `unit` is SI (`byte`, `FLOP/token`, `param`) or `1`;
    `formula` is the derivation in the symbols of its docstring, with numbers where that helps."""

    id: str
    value: float
    unit: str
    formula: str
    label: Label = "computed"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def shown(self) -> str:
        """The value as a person reads it; bytes in powers of ten and of two, since both are called GB."""
        if self.unit == "1":
            return f"{self.value:.1%}"
        if self.unit.startswith("byte"):
            per = self.unit.removeprefix("byte")
            return f"{_scaled(self.value, 'B')}{per} = {_binary(self.value)}{per}"
        if self.unit in ("param", "step"):
            return f"{self.value:,.0f}"
        if self.unit in ("token", "sequence", "request", "device") and self.value >= 1000:
            return f"{self.value:,.0f} {self.unit}"
        if self.unit.startswith("USD"):
            digits = ",.0f" if self.value >= 1000 else ",.2f" if self.value >= 1 else ".3g"
            return f"${self.value:{digits}}{self.unit.removeprefix('USD')}"
        if self.unit == "s":
            return _duration(self.value)
        return _scaled(self.value, self.unit)


def in_bytes(value: float) -> str:
    """Bytes as a person reads them, in powers of ten and of two."""
    return f"{_scaled(value, 'B')} = {_binary(value)}"


def _scaled(value: float, unit: str) -> str:
    for size, prefix in _DECIMAL:
        if value >= size:
            return f"{value / size:,.4g} {prefix}{unit}"
    return f"{value:,.4g} {unit}"


def _duration(seconds: float) -> str:
    for size, unit in _TIMES:
        if seconds >= size:
            return f"{seconds / size:,.4g} {unit}"
    return f"{seconds * 1000:,.4g} ms"


def _binary(value: float) -> str:
    for size, unit in _BINARY:
        if value >= size:
            return f"{value / size:,.4g} {unit}"
    return f"{value:,.4g} B"
