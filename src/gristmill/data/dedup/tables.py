"""The tables of documents that deduplication reads, and the arrays that it leaves for its next steps.

Documents are numbered from 0 by their position in a list of Parquet files. A step of the work is a task: a function of
a JSON object that leaves files behind. A file appears whole or not at all, and a task whose file is there is not done
again, so a stage that was killed goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..pool import Mapper, Task

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class DocumentFiles:
    """Parquet files in order and the number of rows in each."""

    paths: tuple[Path, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> DocumentFiles:
        """The files with their rows, which are read from their footers."""
        listed = tuple(paths)
        return cls(listed, tuple(pq.read_metadata(path).num_rows for path in listed))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> I64:
        """The number of the first document of each file, and at the end the number of documents."""
        return np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)])

    def chunks(self, documents: int) -> Iterator[tuple[int, int]]:
        """Ranges of files that hold at least so many documents each, but for the last."""
        first = 0
        for last in range(1, len(self.paths) + 1):
            if self.starts[last] - self.starts[first] >= documents or last == len(self.paths):
                yield first, last
                first = last


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file so that it is whole as soon as it has its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)


def mapped(path: Path) -> NDArray[Any]:
    """An array of a .npy file without reading it: pages come as they are touched, and go when memory is wanted."""
    if os.path.getsize(path) <= 128 + 64:  # an empty array has nothing to map
        return np.load(path, allow_pickle=False)
    # Copy-on-write counts as writeable, as arrays in memory are: compiled functions know one kind of array, not two.
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def do(mapper: Mapper, target: str, tasks: Sequence[Task], progress: Callable[[int, int], None]) -> list[Path]:
    """Do the tasks whose file `out` is not there yet; all their files, in order."""
    outputs = [Path(task["out"]) for task in tasks]
    waiting = [task for task, out in zip(tasks, outputs, strict=True) if not out.exists()]
    for done, _ in enumerate(mapper(target, waiting), len(tasks) - len(waiting) + 1):
        progress(done, len(tasks))
    return outputs
