"""Counting the distinct pre-tokens ("words") of a text of any size in bounded memory.

Workers count one task each, a run of row groups of the corpus. Whenever a table of words is full, and at a task's end,
it goes to scratch as a run: words in the order of their bytes, with their counts. What a task has written appears by a
rename when it is whole, so that a killed stage goes on behind it. Then runs are merged, a stretch of words at a time.

What is counted is exact and depends neither on the number of workers nor on where a run ends. Only where the distinct
words themselves are too many to learn from within the memory allowed, the rarest are left out: all words that occur
fewer times than the lowest count at which the others fit.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.artifact import hash_json
from gristmill.data.pool import Mapper, Result, Task
from gristmill.errors import GristmillError

from ..pretokenize import Pattern
from ..sample import RowGroup, Sample, read_drawn, split_column
from .merges import BYTES_PER_SYMBOL, BYTES_PER_WORD, MOST_SYMBOLS
from .runs import merge_runs, merged_down, write_run

I64 = NDArray[np.int64]
Progress = Callable[[int, int, str], None]

TASK_BYTES = 96 << 20
SPLIT_BYTES = 8 << 20  # of a column that is counted before memory is looked at again
_DISTINGUISHED = 1 << 16  # counts up to here are told apart when words are left out
_LEAST_TABLE, _LARGEST_TABLE = 4 << 20, 1 << 30


@dataclass(frozen=True)
class Words:
    """`words` (large_binary, sorted) occur `counts` times each. `left_out` words, which stand for `left_out_bytes` of
    the text, are missing; `text_bytes` counts them too."""

    words: pa.LargeBinaryArray
    counts: I64
    text_bytes: int
    left_out: int
    left_out_bytes: int


def count_sample(
    sample: Sample, pattern: Pattern, memory_bytes: int, scratch: Path, mapper: Mapper, progress: Progress
) -> Words:
    """The words of a sample of a corpus, counted by the workers of `mapper`, which share `memory_bytes`."""
    work = scratch / f"words-{_key(sample, pattern)}"
    work.mkdir(parents=True, exist_ok=True)
    tasks = list(_tasks(sample, pattern, work))
    missing = [task for task in tasks if not Path(task["out"]).exists()]
    if missing:
        for shard, take in enumerate(sample.take):
            np.save(work / f"take-{shard:05d}.npy", take)
    total = sum(task["bytes"] for task in tasks)
    done = total - sum(task["bytes"] for task in missing)
    share = memory_bytes // max(1, min(mapper.workers, len(missing)))
    for result in mapper(f"{__name__}:count_task", [{**task, "memory_bytes": share} for task in missing]):
        done += result["bytes"]
        progress(done, total, "bytes counted")
    return _merged([Path(task["out"]) for task in tasks], work, memory_bytes)


def most_tasks(sample: Sample) -> int:
    """No more tasks than that will be made: it is no use to have more workers."""
    return max(1, sum(group.drawn for group in sample.row_groups) // TASK_BYTES + len(sample.shards))


def count_texts(texts: Iterable[pa.Array], pattern: Pattern, memory_bytes: int, scratch: Path) -> Words:
    """The words of columns of strings, counted in this process. `scratch` is a directory that holds nothing else."""
    out = scratch / "words"
    shutil.rmtree(out, ignore_errors=True)
    _write_runs(texts, pattern, memory_bytes, out)
    return _merged([out], scratch, memory_bytes)


def load_kernel(task: Task) -> Result:
    """Load what is compiled, or compile it: before workers are forked."""
    from ..kernel.count import WordCounter

    counter = WordCounter(Pattern("gpt2"))
    counter.add(pa.array(["mill"]))
    counter.take()
    return {}


def count_task(task: Task) -> Result:
    """Count the row groups of one task. It gives `shard`, `row_groups`, `take` (the file that says what is drawn of the
    shard), `pattern`, `memory_bytes`, `out` and `bytes`."""
    take = np.load(task["take"], mmap_mode="r")
    groups = [RowGroup(*group) for group in task["row_groups"]]
    tables = read_drawn(Path(task["shard"]), groups, take, ["text"])
    texts = (text for table in tables for text in table["text"].chunks)
    _write_runs(texts, Pattern(*task["pattern"]), task["memory_bytes"], Path(task["out"]))
    pa.default_memory_pool().release_unused()
    return {"bytes": task["bytes"]}


def _key(sample: Sample, pattern: Pattern) -> str:
    """What the work in scratch depends on."""
    shards = [[str(shard), shard.stat().st_size] for shard in sample.shards]
    drawn = [hashlib.sha256(take.tobytes()).hexdigest() for take in sample.take]
    return hash_json([pattern.name, pattern.digits, shards, drawn, TASK_BYTES])[:16]


def _tasks(sample: Sample, pattern: Pattern, work: Path) -> Iterator[Task]:
    """About `TASK_BYTES` of text each, of one file: the cut depends on the sample alone. `memory_bytes` comes later."""
    number = 0
    for shard, of_shard in itertools.groupby(sample.row_groups, key=lambda group: group.shard):
        waiting: list[RowGroup] = []
        groups = list(of_shard)
        for place, group in enumerate(groups):
            waiting.append(group)
            size = sum(one.drawn for one in waiting)
            if size >= TASK_BYTES or place + 1 == len(groups):
                yield {
                    "shard": str(sample.shards[shard]),
                    "row_groups": waiting,
                    "take": str(work / f"take-{shard:05d}.npy"),
                    "pattern": [pattern.name, pattern.digits],
                    "out": str(work / f"counted-{number:06d}"),
                    "bytes": size,
                }
                number += 1
                waiting = []


def _write_runs(texts: Iterable[pa.Array], pattern: Pattern, memory_bytes: int, out: Path) -> None:
    """Count texts into runs `out/NNNNN.arrow`. The directory appears when it is whole."""
    from ..kernel.count import WordCounter

    working = out.with_name(f".{out.name}.{os.getpid()}.writing")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    counter = WordCounter(pattern)
    # A table doubles when it is full, and taking it out takes half as much again.
    limit = min(max(memory_bytes // 3, _LEAST_TABLE), _LARGEST_TABLE)
    numbers = itertools.count()
    for column in texts:
        for part in split_column(column, SPLIT_BYTES):
            counter.add(part)
            if counter.held_bytes > limit:
                write_run(working / f"{next(numbers):05d}.arrow", [counter.take()])
    write_run(working / f"{next(numbers):05d}.arrow", [counter.take()])
    if out.exists():  # a task that was done twice has counted the same, and the runs there may be in use
        shutil.rmtree(working)
    else:
        os.replace(working, out)


class _Spectrum(NamedTuple):
    """By count, up to `_DISTINGUISHED`: how many words occur so often, and how many bytes they have."""

    words: I64
    bytes: I64

    @classmethod
    def empty(cls) -> _Spectrum:
        return cls(np.zeros(_DISTINGUISHED + 1, np.int64), np.zeros(_DISTINGUISHED + 1, np.int64))

    def add(self, words: pa.Array, counts: I64) -> None:
        place = np.minimum(counts, _DISTINGUISHED)
        sizes = pc.binary_length(words).to_numpy(False)
        self.words[:] += np.bincount(place, minlength=_DISTINGUISHED + 1)
        self.bytes[:] += np.bincount(place, sizes, _DISTINGUISHED + 1).astype(np.int64)

    def least(self, memory_bytes: int) -> int:
        """The lowest count at which all words that occur as often or more can be learned from within the memory."""
        words, sizes = self.words[::-1].cumsum()[::-1], self.bytes[::-1].cumsum()[::-1]
        fits = (BYTES_PER_SYMBOL * sizes + BYTES_PER_WORD * words <= memory_bytes) & (words + sizes < MOST_SYMBOLS)
        if not fits[-1]:
            raise GristmillError(
                f"tokenizer.memory_bytes is {memory_bytes}, too little to learn from the {words[-1]} words that occur "
                f"{_DISTINGUISHED} times or more; raise it, or lower tokenizer.sample_bytes"
            )
        return int(np.argmax(fits))


def _merged(counted: Sequence[Path], work: Path, memory_bytes: int) -> Words:
    """Merge the runs in some directories, and read those that fit in memory."""
    runs = merged_down([run for directory in counted for run in sorted(directory.glob("*.arrow"))], work)
    spectrum = _Spectrum.empty()
    total = 0

    def watched() -> Iterator[tuple[pa.Array, I64]]:
        nonlocal total
        for words, counts in merge_runs(runs):
            spectrum.add(words, counts)
            total += int((pc.binary_length(words).to_numpy(False) * counts).sum())
            yield words, counts

    path = work / "words.arrow"
    write_run(path, watched())
    return _read_words(path, spectrum, total, memory_bytes)


def _read_words(path: Path, spectrum: _Spectrum, total: int, memory_bytes: int) -> Words:
    least = spectrum.least(memory_bytes)
    parts, counts = [], []
    with pa.OSFile(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            batch = batch.filter(pc.greater_equal(batch["count"], least))
            parts.append(batch["word"].cast(pa.large_binary()))
            counts.append(batch["count"].to_numpy())
    words = pa.concat_arrays(parts) if parts else pa.array([], pa.large_binary())
    kept = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    kept_bytes = int((pc.binary_length(words).to_numpy(False) * kept).sum())
    return Words(words, kept, total, int(spectrum.words.sum()) - len(words), total - kept_bytes)
