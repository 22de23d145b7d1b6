"""Plots in a terminal, of characters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from ..plan.plot import Curve, Plot

WIDTH, HEIGHT, MARGIN = 64, 14, 10  # columns and lines of the drawing, columns for the numbers beside it
COLORS = ("cyan", "yellow", "green", "magenta", "red", "blue")
MARKS = "·+×*o#"  # of the curves in turn: they are told apart without colors too


def print_plot(plot: Plot) -> None:
    """The plot, as wide as the terminal allows (64 columns at most), and a legend."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    width = max(min(WIDTH, console.width - MARGIN - 2), 16)
    console.print()
    for line in plot_lines(plot, width):
        console.print(line, soft_wrap=True)


def plot_lines(plot: Plot, width: int = WIDTH, height: int = HEIGHT) -> list[Text]:
    """Title, drawing, axis and legend, a line of text each."""
    from rich.text import Text

    x_at = _scale([x for curve in plot.curves for x in curve.x], plot.log_x, width)
    y_at = _scale([y for curve in plot.curves for y in curve.y], plot.log_y, height)
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for number, curve in enumerate(plot.curves):
        mark, color = MARKS[number % len(MARKS)], COLORS[number % len(COLORS)]
        for column, row in _drawn(curve, x_at.place, y_at.place):
            cells[row, column] = (mark, color)
    lines = [Text(f"{plot.title}; {plot.y_name} ({plot.y_unit})")]
    for row in reversed(range(height)):
        label = y_at.labels.get(row, "")
        line = Text(f"{label:>{MARGIN - 1}} " + ("┤" if label else "│"), style="dim")
        for column in range(width):
            mark, color = cells.get((row, column), (" ", ""))
            line.append(mark, style=color)
        lines.append(line)
    lines.append(Text(" " * MARGIN + "└" + "─" * width, style="dim"))
    numbers = [" "] * (width + MARGIN)
    free = 0
    for column, label in sorted(x_at.labels.items()):
        start = MARGIN + 1 + max(0, min(column - len(label) // 2, width - len(label)))
        if start >= free and start + len(label) <= len(numbers) + 1:
            numbers[start : start + len(label)] = label
            free = start + len(label) + 2
    lines.append(Text("".join(numbers).rstrip(), style="dim"))
    lines.append(Text(f"{'':{MARGIN + 1}}{plot.x_name} ({plot.x_unit})", style="dim"))
    legend = Text(" " * (MARGIN + 1))
    for number, curve in enumerate(plot.curves):
        legend.append(f"{MARKS[number % len(MARKS)]} {curve.name}   ", style=COLORS[number % len(COLORS)])
    return [*lines, legend]


class _scale:
    """Where a value stands on an axis of `length` cells, and which cells have a number."""

    def __init__(self, values: list[float], logarithmic: bool, length: int):
        self.logarithmic, self.length = logarithmic, length
        shown = [self._along(value) for value in values if not logarithmic or value > 0]
        self.low, self.high = min(shown, default=0.0), max(shown, default=1.0)
        if self.high <= self.low:
            self.high = self.low + 1
        self.labels: dict[int, str] = {}
        for tick in self._ticks():
            self.labels.setdefault(self.place(tick), short(tick))

    def place(self, value: float) -> int:
        share = (self._along(value) - self.low) / (self.high - self.low)
        return round(max(0.0, min(share, 1.0)) * (self.length - 1))

    def _along(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.logarithmic else value

    def _ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            every = max(1, -(-(last - first) // 6))
            return [10.0**power for power in range(first, last + 1, every)]
        return [self.low + (self.high - self.low) * part / 4 for part in range(5)]


def _drawn(curve: Curve, column_of: Callable[[float], int], row_of: Callable[[float], int]) -> list[tuple[int, int]]:
    """Cells of a curve; between the points of a line those that a straight line passes."""
    points = [(column_of(x), row_of(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    if curve.kind == "bars":
        return [(column, below) for column, row in points for below in range(row + 1)]
    cells = points[:1] if curve.kind == "line" else points
    if curve.kind == "line":
        for (column, row), (to_column, to_row) in pairwise(points):
            steps = max(abs(to_column - column), abs(to_row - row), 1)
            for step in range(1, steps + 1):
                part = step / steps
                cells.append((round(column + part * (to_column - column)), round(row + part * (to_row - row))))
    return cells


def short(value: float) -> str:
    """A number for an axis: 0.01, 25, 4k, 3.4T."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"
