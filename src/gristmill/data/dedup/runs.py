"""Sorted runs: how rows that belong together by a 64-bit hash meet without all of them in memory.

A run is an array `[1 + columns, rows]` of 64-bit numbers, sorted by its first line, the keys. Keys are hashes, so equal
ranges of keys hold about equally many rows; a range is read from all runs and sorted by itself. Rows with equal keys
come in the order of the runs, and within a run in the order in which they were given: nothing depends on where one run
ends and the next begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..step import Mask
from .tables import I64, U64, mapped, save_array

Run = U64 | Path  # in memory, or in a .npy file


def sorted_run(keys: U64, *columns: U64 | I64) -> U64:
    """A run of these rows."""
    order = np.argsort(keys, kind="stable")
    return np.stack([keys[order], *(column[order].astype(np.uint64, copy=False) for column in columns)])


def spill(tables: Iterable[Sequence[U64 | I64]], work: Path, limit: int) -> tuple[list[Run], int]:
    """Runs of the given rows, and how many rows there are. Each table is (keys, column, ...). Up to `limit` rows stay
    in memory; more of them go to files in `work`, a directory of the caller's own."""
    runs: list[Run] = []
    waiting: list[Sequence[U64 | I64]] = []
    held = total = 0
    for table in tables:
        if held and held + len(table[0]) > limit:
            runs.append(_run_file(waiting, work, len(runs)))
            waiting, held = [], 0
        waiting.append(table)
        held += len(table[0])
        total += len(table[0])
    if waiting:
        runs.append(_run_file(waiting, work, len(runs)) if runs else _joined(waiting))
    return runs, total


def _run_file(tables: list[Sequence[U64 | I64]], work: Path, number: int) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"run-{number:05d}.npy"
    save_array(path, _joined(tables))
    return path


def _joined(tables: list[Sequence[U64 | I64]]) -> U64:
    return sorted_run(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))


def key_ranges(rows: int, limit: int) -> list[tuple[int, int]]:
    """Ranges (first key, last key) that cover all keys; each holds about `limit` of `rows` rows, or fewer."""
    parts = max(1, -(-rows // limit))
    borders = [(part << 64) // parts for part in range(parts + 1)]
    return [(low, high - 1) for low, high in pairwise(borders)]


def read_range(runs: Iterable[Run], keys: tuple[int, int]) -> U64:
    """The rows of all runs (one at least) whose key lies in the range, as one run."""
    low, high = np.uint64(keys[0]), np.uint64(keys[1])
    slices = []
    for run in runs:
        rows = mapped(run) if isinstance(run, Path) else run
        first = np.searchsorted(rows[0], low, side="left")
        last = np.searchsorted(rows[0], high, side="right")
        slices.append(rows[:, first:last].copy())  # a copy lets go of the file: there may be more than can be open
    if len(slices) == 1:
        return slices[0]
    together = np.concatenate(slices, axis=1)
    # A merge sort takes sorted stretches as they are: about one comparison a row.
    return together[:, np.argsort(together[0], kind="stable")]


def new_keys(*keys: U64 | I64) -> Mask:
    """True at each row of a sorted table whose keys differ from those of the row before."""
    new = np.ones(len(keys[0]), np.bool_)
    new[1:] = False
    for column in keys:
        new[1:] |= column[1:] != column[:-1]
    return new


def shared(new: Mask) -> Mask:
    """True at each row that has another one with equal keys, given `new_keys` of the table."""
    lonely = new.copy()
    lonely[:-1] &= new[1:]
    return ~lonely


def places(new: Mask) -> I64:
    """The place of each row among the rows with equal keys, 0 for the first, given `new_keys` of the table."""
    starts = np.flatnonzero(new)
    return np.arange(len(new)) - np.repeat(starts, np.diff(np.append(starts, len(new))))
