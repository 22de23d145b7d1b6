"""Contamination: what of evaluation sets is found in a document, and what is not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from document_tables import first_reasons
from gristmill.data.config import ContaminationConfig
from gristmill.data.dedup.contamination import contamination_rules, contamination_step, read_evaluations
from gristmill.data.step import check_chain
from gristmill.errors import GristmillError

Prose = Callable[..., str]
Found = list[tuple[str | None, float]]


def words(seed: int, count: int) -> str:
    source = random.Random(seed)
    return " ".join(f"w{source.randrange(10**7)}" for _ in range(count))


def look(texts: list[str], **config: Any) -> Found:
    """(contaminated, contamination_overlap) of each text."""
    step = contamination_step(ContaminationConfig(**config))
    batch = pa.RecordBatch.from_pydict({"text": texts})
    assert check_chain([step], batch.schema).names == ["text", "contaminated", "contamination_overlap"]
    result = step.apply(batch)
    return list(zip(result["contaminated"].to_pylist(), result["contamination_overlap"].to_pylist(), strict=True))


def lines(path: Path, rows: list[Any]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_every_planted_item_is_found_and_nothing_else(prose: Prose, tmp_path: Path) -> None:
    """Against all items of a set, by an index of Python's own: the documents that share 13 words in a row."""
    items = [prose(1000 + i, 10 + 3 * (i % 9)) for i in range(60)]
    path = lines(tmp_path / "quiz.jsonl.gz", [{"question": item, "gold": i} for i, item in enumerate(items)])
    texts = [prose(i, 120) for i in range(40)]
    planted = {}
    for i, item in enumerate(items):
        changed = item.upper().replace(" ", "\n") if i % 2 else f"«{item.replace(' ', ', ')}»"
        planted[len(texts)] = i
        texts.append(f"{prose(i, 30)} {changed}\n{prose(i + 1, 300)}")
    found = look(texts, sets=(path,))

    def grams(text: str) -> set[tuple[str, ...]]:
        tokens = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return {tuple(tokens[i : i + 13]) for i in range(len(tokens) - 12)}

    sets = [grams(item) for item in items]
    for number, (name, overlap) in enumerate(found):
        held = grams(texts[number])
        shared = [len(held & mine) / max(len(mine), 1) for mine in sets]
        short = number in planted and not sets[planted[number]]  # 11 or 12 words: the whole of it
        if number in planted:
            assert (name, overlap) == (f"quiz#{planted[number] + 1}", 1.0)
            assert short or max(shared) == 1.0
        else:
            assert (name, overlap) == (None, 0.0)
            assert max(shared) == 0.0
    assert any(not mine for mine in sets)


def test_the_item_with_the_largest_share_is_named(tmp_path: Path) -> None:
    long, short = words(1, 30), words(2, 13)
    path = lines(tmp_path / "set.jsonl", [{"a": long}, {"a": short}, {"a": short}])
    start = " ".join(long.split()[:15])  # 3 of 18 n-grams
    assert look([start, f"{start} {short}", long + " more", "other words", ""], sets=(path,)) == [
        ("set#1", pytest.approx(3 / 18)),
        ("set#2", 1.0),
        ("set#1", 1.0),
        (None, 0.0),
        (None, 0.0),
    ]


def test_short_texts_count_whole_and_very_short_ones_not_at_all(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "set.jsonl", [words(1, 7), words(2, 8), {"q": words(3, 12), "options": [words(4, 9), "no"]}]
    )
    texts = [words(1, 7), f"x {words(2, 8)} y", words(2, 7), f"{words(3, 11)} x", words(4, 9), words(3, 12)]
    assert look(texts, sets=(path,)) == [
        (None, 0.0), ("set#2", 1.0), (None, 0.0), (None, 0.0), ("set#3", 0.5), ("set#3", 0.5),
    ]  # fmt: skip
    assert look(texts[:1], sets=(path,), min_words=7) == [("set#1", 1.0)]
    assert look([words(2, 8)], sets=(path,), ngram=5, min_words=50) == [("set#2", 1.0)]
    evaluations = read_evaluations(ContaminationConfig(sets=(path,)))
    assert evaluations.coverage() == {"set": {"items": 3, "too_short": 1}}
    assert evaluations.lengths == (8, 9, 12)


def test_a_template_proves_nothing(tmp_path: Path) -> None:
    template = words(0, 20)
    rows = [f"{template} {words(i, 10)}" for i in range(1, 6)]
    path = lines(tmp_path / "set.jsonl", rows)
    assert look([f"x {template} y", rows[3]], sets=(path,), max_items=4) == [(None, 0.0), ("set#4", 1.0)]
    assert look([f"x {template} y"], sets=(path,), max_items=5)[0][0] == "set#1"
    same = lines(tmp_path / "same.jsonl", [template] * 6)  # nothing of its own: then the template is the item
    assert look([f"x {template} y"], sets=(same,), max_items=4) == [("same#1", 1.0)]


def test_rules_remove_by_set_and_overlap(tmp_path: Path) -> None:
    a, b = (lines(tmp_path / f"{name}.jsonl", [words(seed, 24)]) for name, seed in (("a", 1), ("b#2", 2)))
    half = " ".join(words(2, 24).split()[:18])  # 6 of 12 n-grams
    texts = [words(1, 24), half, "nothing of it", words(2, 24)]

    def reasons(overlap: float) -> list[str | None]:
        config = ContaminationConfig(sets=(a, b), min_overlap=overlap)
        batch = contamination_step(config).apply(pa.RecordBatch.from_pydict({"text": texts}))
        return first_reasons(batch, contamination_rules(config))

    whole = ["contaminated:a", "contaminated:b#2", None, "contaminated:b#2"]
    assert reasons(0.0) == reasons(0.5) == whole
    assert reasons(0.51) == reasons(1.0) == ["contaminated:a", None, None, "contaminated:b#2"]


def test_all_formats_are_read(tmp_path: Path) -> None:
    texts = [words(seed, 15) for seed in range(1, 4)]
    rows = [{"question": text, "answer": f"the answer {words(90 + i, 20)}", "n": i} for i, text in enumerate(texts)]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "c.csv").write_text(table.getvalue())
    (tmp_path / "d.tsv.gz").write_bytes(gzip.compress(table.getvalue().replace(",", "\t").encode()))
    (tmp_path / "e.json").write_text(json.dumps(rows))
    (tmp_path / "f.txt").write_text("\r\n \r\n".join(texts))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    lines(tmp_path / "a.jsonl", rows)
    lines(tmp_path / "b.jsonl.gz", rows)
    for path in sorted(tmp_path.iterdir()):
        name = path.name.partition(".")[0]
        assert look(texts[2:], sets=(str(path),), fields=("question",)) == [(f"{name}#3", 1.0)], path
        answer = rows[1]["answer"]
        assert look([str(answer)], sets=(str(path),))[0][0] == (None if name == "f" else f"{name}#2")
        if name != "f":
            assert look([str(answer)], sets=(str(path),), fields=("question",)) == [(None, 0.0)]
    names = read_evaluations(ContaminationConfig(sets=(str(tmp_path / "*"), str(tmp_path / "a.jsonl")))).names
    assert len(names) == 3 * 7


def test_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        lines(tmp_path / place / "test.jsonl", [words(len(place) + ord(place[0]), 20)])
    config = ContaminationConfig(sets=(str(tmp_path / "**" / "*.jsonl"),))
    assert read_evaluations(config).names == ["one/test#1", "two/test#1"]
    assert [rule.reason for rule in contamination_rules(config)] == ["contaminated:one/test", "contaminated:two/test"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    def message(**config: Any) -> str:
        with pytest.raises(GristmillError) as error:
            read_evaluations(ContaminationConfig(**config))
        return str(error.value)

    good = lines(tmp_path / "good.jsonl", [{"q": words(1, 20)}])
    assert "there is no file" in message(sets=(good, str(tmp_path / "none*")))
    (tmp_path / "x.doc").write_text("x")
    assert "x.doc is no .jsonl" in message(sets=(str(tmp_path / "x.doc"),))
    assert f"{tmp_path} is no .jsonl" in message(sets=(str(tmp_path),))
    (tmp_path / "bad.jsonl").write_text('{"q": "a"}\n{"q": \n')
    assert "bad.jsonl cannot be read: line 2" in message(sets=(str(tmp_path / "bad.jsonl"),))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'"x"\n' * 9)[:-6])
    assert "cut.jsonl.gz cannot be read" in message(sets=(str(tmp_path / "cut.jsonl.gz"),))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "bad.parquet cannot be read" in message(sets=(str(tmp_path / "bad.parquet"),))
    assert "no row of" in message(sets=(good,), fields=("question",))
    assert "has question; there are q" in message(sets=(good,), fields=("q", "question"))
    assert "no text in them has 8 words" in message(sets=(lines(tmp_path / "s.jsonl", ["too short", 3, None]),))


def test_nothing_depends_on_the_batch(prose: Prose, tmp_path: Path) -> None:
    path = lines(tmp_path / "set.jsonl", [prose(i, 40) for i in range(20)])
    texts = [prose(i, 40) if i % 3 else prose(100 + i, 40) for i in range(30)]
    step = contamination_step(ContaminationConfig(sets=(path,)))
    whole = pa.RecordBatch.from_pydict({"text": texts})
    parts = [step.apply(whole[i : i + 7]) for i in range(0, 30, 7)]
    assert pa.Table.from_batches(parts).to_pylist() == step.apply(whole).to_pylist()
    assert np.mean([row is not None for row in step.apply(whole)["contaminated"].to_pylist()]) > 0.3
