"""Which text a tokenizer is trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import WEIGHTS, example_shards, write_corpus

from gristmill.errors import GristmillError
from gristmill.tokenizer.sample import Sample, share_out


@settings(deadline=None)
@given(
    st.integers(0, 10**9),
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.integers(0, 10**9), st.one_of(st.just(0.0), st.floats(1e-6, 1))),
        max_size=6,
    ),
)
def test_share_out_follows_the_weights(budget: int, domains: dict[str, tuple[int, float]]) -> None:
    available = {name: size for name, (size, _) in domains.items()}
    weights = {name: weight for name, (_, weight) in domains.items()}
    quota = share_out(budget, available, weights)
    assert sum(quota.values()) <= budget
    assert all(0 <= quota[name] <= available[name] for name in available)
    assert all(quota[name] == 0 for name in available if weights[name] == 0)
    short = [name for name in available if quota[name] < available[name] and weights[name] > 0]
    if short:  # then the budget was spent, and nobody who got less than all got less than by the weight of another
        assert sum(quota.values()) >= budget - len(short)
        rate = min((quota[name] + 1) / weights[name] for name in short)
        assert all(quota[name] <= rate * weights[name] * (1 + 1e-9) + 1 for name in available if weights[name] > 0)


def test_sample_is_bounded_spread_and_weighted(tmp_path: Path) -> None:
    rows = [
        {"domain": name, "split": "train", "text": f"{name} {i:03d} " + "é" * 46} for i in range(200) for name in "ab"
    ]
    held_out = [{"domain": "a", "split": "validation", "text": "held out"}] * 50
    directory = write_corpus(tmp_path / "c", [rows + held_out], {"a": 0.75, "b": 0.25})
    sample = Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=1)
    texts = list(sample.texts())
    by_domain = {name: [text for domain, text in texts if domain == name] for name in "ab"}
    assert sample.quota == {"a": 3000, "b": 1000}
    assert {name: sum(len(text.encode()) for text in by_domain[name]) for name in "ab"} in (
        {"a": 3000, "b": 1000}, {"a": 2999, "b": 1000}, {"a": 3000, "b": 999}, {"a": 2999, "b": 999},
    )  # a document that is cut short is cut between two characters  # fmt: skip
    assert "held out" not in [text for _, text in texts]
    numbers = [int(text.split()[1]) for text in by_domain["a"]]
    assert numbers == sorted(numbers)
    assert max(numbers) > 100
    assert texts == list(Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=1).texts())
    assert texts != list(Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=2).texts())


def drawn_plainly(corpus: Path, split: str, quota: dict[str, int], seed: int) -> list[tuple[str, str]]:
    """The documents of each domain in the order of their hashes, whole, until the quota is met; in file order."""
    rows = [row for path in sorted((corpus / "documents").iterdir()) for row in pq.read_table(path).to_pylist()]
    rows = [row for row in rows if row["split"] == split]
    take = {}
    left = dict(quota)
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row['id']}".encode()).digest()[:8]):
        size = min(len(row["text"].encode()), left[row["domain"]])
        take[row["id"]] = size
        left[row["domain"]] -= size
    cut = [(row["domain"], row["text"].encode()[: take[row["id"]]].decode("utf-8", "ignore")) for row in rows]
    return [(domain, text) for (domain, text), row in zip(cut, rows, strict=True) if take[row["id"]]]


@pytest.mark.parametrize("budget", [1000, 20_000, 10**9])
def test_documents_are_drawn_by_their_hashes(corpus: Path, budget: int) -> None:
    for split in ("train", "validation"):
        sample = Sample(corpus, split, WEIGHTS, budget, seed=3)
        assert list(sample.texts()) == drawn_plainly(corpus, split, sample.quota, 3)


def test_arrays_and_sizes(corpus: Path) -> None:
    sample = Sample(corpus, "train", WEIGHTS, 20_000, seed=3)
    texts = [text for _, text in sample.texts()]
    assert [text for column in sample.arrays() for text in column.to_pylist()] == texts
    assert sum(group.drawn for group in sample.row_groups) == sum(sample.quota.values())
    assert sum(int(take.sum()) for take in sample.take) == sum(sample.quota.values())
    assert [len(take) for take in sample.take] == [pq.read_metadata(shard).num_rows for shard in sample.shards]


def test_sizes_that_the_corpus_notes_are_taken(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    for path in (corpus / "documents").iterdir():
        table = pq.read_table(path)
        sizes = pa.array([len(text.encode()) for text in table["text"].to_pylist()], pa.int64())
        pq.write_table(table.append_column("bytes", sizes), tmp_path / "documents" / path.name, row_group_size=50)
    noted = Sample(tmp_path, "train", WEIGHTS, 20_000, seed=3)
    assert list(noted.texts()) == list(Sample(corpus, "train", WEIGHTS, 20_000, seed=3).texts())


def test_a_directory_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"holds no part-\*\.parquet"):
        Sample(tmp_path, "train", {"a": 1.0}, 1000, seed=0)


def test_a_corrupt_shard_is_refused(tmp_path: Path) -> None:
    directory = write_corpus(tmp_path / "c", example_shards(), WEIGHTS)
    shard = directory / "documents" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(GristmillError, match=r"part-00001\.parquet is not a readable"):
        Sample(directory, "train", WEIGHTS, 1000, seed=0)


def test_a_shard_that_breaks_under_way_is_refused(tmp_path: Path) -> None:
    directory = write_corpus(tmp_path / "c", example_shards(), WEIGHTS)
    sample = Sample(directory, "train", WEIGHTS, 10**6, seed=0)
    shard = directory / "documents" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(GristmillError, match=r"part-00000\.parquet is not a readable"):
        list(sample.texts())


def test_files_that_are_no_part_of_a_corpus(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", example_shards(), WEIGHTS)
    quota = Sample(corpus, "train", WEIGHTS, 10_000, 0).quota
    schema = pq.read_schema(next((corpus / "documents").glob("*.parquet")))
    with pq.ParquetWriter(corpus / "documents" / "part-99998.parquet", schema):
        pass  # a part without a row
    assert Sample(corpus, "train", WEIGHTS, 10_000, 0).quota == quota
    pq.write_table(
        pa.table({"id": ["1"], "text": ["a"], "domain": ["books"]}), corpus / "documents" / "part-99999.parquet"
    )
    with pytest.raises(GristmillError, match=r"part-99999\.parquet has no column 'split'"):
        Sample(corpus, "train", WEIGHTS, 10_000, 0)
