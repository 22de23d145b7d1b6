"""Which candidates may have to do with each other: connected components of the pairs, by union-find.

A component is not yet a cluster of duplicates. It only says whose fate can depend on whose, so that components can be
verified apart from each other (`verify.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..pool import Result, Task
from .lsh import beside
from .tables import I64, mapped, save_array


def find_components(task: Task) -> Result:
    """Leave `candidates` (the rows that have a pair, ascending) and, as `out`, `members`: the places of the candidates
    in that array, component by component; within one the rows of other corpora first, then the longest, then the first.
    With them `borders`, where each component begins in `members`, and at the end their number.

    The task gives `pairs` and `chunks` (the files of `pair_up` and `sign_chunk`), `starts` (the chunks' first rows, and
    at the end the number of rows), and `fixed` (the first row of other corpora). Takes 16 bytes a row and 56 a
    candidate."""
    from .compiled import flatten, unite

    out = Path(task["out"])
    starts = np.array(task["starts"], np.int64)
    parents = np.arange(starts[-1])
    for pairs in task["pairs"]:
        unite(parents, mapped(Path(pairs)))
    flatten(parents)
    joined = parents != np.arange(len(parents))
    joined[parents[joined]] = True
    candidates = np.flatnonzero(joined)
    roots = parents[candidates]
    del parents, joined
    lengths = _lengths(candidates, [Path(name) for name in task["chunks"]], starts)
    own = candidates < task["fixed"]
    members = np.lexsort((candidates, -lengths, own, roots))
    borders = np.flatnonzero(np.diff(roots[members], prepend=-1))
    save_array(out.with_name("candidates.npy"), candidates)
    save_array(out.with_name("borders.npy"), np.append(borders, len(members)))
    save_array(out, members)
    return {}


def _lengths(rows: I64, chunks: list[Path], starts: I64) -> I64:
    borders = np.searchsorted(rows, starts)
    parts = [np.zeros(0, np.int64)]
    for chunk, start, first, last in zip(chunks, starts[:-1], borders[:-1], borders[1:], strict=True):
        parts.append(mapped(beside(chunk, "lengths"))[rows[first:last] - start])
    return np.concatenate(parts)
