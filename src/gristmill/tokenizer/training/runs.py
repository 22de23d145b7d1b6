"""Runs: files of distinct words in the order of their bytes, with their counts, and how many become one.

However many runs there are, what is at hand of them is a few thousand words each, of `FAN_IN` runs at most.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

I64 = NDArray[np.int64]

RUN_ROWS, RUN_BYTES = 1 << 14, 1 << 20  # read of a run at a time, about
FAN_IN = 64  # runs merged at a time
_RUN = pa.schema([("word", pa.binary()), ("count", pa.int64())])


def write_run(path: Path, parts: Iterable[tuple[pa.Array, I64]]) -> None:
    """Write (words, counts) that are in order already."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _RUN) as writer:
        for words, counts in parts:
            batch = pa.record_batch([words.cast(pa.binary()), pa.array(counts)], schema=_RUN)
            rows = max(1, min(RUN_ROWS, RUN_BYTES * len(batch) // max(batch.nbytes, 1)))
            writer.write_table(pa.Table.from_batches([batch]), max_chunksize=rows)


class _Reader:
    """A run, read in order. `words` and `counts` are those at hand, `last` the last word of them."""

    def __init__(self, path: Path):
        self._source = pa.OSFile(str(path))
        self._file = pa.ipc.open_file(self._source)
        self._following = 0
        self.words: pa.Array = pa.array([], pa.binary())
        self.counts: I64 = np.zeros(0, np.int64)

    def fill(self) -> bool:
        """Read on where nothing is at hand; False at the end."""
        while not len(self.words):
            if self._following == self._file.num_record_batches:
                self._source.close()
                return False
            batch = self._file.get_batch(self._following)
            self._following += 1
            self.words, self.counts = batch["word"], batch["count"].to_numpy()
        return True

    @property
    def last(self) -> bytes:
        word: bytes = self.words[-1].as_py()
        return word

    def take(self, border: bytes) -> tuple[pa.Array, I64]:
        """The words at hand up to `border`."""
        low, high = 0, len(self.words)
        while low < high:
            middle = (low + high) // 2
            if self.words[middle].as_py() <= border:
                low = middle + 1
            else:
                high = middle
        found = self.words.slice(0, low), self.counts[:low]
        self.words, self.counts = self.words.slice(low), self.counts[low:]
        return found


def merge_runs(runs: Sequence[Path]) -> Iterator[tuple[pa.Array, I64]]:
    """(words, counts) of some runs together, in order, a stretch at a time: up to the lowest of the words at which
    what is at hand of a run ends, all runs' words are at hand."""
    readers = [_Reader(run) for run in runs]
    while readers := [reader for reader in readers if reader.fill()]:
        border = min(reader.last for reader in readers)
        parts = [reader.take(border) for reader in readers]
        words = pa.concat_arrays([part for part, _ in parts])
        counts = np.concatenate([part for _, part in parts])
        order = pc.array_sort_indices(words)
        words, counts = words.take(order), counts[order.to_numpy()]
        new = np.append(True, pc.not_equal(words.slice(1), words.slice(0, len(words) - 1)).to_numpy(False))
        firsts = np.flatnonzero(new)
        yield words.take(pa.array(firsts)), np.add.reduceat(counts, firsts)


def merged_down(runs: list[Path], work: Path) -> list[Path]:
    """At most `FAN_IN` runs that hold the words of all."""
    for level in itertools.count():
        if len(runs) <= FAN_IN:
            break
        merged = work / f"merged-{level}"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir()
        groups = [runs[start : start + FAN_IN] for start in range(0, len(runs), FAN_IN)]
        runs = [merged / f"{number:05d}.arrow" for number in range(len(groups))]
        for run, group in zip(runs, groups, strict=True):
            write_run(run, merge_runs(group))
    return runs
