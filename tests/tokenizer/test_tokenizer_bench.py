"""`gristmill bench tokenizers` on a little text, its processes done here; what it says of ids that differ."""

from __future__ import annotations

import importlib.util
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gristmill.bench import tokenizer_tasks, tokenizers
from gristmill.bench.measure import Cost
from gristmill.bench.tokenizers import bench_tokenizers, compare, table, write_corpus
from gristmill.cli import app
from gristmill.data.corpus import read_documents
from gristmill.errors import GristmillError
from gristmill.tokenizer.store import TokenStore


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """60 kB of made-up words in documents of several lengths."""
    source = random.Random(0)
    words = [
        "".join(source.choices("mil ler whe el gra in sto né ne ri ver 12".split(), k=n % 4 + 1)) for n in range(500)
    ]
    lines = [json.dumps({"text": " ".join(source.choices(words, k=n % 29 * 8 + 3)) + "."}) for n in range(130)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "text.jsonl"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are done in this process; what they cost is made up."""

    def run(command: list[str]) -> Cost:
        tokenizer_tasks.TASKS[command[-2]](json.loads(command[-1]))
        return Cost(seconds=2.0, cpu_seconds=4.0, peak_bytes=3_000_000)

    def encode(bench: Any, name: str, ids: Path | None, **more: Any) -> Any:
        arguments = json.dumps(bench.arguments(ids=ids, scratch=bench.place, **more))
        return json.loads(json.dumps(tokenizer_tasks.TASKS[f"encode {name}"](json.loads(arguments))))

    monkeypatch.setattr(tokenizers, "run", run)
    monkeypatch.setattr(tokenizers, "_encode", encode)
    monkeypatch.setattr(tokenizers, "PLAN_DOCUMENTS", 1000)


@pytest.mark.usefixtures("here")
def test_everything_in_one_run(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_of, packed = tokenizers._best_fit, []

    def best_fit(tokens: Path) -> list[dict[str, Any]]:
        packed.append(TokenStore.open(tokens).offsets("train", tokenizers.DOMAIN).tolist())
        return plan_of(tokens)

    monkeypatch.setattr(tokenizers, "_best_fit", best_fit)
    monkeypatch.setattr(tokenizers, "PLAN_LENGTHS", (64, 256))
    missing = [name for name in tokenizers.PEERS if importlib.util.find_spec(name) is None]
    report = bench_tokenizers([jsonl], 0.05, vocab_size=400, workers=2)
    assert report["absent"] == missing
    assert report["same_merges"] is True
    rows = {(row["part"], row["name"]): row for row in report["rows"]}
    trained = rows["training", "gristmill, 2 workers"]
    assert (trained["cpu_seconds"], trained["peak_megabytes"]) == (4.0, 3.0)
    assert trained["rate"] == pytest.approx(trained["megabytes"] / 4)
    assert trained["megabytes"] < report["megabytes"] + 0.05
    for name in ("tokenizers", "tokenizers in batches", *(["tiktoken"] if "tiktoken" not in missing else [])):
        assert rows["encoding", name]["note"].endswith("tokens, equal ids")
    assert all(row["rate"] > 0 for row in report["rows"])
    assert {"stage tokens, 1 worker", "stage tokens, 2 workers"} == {n for part, n in rows if part == "packing"}
    for plan, length in zip(report["best_fit"], (64, 256), strict=True):
        assert plan["sequence_length"] == length
        (starts,) = {tuple(offsets) for offsets in packed}  # one or two workers pack the same
        documents = list(pairwise(starts))
        longer = sum(end - start > length for start, end in documents) / len(documents)
        parted = sum(start // length != (end - 1) // length for start, end in documents) / len(documents)
        assert plan["cut_documents"] == pytest.approx(longer, abs=1e-4)
        assert plan["cut_documents_stream"] == pytest.approx(parted, abs=1e-4)
        assert 0.1 < longer < parted < 1
    json.dumps(report)
    shown = table(report)
    assert "the merges of gristmill and tokenizers are the same" in shown
    assert "equal ids" in shown


@pytest.mark.usefixtures("here")
def test_tools_that_are_absent_left_out_or_fail(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "gristmill.bench.tokenizers.importlib.util.find_spec",
        lambda name, *rest: None if name in ("rustbpe", "tiktoken") else find(name, *rest),
    )

    def fail(arguments: dict[str, Any]) -> None:
        raise GristmillError("python -m ... failed: out of memory")

    monkeypatch.setattr(tokenizer_tasks, "CHUNK_BYTES", 8000)
    monkeypatch.setitem(tokenizer_tasks.TASKS, "train tokenizers", fail)
    monkeypatch.setitem(tokenizer_tasks.TASKS, "encode tokenizers", fail)
    report = bench_tokenizers(
        [jsonl], 0.05, vocab_size=400, workers=1, encode_megabytes=0.01, without=("sentencepiece",)
    )
    names = [(row["part"], row["name"]) for row in report["rows"]]
    assert names == [
        ("training", "gristmill, 1 worker"),
        ("training", "tokenizers"),
        ("encoding", "gristmill, nothing remembered"),
        ("encoding", "gristmill, the same text again"),
        ("encoding", "tokenizers"),
        ("encoding", "tokenizers in batches"),
        ("packing", "stage tokens, 1 worker"),
    ]
    assert [row["rate"] is None for row in report["rows"]] == [False, True, False, False, True, False, False]
    assert 0.01 <= report["rows"][2]["megabytes"] < 0.05 <= report["rows"][-1]["megabytes"]
    shown = table(report)
    for said in ("failed: python -m ... failed", "rustbpe is not installed", "sentencepiece was left out"):
        assert said in shown
    assert "merges" not in shown


def test_a_tool_that_is_unknown_cannot_be_left_out() -> None:
    with pytest.raises(GristmillError, match="--without blingfire: the other tools are tokenizers, tiktoken, rustbpe"):
        bench_tokenizers([], 1, 300, 1, without=("blingfire",))


def test_the_corpus_of_a_bench(jsonl: Path, tmp_path: Path) -> None:
    documents, size, trained = write_corpus([jsonl], 0.04, tmp_path / "corpus")
    table = read_documents(tmp_path / "corpus")
    texts = [json.loads(line)["text"] for line in jsonl.read_text().splitlines()][:documents]
    assert table["text"].to_pylist() == texts
    assert size == sum(len(text.encode()) for text in texts) >= 40_000
    assert size - len(texts[-1].encode()) < 40_000
    held_back = [text for text, split in zip(texts, table["split"].to_pylist(), strict=True) if split == "validation"]
    assert held_back == texts[49::50]
    assert trained == size - sum(len(text.encode()) for text in held_back)
    with pytest.raises(GristmillError, match=r"only 0\.1 MB of text were found; name more places with --text"):
        write_corpus([jsonl], 1, tmp_path / "more")
    jsonl.write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(GristmillError, match=r"text\.jsonl, line 2: no object with text under 'text'"):
        write_corpus([jsonl], 1, tmp_path / "other")


def test_what_is_said_of_ids(tmp_path: Path) -> None:
    def write(name: str, documents: list[list[int]]) -> Path:
        np.save(tmp_path / name, np.array([id for ids in documents for id in ids], np.uint32))
        np.save(tmp_path / f"{name}.offsets", np.cumsum([0, *map(len, documents)]))
        return tmp_path / name

    ours = write("ours", [[1, 2], [3], [4, 5]])
    assert compare(ours, write("same", [[1, 2], [3], [4, 5]])) == "equal ids"
    assert compare(ours, write("other", [[1, 2], [3], [4, 6]])) == "OTHER IDS from document 2 on"
    assert compare(ours, write("moved", [[1, 2], [3, 4], [5]])) == "OTHER IDS from document 1 on"
    assert compare(ours, write("fewer", [[1, 2], [3]])) == "OTHER IDS: 3 and 2 documents"


def test_a_process_that_fails_is_named(jsonl: Path, tmp_path: Path) -> None:
    """The one test that starts a process: gristmill's own failures end the run, with the last line of what was said."""
    bench = tokenizers.Bench(tmp_path, 1, 1, 300, 1, 1, (), lambda line: None)
    with pytest.raises(GristmillError, match=r"no tokenizer\.json; give a tokenizer or model directory"):
        tokenizers._encode(bench, "gristmill", None, tokenizer=tmp_path, megabytes=1)


def test_the_verb_has_an_example() -> None:
    shown = CliRunner().invoke(app, ["bench", "tokenizers", "--help"])
    assert shown.exit_code == 0
    assert "Example: gristmill bench tokenizers" in shown.output
