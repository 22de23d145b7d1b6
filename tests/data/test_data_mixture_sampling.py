"""Drawing documents by domain weights."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.data.mixture import Draw, sample, write_sample
from gristmill.errors import GristmillError

COUNTS = {"books": 30, "code": 8, "web": 50}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Domains in turns over two files and several row groups; each tenth document is for validation."""
    domains = [name for name, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(5).permutation(len(domains))
    table = pa.table(
        {
            "id": [f"{i:016x}" for i in range(len(order))],
            "text": ["x" * (20 + 7 * (i % 11)) for i in range(len(order))],
            "domain": [domains[i] for i in order],
            "split": ["validation" if i % 10 == 9 else "train" for i in range(len(order))],
        }
    )
    (tmp_path / "documents").mkdir()
    for number, (start, end) in enumerate(((0, 40), (40, 88))):
        path = tmp_path / "documents" / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(start, end - start), path, row_group_size=16)
    return tmp_path


WEIGHTS = {"books": 0.5, "code": 0.3, "web": 0.2}
Rows = list[dict[str, object]]


def rows_of(corpus: Path) -> Rows:
    return pq.read_table(corpus / "documents").to_pylist()


def test_rows_ids_and_splits_are_those_of_the_files(corpus: Path) -> None:
    rows = rows_of(corpus)
    draws = list(sample(corpus, WEIGHTS, documents=60, seed=1))
    assert len(draws) == 60
    for draw in draws:
        assert rows[draw.row]["id"] == draw.id
        assert rows[draw.row]["domain"] == draw.domain
        assert rows[draw.row]["split"] == "train"
        assert draw.tokens == len(str(rows[draw.row]["text"])) / 4
    assert any(rows[d.row]["split"] == "validation" for d in sample(corpus, WEIGHTS, documents=60, seed=1, split=None))


def test_shares_hold_at_every_moment(corpus: Path) -> None:
    """Of documents to one document; of tokens to the longest document."""
    seen: Counter[str] = Counter()
    for number, draw in enumerate(sample(corpus, WEIGHTS, documents=400, seed=2), 1):
        seen[draw.domain] += 1
        assert all(abs(seen[name] - WEIGHTS[name] * number) < 1.5 for name in WEIGHTS)
    tokens: Counter[str] = Counter()
    for draw in sample(corpus, WEIGHTS, tokens=5000, seed=2):
        tokens[draw.domain] += draw.tokens  # type: ignore[assignment]
        total = sum(tokens.values())
        assert all(abs(tokens[name] - WEIGHTS[name] * total) <= 2 * 90 / 4 for name in WEIGHTS)
    assert 5000 <= total < 5000 + 90 / 4


def test_no_document_comes_again_before_all_of_its_domain_have_come(corpus: Path) -> None:
    available = Counter(row["domain"] for row in rows_of(corpus) if row["split"] == "train")
    drawn: dict[str, list[Draw]] = {name: [] for name in WEIGHTS}
    for draw in sample(corpus, WEIGHTS, documents=300, seed=3):
        drawn[draw.domain].append(draw)
    for name, draws in drawn.items():
        epochs = [list(group) for _, group in itertools.groupby(draws, key=lambda draw: draw.epoch)]
        assert [epoch[0].epoch for epoch in epochs] == list(range(len(epochs)))
        assert all(len({d.row for d in epoch}) == len(epoch) for epoch in epochs)
        assert all(len(epoch) == available[name] for epoch in epochs[:-1])
        if len(epochs) > 1:
            assert [d.row for d in epochs[0]] != [d.row for d in epochs[1]]
    assert len({draw.epoch for draw in drawn["code"]}) > 5


def test_the_seed_decides_and_another_domains_weight_does_not(corpus: Path) -> None:
    first = list(sample(corpus, WEIGHTS, documents=80, seed=4))
    assert first == list(sample(corpus, WEIGHTS, documents=80, seed=4))
    assert [d.row for d in first] != [d.row for d in sample(corpus, WEIGHTS, documents=80, seed=5)]
    books = [d.row for d in first if d.domain == "books"]
    alone = [d.row for d in sample(corpus, {"books": 1.0}, documents=len(books), seed=4)]
    assert alone == books


def test_a_column_of_bytes_is_believed_over_the_text(corpus: Path) -> None:
    for path in (corpus / "documents").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.append_column("bytes", pa.array([400] * len(table), pa.int64())), path)
    assert {draw.tokens for draw in sample(corpus, WEIGHTS, tokens=2000, seed=1)} == {100.0}


def test_what_cannot_be_drawn_is_an_error(corpus: Path) -> None:
    with pytest.raises(GristmillError, match=r"holds no document of 'poems', which has the weight 0\.5"):
        next(sample(corpus, {"books": 0.5, "poems": 0.5}, documents=3, seed=1))
    with pytest.raises(GristmillError, match="either tokens or documents"):
        next(sample(corpus, WEIGHTS, seed=1))
    assert {d.domain for d in sample(corpus, {"books": 1.0, "poems": 0.0}, documents=3, seed=1)} == {"books"}


def test_a_written_sample_holds_every_drawn_document_once_with_its_copies(corpus: Path, tmp_path: Path) -> None:
    draws = list(sample(corpus, WEIGHTS, documents=120, seed=6))
    copies = Counter(draw.row for draw in draws)
    assert write_sample(corpus, tmp_path / "sample.parquet", draws) == len(copies)
    rows = rows_of(corpus)
    expected = [{**rows[row], "copies": copies[row]} for row in sorted(copies)]
    assert pq.read_table(tmp_path / "sample.parquet").to_pylist() == expected
    assert write_sample(corpus, tmp_path / "empty.parquet", []) == 0
    assert pq.read_schema(tmp_path / "empty.parquet").names[-1] == "copies"
