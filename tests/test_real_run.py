"""benchmarks/real_run.py and real_run_data.py: what is held back, what is put together, what travels."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.artifact import StageRun
from gristmill.data.config import CorpusConfig
from gristmill.events import StageLog
from gristmill.tokenizer.config import TokensConfig
from gristmill.tokenizer.store import TokenStore
from token_stores import make_store

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MINIMA = 112


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_run_data")


@pytest.fixture
def real_run(data: ModuleType) -> ModuleType:
    return importlib.import_module("real_run")


def stage_run(tmp_path: Path, inputs: dict[str, Path]) -> StageRun:
    out = tmp_path / "out"
    out.mkdir()
    return StageRun(out, out / "_scratch", inputs, 0, StageLog.silent())


def test_removed_texts_that_repeat_validation_are_held_back(tmp_path: Path, data: ModuleType) -> None:
    rng = np.random.default_rng(0)
    signatures = {
        name: rng.integers(0, 1 << 32, MINIMA, dtype=np.uint64).astype("<u4")
        for name in ("held", "train", "free", "work", "cluster", "twin", "band")
    }
    signatures["band"][16:24] = signatures["held"][16:24]  # the third band of 8
    signatures["free"][20:28] = signatures["held"][20:28]  # 8 equal minima, but of two bands
    row = {"domain": "docs", "source": "s", "bytes": 4}
    kept = [row | {"id": name, "origin": f"{name}.txt#1", "text": name} for name in ("held", "train")]
    splits = ["validation", "train"]
    removed = [
        row | {"id": name, "origin": f"{origin}#2", "text": name, "cluster": cluster, "duplicate_of": twin}
        for name, origin, cluster, twin in (
            ("free", "free.txt", "train", "train"),
            ("work", "held.txt", "work", None),
            ("cluster", "a.txt", "held", None),
            ("twin", "b.txt", "train", "held"),
            ("band", "c.txt", "band", None),
        )
    ]
    corpus = tmp_path / "corpus"
    for table, rows in (
        ("documents", [one | {"split": split} for one, split in zip(kept, splits, strict=True)]),
        ("removed", removed),
        (
            "signatures",
            [
                {"id": name, "signature": minima.tobytes(), "kept": name in ("held", "train")}
                for name, minima in signatures.items()
            ]
            + [{"id": "short", "signature": None, "kept": False}],
        ),
    ):
        (corpus / table).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), corpus / table / "part-00000.parquet")
    (corpus / "report.json").write_text(json.dumps({"weights": {"docs": 0.5, "books": 0.5}}))

    run = stage_run(tmp_path, {"corpus": corpus})
    figures = data._removed(CorpusConfig(), run)

    assert figures == {"documents": 1, "bytes": 4, "held_back": 4}
    found = pq.read_table(run.out / "documents").to_pylist()
    assert found == [{"text": "free", "domain": "docs", "split": "train"}]
    assert json.loads((run.out / "report.json").read_text()) == {"weights": {"docs": 0.5}}


def test_raw_tokens_are_the_kept_ones_and_then_the_removed_ones(tmp_path: Path, data: ModuleType) -> None:
    kept = make_store(tmp_path / "kept", {"books": [5, 9], "docs": [7]}, {"books": 0.75, "docs": 0.25})
    removed = make_store(tmp_path / "removed", {"docs": [4, 6]})
    run = stage_run(tmp_path, {"tokens": kept.directory, "removed": removed.directory})

    assert data._together(TokensConfig(), run) == {"train_tokens": 5 + 9 + 7 + 4 + 6}

    raw = TokenStore.open(run.out)
    assert raw.weights == kept.weights
    expected = np.concatenate([kept.tokens("train", "docs"), removed.tokens("train", "docs")])
    np.testing.assert_array_equal(raw.tokens("train", "docs"), expected)
    np.testing.assert_array_equal(raw.offsets("train", "docs"), [0, 7, 11, 17])
    np.testing.assert_array_equal(raw.tokens("train", "books"), kept.tokens("train", "books"))
    assert len(raw.tokens("validation", "docs")) == 0


def make_run(run: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    files = {
        name: rng.integers(0, 900, 400, dtype=np.uint16).tobytes()
        for name in (
            *("recipe.yaml", "heldout.jsonl", "artifacts/tokenizer/tokenizer.json"),
            *("artifacts/tokens/train/docs.bin", "removed/tokens/train/docs.bin"),
        )
    }
    for name, content in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    return files


def test_parts_are_bounded_and_join_to_the_same_bytes(tmp_path: Path, data: ModuleType) -> None:
    files = make_run(tmp_path / "run")
    parts = data.pack_parts(tmp_path / "run", tmp_path / "parts", 1000)
    sizes = [path.stat().st_size for path in parts]
    assert len(parts) > 2
    assert sizes[:-1] == [1000] * (len(parts) - 1)
    assert sizes[-1] <= 1000

    aside = parts[1].rename(tmp_path / parts[1].name)
    assert data.join_parts(tmp_path / "parts", tmp_path / "far") is False
    assert not (tmp_path / "far").exists()
    aside.rename(parts[1])
    assert data.join_parts(tmp_path / "parts", tmp_path / "far") is True
    assert {name: (tmp_path / "far" / name).read_bytes() for name in files} == files


def test_a_damaged_part_is_refused(tmp_path: Path, data: ModuleType) -> None:
    make_run(tmp_path / "run")
    parts = data.pack_parts(tmp_path / "run", tmp_path / "parts", 1000)
    content = bytearray(parts[1].read_bytes())
    content[7] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(SystemExit, match="damaged"):
        data.join_parts(tmp_path / "parts", tmp_path / "far")


def test_arms_are_compared_seed_by_seed(real_run: ModuleType) -> None:
    def result(data: str, seed: int, value: float) -> dict[str, Any]:
        return {"model": "small", "data": data, "seed": seed, "heldout": {"bits_per_byte": {"docs": value}}}

    results = [
        *(result("kept", 1, 1.0), result("raw", 1, 1.2), result("kept", 2, 2.0), result("raw", 2, 2.4)),
        result("kept", 3, 9.0),  # its pair is missing
        {"model": "base", "data": "kept", "seed": 1, "heldout": {"bits_per_byte": {"docs": 0.5}}},
    ]
    found = real_run.compare_arms(results)
    assert found["seeds"] == [1, 2]
    # gains 0.2 and 0.4: mean 0.3, standard deviation 0.2 / sqrt(2), over sqrt(2)
    assert found["docs"] == {"kept": 1.5, "raw": 1.8, "raw_less_kept": 0.3, "standard_error": 0.1}
    assert real_run.compare_arms([]) == {"seeds": []}
