"""Sorted runs, exact duplicates, repeated lines and paragraphs: the same in memory and by way of files."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.data.config import RepeatedUnitsConfig
from gristmill.data.dedup.exact import exact_duplicates
from gristmill.data.dedup.near import cluster_roots
from gristmill.data.dedup.repeated import drop_repeated_step, find_repeated, write_units
from gristmill.data.dedup.runs import key_ranges, new_keys, places, read_range, shared, spill
from gristmill.data.dedup.tables import DocumentFiles
from gristmill.data.step import check_chain


@pytest.mark.parametrize("limit", [3, 7, 40, 1000])
def test_runs_give_every_row_once_in_order(limit: int, tmp_path: Path) -> None:
    source = np.random.default_rng(limit)
    keys = source.choice(source.integers(0, 2**64, 60, dtype=np.uint64), 200)
    keys[:3] = 0, 2**64 - 1, 2**63
    numbers = np.arange(200)
    tables = [(keys[i : i + 9], numbers[i : i + 9]) for i in range(0, 200, 9)]
    runs, total = spill(tables, tmp_path, limit)
    assert total == 200
    assert all(isinstance(run, Path) for run in runs) == (limit < 200)
    found = np.concatenate([read_range(runs, part) for part in key_ranges(total, limit)], axis=1)
    order = np.argsort(keys, kind="stable")
    assert (found == np.stack([keys[order], order.astype(np.uint64)])).all()


@pytest.mark.parametrize(("rows", "limit"), [(0, 5), (1, 5), (11, 5), (1000, 1)])
def test_key_ranges_cover_every_key_once(rows: int, limit: int) -> None:
    ranges = key_ranges(rows, limit)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 2**64 - 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ranges))
    assert len(ranges) * limit >= rows


def test_stretches_of_equal_keys() -> None:
    keys = np.array([1, 1, 2, 3, 3, 3], np.uint64)
    assert new_keys(keys).tolist() == [True, False, True, True, False, False]
    assert shared(new_keys(keys)).tolist() == [True, True, False, True, True, True]
    assert places(new_keys(keys)).tolist() == [0, 1, 0, 0, 1, 2]
    assert new_keys(keys, np.array([1, 2, 2, 3, 3, 3], np.uint64)).tolist() == [True, True, True, True, False, False]
    assert len(places(new_keys(keys[:0]))) == len(shared(new_keys(keys[:0]))) == 0


def digest_columns(digests: list[bytes], rows: int) -> list[pa.ChunkedArray]:
    """As they come from files: chunked, and with an offset."""
    array = pa.array([b"x" * 16, *digests], pa.binary(16))
    return [pa.chunked_array([array[1 + i : 1 + i + rows]]) for i in range(0, len(digests), rows)]


@pytest.mark.parametrize("limit", [3, 13, 100_000])
def test_exact_duplicates_are_those_of_a_dictionary(limit: int, tmp_path: Path) -> None:
    source = random.Random(0)
    halves = [source.randbytes(8) for _ in range(6)]
    texts = [source.choice(halves) + source.choice(halves) for _ in range(90)]  # many share a half and not the other
    seen: dict[bytes, int] = {}
    expected = [-1 if (first := seen.setdefault(text, i)) == i else first for i, text in enumerate(texts)]
    assert exact_duplicates(digest_columns(texts, 7), tmp_path / "exact", limit).tolist() == expected
    assert (tmp_path / "exact").exists() == (limit < 90)


def test_no_documents_have_no_duplicates(tmp_path: Path) -> None:
    assert len(exact_duplicates([], tmp_path)) == 0
    assert len(exact_duplicates([pa.chunked_array([], pa.binary(16))], tmp_path)) == 0


def test_cluster_roots_follow_copies_of_near_duplicates() -> None:
    # 1 is a copy of 0, 0 resembles 3; 4 resembles a document of another corpus, 5 is a copy of 4.
    assert cluster_roots(np.array([3, 0, -1, -1, 9, 4])).tolist() == [3, 3, 2, 3, 9, 9]


def test_files_are_taken_together_until_they_hold_enough() -> None:
    files = DocumentFiles(tuple(map(Path, "abcde")), (4, 0, 3, 9, 1))
    assert list(files.chunks(5)) == [(0, 3), (3, 4), (4, 5)]
    assert list(files.chunks(100)) == [(0, 5)]
    assert len(files) == 17
    assert list(DocumentFiles((), ()).chunks(5)) == []


LONG = "A paragraph that stands on every page of the site, such as a notice of its licence or a menu."


def unit(name: str) -> str:
    return f"{name} " + f"is a text of its own, {name}, and long enough to be looked at, which short ones are not. " * 2


def through(
    groups: list[list[str]], config: RepeatedUnitsConfig, work: Path, limit: int
) -> tuple[list[list[str]], dict[str, int]]:
    """The texts of the row groups after all three passes, and the counts."""
    batches, number = [], 0
    for texts in groups:
        ids = [f"{0xFFFFFFFFFFFFFF00 + number + i:016x}" for i in range(len(texts))]
        number += len(texts)
        sizes = [len(text.encode()) for text in texts]
        batches.append(pa.RecordBatch.from_pydict({"id": ids, "text": texts, "bytes": sizes}))
    work.mkdir()
    outputs = [work / f"{i}.npy" for i in range(len(groups))]
    for batch, out in zip(batches, outputs, strict=True):
        write_units((batch[:1], batch[1:]), config, out)
    counts = find_repeated(outputs, work / "found", config, limit)
    results = []
    for group, batch in enumerate(batches):
        step = drop_repeated_step(work / "found", group, config)
        check_chain([step], batch.schema)
        result = step.apply(batch)
        assert result["bytes"].to_pylist() == [len(text.encode()) for text in result["text"].to_pylist()]
        assert (result is batch) == (result["text"] == batch["text"])
        results.append(result["text"].to_pylist())
    return results, counts


@pytest.mark.parametrize("limit", [1, 5, 10_000])
@pytest.mark.parametrize("kind", ["paragraph", "line"])
@pytest.mark.parametrize("most", [1, 3])
def test_repeated_units_stay_in_the_first_documents_only(limit: int, kind: str, most: int, tmp_path: Path) -> None:
    source = random.Random(3)
    units = [unit(f"é{i}") for i in range(12)] + ["short one", "tiny"]
    between = "\n\n" if kind == "paragraph" else "\n"
    groups = [
        [between.join(source.choices(units, k=source.randrange(0, 6))) for _ in range(source.randrange(1, 5))]
        for _ in range(9)
    ]
    config = RepeatedUnitsConfig(unit=kind, max_documents=most)
    found, counts = through(groups, config, tmp_path / "work", limit)

    holders: dict[str, int] = {}
    expected, dropped, looked_at = [], 0, 0
    for group in groups:
        texts = []
        for text in group:
            parts = text.split(between) if text else []
            long = {part for part in parts if len(part) >= config.min_characters}
            for part in long:
                holders[part] = holders.get(part, 0) + 1
            gone = {part for part in long if holders[part] > most}
            dropped, looked_at = dropped + len(gone), looked_at + len(long)
            texts.append(between.join(part for part in parts if part not in gone))
        expected.append(texts)
    assert found == expected
    assert counts == {"units": looked_at, "dropped": dropped}
    assert dropped


def test_what_is_left_is_a_clean_text(tmp_path: Path) -> None:
    texts = [LONG, f"one\n\n\n{LONG}\n\n\ntwo", f"{LONG}\n\n  kept\n\n{LONG}", LONG]
    found, _ = through([texts], RepeatedUnitsConfig(), tmp_path / "work", 100)
    assert found == [[LONG, "one\n\n\ntwo", "  kept", ""]]
    lines = [LONG, f"a\n\n\n{LONG}\n\n\nb\n{LONG}"]
    found, _ = through([lines], RepeatedUnitsConfig(unit="line"), tmp_path / "lines", 100)
    assert found == [[LONG, "a\n\n\nb"]]
