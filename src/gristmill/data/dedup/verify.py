"""The check before removal: candidates are compared by the true Jaccard similarity of their sets of n-grams.

Within a component documents are taken in order: those of other corpora, then the longest, then the first. Each is
compared with documents that stay and share a band with it; when the most similar of them reaches the threshold it is
removed, else it stays. So every removed document has a likeness that is still there, and a chain of pairwise similar
pages does not shrink to its first one, as it does where pairs are merged into clusters.

Two limits keep large buckets from costing the square of their size: a bucket remembers only the documents kept last,
and a document is compared exactly only with the few whose signatures agree with its own best. They may leave a
duplicate in; they never take out a document that has no likeness.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..pool import Result, Task
from .lsh import beside, gather
from .tables import I64, U32, U64, mapped, save_array

REMEMBERED = 1024  # kept documents of a bucket that later ones are compared with: the last, which are nearest in length
CLOSEST = 16  # of them, how many a document is compared with exactly
IN_MEMORY = 1 << 28  # bytes up to which an array of a batch of components is held in memory
VERDICT = np.dtype([("removed", np.int64), ("kept", np.int64), ("jaccard", np.float64)])


def collect_sets(task: Task) -> Result:
    """Leave the sets of n-grams of the candidates in a chunk of files, one behind the other in `sets-N` (plain 64-bit
    numbers), and where each begins as `out`.

    The task gives `files` (with a column text), `row` and `last_row` (the first row in them and the one behind the
    last), `candidates` (the file of all candidates' rows), `ngram`, and `first`, `last` and `selected` as for
    `lsh.sign_chunk`; `selected` is null where every document of the files is a row."""
    from ..kernel import shingles

    out = Path(task["out"])
    candidates = mapped(Path(task["candidates"]))
    begin, end = np.searchsorted(candidates, (task["row"], task["last_row"]))
    wanted = candidates[begin:end] - task["row"]
    if task["selected"] is not None:
        chosen = mapped(Path(task["selected"]))[task["first"] : task["last"]]
        wanted = np.flatnonzero(chosen)[wanted]
    sizes = [np.zeros(1, np.int64)]
    temporary = sets_beside(out).with_suffix(".writing")
    with open(temporary, "wb") as sets:
        for texts in _texts([Path(name) for name in task["files"]], wanted):
            hashes, offsets = shingles(texts, task["ngram"])
            hashes.tofile(sets)
            sizes.append(np.diff(offsets))
    os.replace(temporary, sets_beside(out))
    save_array(out, np.cumsum(np.concatenate(sizes)))
    pa.default_memory_pool().release_unused()
    return {}


def sets_beside(offsets: Path) -> Path:
    """The file of the sets whose offsets stand in the given one."""
    return beside(offsets, "sets").with_suffix("")


def _texts(files: list[Path], wanted: I64) -> Iterator[Any]:
    """The texts of the wanted documents (ascending numbers, counted from the first file's first), a row group at a
    time; the others are not decoded."""
    start = 0
    for path in files:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)]
            if len(here):
                yield file.read_row_group(group, columns=["text"], use_threads=False)["text"].take(
                    pa.array(here - start)
                )
            start = end


def verify(task: Task) -> Result:
    """Leave the verdicts (`VERDICT`, one for every removed document, by rows) on some components as `out`, and beside
    it `counts-N.npy`: pairs compared, and pairs that reached the threshold.

    The task gives `first` and `last` (the components), `members`, `borders` and `candidates` (files of
    `find_components`), `sets` (the offset files of `collect_sets`) and `set_starts` (the place of the first candidate
    in each, and at the end their number), `chunks`, `starts`, `fixed` and `least` as for `lsh.pair_up`, `threshold`,
    `permutations`, `bands` and `rows`."""
    from .compiled import band_hashes, choose

    out = Path(task["out"])
    borders = mapped(Path(task["borders"]))
    members = mapped(Path(task["members"]))[borders[task["first"]] : borders[task["last"]]].copy()
    rows = mapped(Path(task["candidates"]))[members]
    signatures = _signatures(rows, task, out)
    hashes, offsets = _sets(members, [Path(name) for name in task["sets"]], task["set_starts"], out)
    buckets, room = _buckets(band_hashes(signatures, task["bands"], task["rows"]))
    kept = np.empty(len(rows), np.int64)
    similarity = np.empty(len(rows), np.float64)
    fixed = rows >= task["fixed"]
    counts = choose(
        buckets, room, signatures, hashes, offsets, fixed, task["threshold"], task["least"], CLOSEST, kept, similarity
    )
    removed = np.flatnonzero(kept >= 0)
    verdicts = np.empty(len(removed), VERDICT)
    verdicts["removed"], verdicts["kept"] = rows[removed], rows[kept[removed]]
    verdicts["jaccard"] = similarity[removed]
    save_array(beside(out, "counts"), np.array(counts, np.int64))
    save_array(out, verdicts)
    return {}


def _signatures(rows: I64, task: Task, out: Path) -> U32:
    """The signatures of rows in any order."""
    order = np.argsort(rows)
    chunks, starts = [Path(name) for name in task["chunks"]], np.array(task["starts"], np.int64)
    signatures = _array((len(rows), task["permutations"]), np.dtype(np.uint32), beside(out, "signatures-of"))
    step = 1 << 16
    for place in range(0, len(rows), step):
        part = order[place : place + step]
        signatures[part] = gather(rows[part], chunks, starts)
    return signatures


def _sets(members: I64, files: list[Path], starts: list[int], out: Path) -> tuple[U64, I64]:
    """The sets of the members, in their order, and their offsets."""
    order = np.argsort(members)
    borders = np.searchsorted(members[order], starts)
    sizes = np.zeros(len(members) + 1, np.int64)
    parts = [
        (order[first:last], start, path)
        for path, start, first, last in zip(files, starts[:-1], borders[:-1], borders[1:], strict=True)
        if last > first
    ]
    for part, start, path in parts:
        sizes[part + 1] = np.diff(mapped(path))[members[part] - start]
    offsets = np.cumsum(sizes)
    hashes: U64 = _array((int(offsets[-1]),), np.dtype(np.uint64), beside(out, "sets-of"))
    for part, start, path in parts:
        if not sets_beside(path).stat().st_size:
            continue
        begins = mapped(path)
        sets = np.asarray(np.memmap(sets_beside(path), np.uint64, "r"))
        for member, place in zip(part.tolist(), (members[part] - start).tolist(), strict=True):
            hashes[offsets[member] : offsets[member + 1]] = sets[begins[place] : begins[place + 1]]
    return hashes, offsets


def _buckets(hashes: U64) -> tuple[I64, I64]:
    """The bucket of every document in every band, `[documents, bands]`, or -1 where it is alone; and where the memory
    of each bucket begins. `hashes` is `[bands, documents]`; those of different bands differ."""
    _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    shared = counts > 1
    renumbered = np.where(shared, np.cumsum(shared) - 1, -1)
    room = np.concatenate([[0], np.cumsum(np.minimum(counts[shared], REMEMBERED))])
    return np.ascontiguousarray(renumbered[numbers].reshape(hashes.shape).T), room


def _array(shape: tuple[int, ...], kind: np.dtype[Any], path: Path) -> NDArray[Any]:
    """An empty array, in memory or, when it is large, in a file that is gone as soon as the array is."""
    if int(np.prod(shape)) * kind.itemsize <= IN_MEMORY:
        return np.empty(shape, kind)
    array = np.asarray(np.memmap(path, kind, "w+", shape=shape))
    path.unlink()
    return array
