"""Exact duplicates: documents whose text is equal, told by its 128-bit digest.

Up to a limit all digests are in memory; beyond it they wait on disk, sorted, and are compared one range at a time.
Either way the answer is the same and takes 8 bytes a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .runs import key_ranges, new_keys, read_range, shared, spill
from .tables import I64, U64

IN_MEMORY = 1 << 21  # documents whose digests are sorted at a time: about 250 MB


def exact_duplicates(digests: Iterable[Any], work: Path, limit: int = IN_MEMORY) -> I64:
    """For each document the number of the first one with an equal digest, or -1 where it is that itself.

    `digests` are pyarrow arrays of `pa.binary(16)` without nulls, such as one column of each file, in order; documents
    of other corpora come before those of this one. `work` is a directory for this function alone; it is made when there
    are more than `limit` documents.
    """
    runs, total = spill(_tables(digests), work, limit)
    first = np.full(total, -1, np.int64)
    for keys in key_ranges(total, limit) if total else ():
        rows = read_range(runs, keys)
        rows = rows[:, shared(new_keys(rows[0]))]
        upper, lower, numbers = rows[:, np.lexsort((rows[1], rows[0]))]  # stable: the numbers of equals still ascend
        new = new_keys(upper, lower)
        originals = numbers[new][np.cumsum(new) - 1]
        first[numbers[~new]] = originals[~new]
    return first


def _tables(digests: Iterable[Any]) -> Iterator[tuple[U64, U64, I64]]:
    """(upper half, lower half, number) of the documents of each file."""
    start = 0
    for column in digests:
        for array in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
            data = np.frombuffer(array.buffers()[1] or b"", np.uint64)
            halves = data[2 * array.offset : 2 * (array.offset + len(array))].reshape(-1, 2)
            yield halves[:, 0], halves[:, 1], np.arange(start, start + len(halves))
            start += len(halves)
