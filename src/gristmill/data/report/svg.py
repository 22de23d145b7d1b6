"""Bars and histograms as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from . import figures

WIDTH, HEIGHT = 336, 132
LEFT, RIGHT, TOP, BOTTOM = 4, 4, 14, 20
WIDEST = 28  # of one column
APART = 46  # labels of the axis, at the least

Bin = Sequence[float]
POWERS = [10.0**k for k in range(13)]
# Candidates for an axis' labels, the roundest first.
ROUND = [
    *(0.0, 1.0, *POWERS[1:], 0.5, 0.1, *(factor * power for factor in (5, 2) for power in POWERS)),
    *(i / 10 for i in range(1, 10)),
    *(i / 100 for i in (*range(1, 10), *range(15, 100, 10))),
    *(factor * power for factor in (3, 4, 6, 7, 8, 9) for power in POWERS),
]


def bar(kept: float, removed: float, largest: float) -> str:
    """A bar of `kept`, then `removed`, on a scale that ends at `largest`."""
    if largest <= 0:
        return ""
    first, second = 100 * kept / largest, 100 * removed / largest
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="kept" width="{first:.2f}" height="6"/>'
        f'<rect class="removed" x="{first:.2f}" width="{second:.2f}" height="6"/></svg>'
    )


def histogram(
    bins: Sequence[Bin], documents: Sequence[int], removed: Sequence[int], cuts: Mapping[str, float], label: str
) -> str:
    """Documents in each bin as columns, those removed on top in their own colour; a dashed line at each of `cuts`
    (words -> threshold) that is in the picture. A bin of zeros alone that would dwarf all others is cut off, and says
    so."""
    shown = _ceiling(bins, documents)
    step = min((WIDTH - LEFT - RIGHT) / len(bins), WIDEST)
    floor = HEIGHT - BOTTOM
    parts = [f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for i, (span, count, gone) in enumerate(zip(bins, documents, removed, strict=True)):
        if not count:
            continue
        x = LEFT + i * step
        scale = (floor - TOP) * min(1.0, shown / count) / shown
        high, low = (count - gone) * scale, gone * scale
        words = f"{span_words(span)}: {figures.counted(count, 'document')}, {figures.count(gone)} removed"
        columns = [("kept", floor - high, high), ("removed", floor - high - low, low)]
        drawn = "".join(
            f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{max(step - 1, 0.5):.1f}" height="{size:.1f}"/>'
            for name, y, size in columns
            if size
        )
        parts.append(f"<g><title>{escape(words)}</title>{drawn}</g>")
        if count > shown:
            parts.append(f'<text x="{x:.1f}" y="{TOP - 4}">↑ {figures.count(count)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    for where, words in axis_labels(bins, APART / step):
        x = LEFT + step * where
        parts.append(f'<text x="{x:.2f}" y="{floor + 14}" text-anchor="{_anchor(x)}">{words}</text>')
    for words, cut in cuts.items():
        if bins[0][0] <= cut <= bins[-1][1]:
            x = LEFT + step * place(bins, cut)
            line = f'<line class="cut" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP}" y2="{floor}">'
            parts.append(f"{line}<title>{escape(words)}</title></line>")
    return "".join([*parts, "</svg>"])


def place(bins: Sequence[Bin], value: float) -> float:
    """Where a value stands, counted in bins from the left edge."""
    for i, (low, high) in enumerate(bins):
        if value <= high:
            return i + max(0.0, (value - low) / (high - low)) if high > low else float(i)
    return float(len(bins))


def span_words(span: Bin) -> str:
    low, high = span
    return figures.plain(low) if low == high else f"{figures.plain(low)} to {figures.plain(high)}"


def _ceiling(bins: Sequence[Bin], documents: Sequence[int]) -> float:
    """The count at the top of the picture: the largest, or, where zeros dwarf the rest, twice the largest other."""
    others = [count for span, count in zip(bins, documents, strict=True) if span[0] != span[1]]
    largest = max(max(documents, default=0), 1)
    second = max(others, default=0)
    return min(largest, 2 * second) if second else largest


def axis_labels(bins: Sequence[Bin], apart: float) -> list[tuple[float, str]]:
    """Round numbers for the axis, the roundest first, as many as fit `apart` bins from each other: where (in bins from
    the left edge) and what."""
    low, high = bins[0][0], bins[-1][1]
    chosen: list[tuple[float, float]] = []
    for value in ROUND:
        where = place(bins, value)
        if low <= value <= high and all(abs(where - other) >= apart for other, _ in chosen):
            chosen.append((where, value))
    return [(where, figures.plain(value)) for where, value in sorted(chosen)]


def _anchor(x: float) -> str:
    return "start" if x < APART / 3 else "end" if x > WIDTH - APART / 3 else "middle"
