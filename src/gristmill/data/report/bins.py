"""One grid for all histograms, fixed before the first value is seen, so that counts of any chunks can be added.

Cells are 0.005 wide up to 1 (shares, probabilities), and grow by a fortieth of a decade above (lengths, perplexities);
0 has a cell of its own. A cell includes its upper edge. Negative values have the same cells, mirrored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

I64 = NDArray[np.int64]

LINEAR = 200  # cells from 0 to 1
PER_DECADE = 40
DECADES = 12
EDGES = np.concatenate(
    [np.arange(LINEAR + 1) / LINEAR, 10.0 ** (np.arange(1, PER_DECADE * DECADES + 1) / PER_DECADE), [np.inf]]
)
SHOWN = 40  # bins in a finished histogram, about
WIDTHS = (1, 2, 4, 5, 10, 20, 40)  # cells in one


class Histogram(NamedTuple):
    """`bins` are (above, up to and including); the first may be (0, 0). `rows` gives counts for each series."""

    bins: list[tuple[float, float]]
    rows: list[list[int]]


def cells(values: NDArray[Any]) -> I64:
    """The number of the cell of each value, int64; negative values have the negative of their mirror's."""
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    # Compared in the precision of the values: 0.1 as float32 is not above the edge at 0.1.
    found = np.searchsorted(EDGES.astype(values.dtype), np.abs(values), side="left").astype(np.int64)
    return np.where(values < 0, -found, found)


def numbers(column: pa.Array) -> NDArray[Any] | None:
    """A numeric column as an array, its nulls as NaN; None for any other column."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    return np.asarray(column.to_numpy(zero_copy_only=False))


def histogram(series: list[dict[int, int]]) -> Histogram:
    """Counts by cell, of one or more series, as about `SHOWN` bins of whole cells over the range that any of them
    fills. What is below 1 and what is above share the bins evenly; so do the negative and the positive."""
    filled = {cell for counts in series for cell in counts}
    below, above = {-cell for cell in filled if cell < 0}, {cell for cell in filled if cell > 0}
    most = SHOWN // 2 if below and above else SHOWN
    groups = [[-cell for cell in reversed(group)] for group in reversed(_groups(below, most))]
    groups += [[0]] if 0 in filled else []
    groups += _groups(above, most)
    rows = [[sum(counts.get(cell, 0) for cell in group) for group in groups] for counts in series]
    return Histogram([_span(group) for group in groups], rows)


def _groups(filled: set[int], most: int) -> list[list[int]]:
    """Neighbouring cells that make a bin each, for filled cells above 0."""
    if not filled:
        return []
    low, high = min(filled), max(filled)
    if low >= LINEAR or high <= LINEAR:  # the cell up to 1 goes with either side
        return _cut(low, high, most)
    return _cut(low, LINEAR, most // 2) + _cut(LINEAR + 1, high, most // 2)


def _cut(low: int, high: int, most: int) -> list[list[int]]:
    """The cells from low to high by so many at a time that there are about `most` groups; groups end at multiples."""
    width = next((w for w in WIDTHS if (high - low) / w < most), WIDTHS[-1])
    groups: dict[int, list[int]] = {}
    for cell in range(low, high + 1):
        groups.setdefault(-(-cell // width), []).append(cell)
    return list(groups.values())


def _span(members: list[int]) -> tuple[float, float]:
    """The edges of neighbouring cells of one sign."""
    if members[0] == 0:
        return 0.0, 0.0
    smallest, largest = min(map(abs, members)), max(map(abs, members))
    low, high = _edge(smallest - 1), _edge(largest)
    return (low, high) if members[0] > 0 else (-high, -low)


def _edge(cell: int) -> float:
    return float(f"{EDGES[min(cell, len(EDGES) - 2)]:.6g}")
