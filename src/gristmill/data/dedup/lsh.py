"""Locality-sensitive hashing: which documents may be similar, from their MinHash signatures.

Documents that agree on all minima of one band become candidates, which happens to a pair of Jaccard similarity J with
probability 1 - (1 - J**rows)**bands (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3).

`sign_chunk` reads the signatures of a chunk of files and leaves them, and the hashes of their bands, as arrays;
`pair_up` brings equal band hashes of all chunks together and leaves the pairs whose whole signatures agree well enough.
Both are tasks. Documents are rows here: the selected documents, counted in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.errors import GristmillError

from ..pool import Result, Task
from ..schema import read_columns
from ..step import Mask
from .runs import new_keys, read_range, shared, sorted_run
from .tables import I64, U32, mapped, save_array

SMALL_BUCKET = 16  # members up to which all pairs of a bucket are looked at; a larger one is tied together whole
GATHERED = 1 << 16  # members of buckets whose signatures are in memory at a time: 30 MB at 112 minima
DEVIATIONS = 3.0


def least_equal(threshold: float, minima: int) -> int:
    """How many equal minima a pair must have to be worth an exact comparison: three standard deviations below what is
    expected of a pair at the threshold, so that about one in a thousand of those is lost."""
    deviation = (threshold * (1 - threshold) * minima) ** 0.5
    return max(1, int(np.ceil(threshold * minima - DEVIATIONS * deviation)))


def sign_chunk(task: Task) -> Result:
    """Leave `signatures-N.npy` `[rows, minima]` (zeros where a document has none), `lengths-N.npy` (bytes of text) and
    `bands-N.npy` `[bands, 2, signed rows]`, a sorted run of (hash, row) for each band.

    The task gives `files`, `first` and `last` (the numbers of their first document and of the one behind their last),
    `row` (that of their first selected one), `selected` (the file of a mask of all documents), `permutations`, `bands`,
    `rows`, and the last file to write as `out`."""
    from .compiled import band_hashes

    out = Path(task["out"])
    first, last, row = task["first"], task["last"], task["row"]
    chosen = mapped(Path(task["selected"]))[first:last].copy()
    signatures = np.zeros((int(chosen.sum()), task["permutations"]), np.uint32)
    signed = np.zeros(len(signatures), np.bool_)
    lengths = np.zeros(len(signatures), np.int64)
    start = place = 0
    for name in task["files"]:
        read = read_columns(name, ["signature", *task["length"]])
        mine = chosen[start : start + read.num_rows]
        start += read.num_rows
        part = slice(place, place + int(mine.sum()))
        _fill(read["signature"].filter(mine), signatures[part], signed[part], name)
        if task["length"]:
            lengths[part] = read[task["length"][0]].filter(mine).to_numpy()
        place = part.stop
    hashes = band_hashes(signatures if signed.all() else signatures[signed], task["bands"], task["rows"])
    rows = row + np.flatnonzero(signed)
    save_array(beside(out, "signatures"), signatures)
    save_array(beside(out, "lengths"), lengths)
    save_array(out, np.stack([sorted_run(keys, rows) for keys in hashes]))
    pa.default_memory_pool().release_unused()
    return {}


def beside(out: Path, name: str) -> Path:
    """The file of another array of the same chunk: `bands-3.npy` and `lengths-3.npy`."""
    return out.with_name(f"{name}-{out.name.partition('-')[2]}")


def _fill(column: Any, signatures: U32, signed: Mask, name: str) -> None:
    """Put the signatures of a column into the rows of a matrix, and say which rows have one."""
    array = column.cast(pa.binary()).combine_chunks()
    signed[:] = array.is_valid().to_numpy(zero_copy_only=False)
    data = array.drop_null()
    size = 4 * signatures.shape[1]
    if len(data) and set(pc.unique(pc.binary_length(data)).to_pylist()) != {size}:
        raise GristmillError(f"{name}: its signatures do not have {size // 4} minima")
    if len(data):
        first = np.frombuffer(data.buffers()[1], np.int32)[data.offset]
        flat = np.frombuffer(data.buffers()[2], np.uint8)[first : first + len(data) * size]
        signatures[signed] = flat.view("<u4").reshape(-1, signatures.shape[1])


def pair_up(task: Task) -> Result:
    """Leave the pairs `[pairs, 2]` of rows that share a bucket and are worth a closer look, as `out`.

    The task gives `units` (each a band and a range of its hashes), `chunks` (the files of `sign_chunk`), `starts` (the
    first row of each chunk, and at the end the number of rows), `fixed` (the first row of other corpora, whose pairs
    with each other do not matter) and `least`, see `least_equal`."""
    chunks = [Path(name) for name in task["chunks"]]
    starts = np.array(task["starts"], np.int64)
    pairs: list[I64] = []
    for band, low, high in task["units"]:
        keys, rows = read_range((mapped(chunk)[band] for chunk in chunks), (low, high))
        new = new_keys(keys)
        several = shared(new)
        pairs += _pairs(rows[several].astype(np.int64), new[several], chunks, starts, task["fixed"], task["least"])
    save_array(Path(task["out"]), np.concatenate([np.zeros((0, 2), np.int64), *pairs]))
    return {}


def _pairs(rows: I64, new: Mask, chunks: list[Path], starts: I64, fixed: int, least: int) -> Iterator[I64]:
    """`rows` are the members of buckets of two and more; `new` is true at the first of each bucket."""
    from .compiled import look_alikes

    firsts = np.append(np.flatnonzero(new), len(rows))
    sizes = np.diff(firsts)
    large = np.repeat(sizes > SMALL_BUCKET, sizes)
    # A large bucket hangs on its first member: all its pairs would be too many to look at here.
    centre = np.repeat(rows[firsts[:-1]], sizes)
    tied = large & ~new & (centre < fixed)
    yield np.stack([centre[tied], rows[tied]], axis=1)

    members, sizes = rows[~large], sizes[sizes <= SMALL_BUCKET]
    borders = np.concatenate([[0], np.cumsum(sizes)])
    bucket = 0
    while bucket < len(sizes):
        until = max(bucket + 1, int(np.searchsorted(borders, borders[bucket] + GATHERED, side="right")) - 1)
        part = members[borders[bucket] : borders[until]]
        wanted, local = np.unique(part, return_inverse=True)
        counts = sizes[bucket:until]
        edges = np.empty((int((counts * (counts - 1) // 2).sum()), 2), np.int64)
        signatures = gather(wanted, chunks, starts)
        found = look_alikes(
            local, borders[bucket : until + 1] - borders[bucket], signatures, wanted >= fixed, least, edges
        )
        yield wanted[edges[:found]]
        bucket = until


def gather(rows: I64, chunks: list[Path], starts: I64) -> U32:
    """The signatures of ascending rows. `chunks` are files of `sign_chunk`, `starts` their first rows."""
    borders = np.searchsorted(rows, starts)
    parts = []
    for chunk, start, first, last in zip(chunks, starts[:-1], borders[:-1], borders[1:], strict=True):
        if last > first:
            parts.append(mapped(beside(chunk, "signatures"))[rows[first:last] - start])
    return np.concatenate(parts)
