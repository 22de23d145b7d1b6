"""Counting words in bounded memory: exact, whatever is spilled, merged, repeated or divided among workers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_rooms import VOCAB_SIZE, WEIGHTS, example_shards, files_of, stage_run

from gristmill.data.pool import Pool, Result, Task, load
from gristmill.data.ray_engine import RayMapper
from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.pretokenize import Pattern, build_pretokenizer
from gristmill.tokenizer.sample import Sample
from gristmill.tokenizer.train import train_tokenizer
from gristmill.tokenizer.training import merges, runs, words
from gristmill.tokenizer.training.runs import merge_runs, write_run
from gristmill.tokenizer.training.words import Words, count_sample, count_texts

PATTERN = Pattern("qwen2")
TEXTS = [row["text"] for shard in example_shards() for row in shard if row["split"] == "train"]


def counted(found: Words) -> dict[bytes, int]:
    return dict(zip(found.words.to_pylist(), found.counts.tolist(), strict=True))


def count_plainly(texts: list[str], name: str, digits: int | None = None) -> dict[bytes, int]:
    cut = build_pretokenizer(name, digits)
    found: Counter[bytes] = Counter()
    for text in texts:
        found.update(text[start:end].encode() for _, (start, end) in cut.pre_tokenize_str(text))
    return dict(found)


def sample_of(corpus: Path) -> Sample:
    return Sample(corpus, "train", WEIGHTS, 10**9, seed=7)


def count(sample: Sample, scratch: Path, pool: Pool) -> Words:
    return count_sample(sample, PATTERN, 10**9, scratch, pool, lambda done, total, unit: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of one or two row groups, runs of few words, merged two by two."""
    monkeypatch.setattr(words, "TASK_BYTES", 8000)
    monkeypatch.setattr(words, "SPLIT_BYTES", 500)
    monkeypatch.setattr(words, "_LEAST_TABLE", 1)
    monkeypatch.setattr(runs, "FAN_IN", 2)
    monkeypatch.setattr(runs, "RUN_ROWS", 7)


@pytest.mark.parametrize(("name", "digits"), [("gpt2", None), ("gpt4", None), ("qwen2", None), ("gpt4", 2)])
def test_words_are_counted(name: str, digits: int | None, tmp_path: Path) -> None:
    found = count_texts([pa.array(TEXTS), pa.array(TEXTS[:9])], Pattern(name, digits), 10**9, tmp_path)
    assert counted(found) == count_plainly([*TEXTS, *TEXTS[:9]], name, digits)
    assert found.words.to_pylist() == sorted(found.words.to_pylist())
    assert found.text_bytes == sum(len(text.encode()) for text in [*TEXTS, *TEXTS[:9]])
    assert (found.left_out, found.left_out_bytes) == (0, 0)


@pytest.mark.usefixtures("small")
def test_spills_change_nothing(tmp_path: Path) -> None:
    texts = [pa.array(TEXTS[start : start + 40]) for start in range(0, len(TEXTS), 40)]
    found = count_texts(texts, PATTERN, 300_000, tmp_path)
    assert len(list((tmp_path / "words").iterdir())) > 20
    assert counted(found) == count_plainly(TEXTS, "qwen2")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tables=st.lists(st.dictionaries(st.binary(max_size=3), st.integers(1, 2**45), max_size=40), min_size=1, max_size=7)
)
def test_merged_runs_are_the_sums(tables: list[dict[bytes, int]], tmp_path: Path) -> None:
    paths = []
    for number, table in enumerate(tables):
        column = pa.array(sorted(table), pa.binary())
        counts = np.array([table[word] for word in sorted(table)], np.int64)
        paths.append(tmp_path / f"{number}.arrow")
        write_run(paths[-1], [(column.slice(start, 3), counts[start : start + 3]) for start in range(0, len(table), 3)])
    total: Counter[bytes] = Counter()
    for table in tables:
        total.update(table)
    parts = list(merge_runs(paths))
    merged = [pair for part, counts in parts for pair in zip(part.to_pylist(), counts.tolist(), strict=True)]
    assert merged == sorted(total.items())


def test_the_rarest_words_are_left_out(tmp_path: Path) -> None:
    frequency = {"once": 1, "too": 1, "twice": 2, "also": 2, "thrice": 3}
    text = [" ".join([word] * count) for word, count in frequency.items()]
    table = count_plainly(text, "gpt2")
    for least in (1, 2, 3, 4):
        kept = {word: count for word, count in table.items() if count >= least}
        memory = sum(merges.BYTES_PER_SYMBOL * len(word) + merges.BYTES_PER_WORD for word in kept)
        found = count_texts([pa.array(text)], Pattern("gpt2"), memory, tmp_path / str(least))
        assert counted(found) == kept
        assert found.left_out == len(table) - len(kept)
        lost = sum(len(word) * count for word, count in table.items() if count < least)
        assert found.left_out_bytes == lost
        assert found.text_bytes == sum(map(len, text))


@pytest.mark.usefixtures("small")
def test_one_and_two_workers_train_the_same(corpus: Path, directory: Path, tmp_path: Path) -> None:
    assert len(list(words._tasks(sample_of(corpus), PATTERN, tmp_path))) > 3
    for workers in (1, 2):
        run = stage_run(tmp_path / str(workers), corpus=corpus)
        object.__setattr__(run, "workers", workers)
        train_tokenizer(TokenizerConfig(vocab_size=VOCAB_SIZE), run)
        assert files_of(run.out) == files_of(directory)


class _Cluster(Pool):
    """Does tasks here, but is as wide as a cluster; it keeps the memory that tasks were told they have."""

    def __init__(self, width: int):
        super().__init__(1)
        self.workers, self.told = width, list[int]()

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        for task in tasks:
            self.told.append(task["memory_bytes"])
            yield load(target)(task)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("width", "sharers"), [(1, 1), (3, 3), (10_000, None)])
def test_memory_is_shared_by_those_who_count_at_a_time(
    width: int, sharers: int | None, corpus: Path, tmp_path: Path
) -> None:
    """On a cluster these are neither the cores of this machine nor more than there are tasks."""
    sample, cluster = sample_of(corpus), _Cluster(width)
    count(sample, tmp_path, cluster)
    tasks = len(list(words._tasks(sample, PATTERN, tmp_path)))
    assert tasks > 3
    assert cluster.told == [10**9 // (sharers or tasks)] * tasks


@pytest.mark.parametrize(("asked", "tasks", "workers"), [(5, None, 5), (5, 2, 2), (2, 5, 2)])
def test_a_pool_tells_how_many_tasks_it_does_at_a_time(asked: int, tasks: int | None, workers: int) -> None:
    pool = Pool(asked)
    if tasks is not None:
        pool.limit(tasks)
    assert pool.workers == workers
    assert RayMapper(None, asked).workers == asked


class _Interrupted(Pool):
    """Does some tasks and stops."""

    def __init__(self, tasks: int):
        super().__init__(1)
        self.tasks, self.done = tasks, 0

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        for task in tasks:
            if self.done == self.tasks:
                raise KeyboardInterrupt
            self.done += 1
            yield load(target)(task)


@pytest.mark.usefixtures("small")
def test_what_a_killed_run_has_counted_is_kept(corpus: Path, tmp_path: Path) -> None:
    sample = sample_of(corpus)
    first = _Interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        count(sample, tmp_path, first)
    torn = next(tmp_path.glob("words-*")) / ".counted-000002.77.writing"
    torn.mkdir()
    (torn / "00000.arrow").write_bytes(b"half")
    second = _Interrupted(10**6)
    found = count(sample, tmp_path, second)
    assert counted(found) == count_plainly(TEXTS, "qwen2")
    assert (first.done, second.done) == (2, len(list(words._tasks(sample, PATTERN, tmp_path))) - 2)
    third = _Interrupted(0)
    assert counted(count(sample, tmp_path, third)) == counted(found)


@pytest.mark.usefixtures("small")
def test_kill_minus_nine_loses_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TASK_BYTES", 1)
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from gristmill.data.pool import Pool; from gristmill.tokenizer.pretokenize import Pattern\n"
        "from gristmill.tokenizer.sample import Sample; from gristmill.tokenizer.training import words\n"
        f"words.TASK_BYTES = {words.TASK_BYTES}; said = []\n"
        "def progress(done, total, unit):\n"
        "    said.append(done)\n"
        "    if len(said) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"sample = Sample(Path(sys.argv[1]), 'train', {WEIGHTS}, 10**9, seed=7)\n"
        "with Pool(2) as pool:\n"
        "    words.count_sample(sample, Pattern('qwen2'), 10**9, Path(sys.argv[2]), pool, progress)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(corpus), str(tmp_path)], env=environment)
    assert killed.returncode == -9
    again = _Interrupted(10**6)
    assert counted(count(sample_of(corpus), tmp_path, again)) == count_plainly(TEXTS, "qwen2")
    assert again.done <= len(list(words._tasks(sample_of(corpus), PATTERN, tmp_path))) - 3


@pytest.mark.usefixtures("small")
def test_what_was_counted_otherwise_is_not_taken(corpus: Path, tmp_path: Path) -> None:
    found = count(sample_of(corpus), tmp_path, Pool(1))
    part = Sample(corpus, "train", WEIGHTS, 20_000, seed=1)
    texts = [text for _, text in part.texts()]
    assert counted(count(part, tmp_path, Pool(1))) == count_plainly(texts, "qwen2") != counted(found)


def test_the_order_of_texts_does_not_matter(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    first = count_texts([pa.array(TEXTS)], PATTERN, 10**9, tmp_path / "a")
    second = count_texts([pa.array([text]) for text in shuffled], PATTERN, 10**9, tmp_path / "b")
    assert first.words.equals(second.words)
    assert first.counts.tolist() == second.counts.tolist()


def test_no_texts(tmp_path: Path) -> None:
    for texts in ([], [pa.array([], pa.string())], [pa.array(["", None])]):
        found = count_texts(texts, PATTERN, 10**9, tmp_path)
        assert len(found.words) == len(found.counts) == found.text_bytes == 0


def test_words_that_fit_in_no_memory_are_an_error(tmp_path: Path) -> None:
    texts = [pa.array(["mill " * 70_000])]
    with pytest.raises(GristmillError, match=r"memory_bytes is 100, too little to learn from the 1 words"):
        count_texts(texts, Pattern("gpt2"), 100, tmp_path)
