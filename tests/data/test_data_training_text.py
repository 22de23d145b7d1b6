"""Reading text to train on from the paths that a user names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.data.schema import Document
from gristmill.data.training_text import read_paths
from gristmill.errors import GristmillError


def read(*paths: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["source"]) for batch in read_paths(paths) for row in batch.to_pylist()]


def test_files_of_all_kinds_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a.txt").write_bytes(b"plain caf\xc3\xa9 \xff")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "below" / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "source": "own"}\n')
    with pa.output_stream(str(tmp_path / "d.jsonl.zst"), compression="zstd") as stream:
        stream.write(json.dumps({"text": "three \ud800"}).encode())
    pq.write_table(pa.table({"text": ["four", None], "n": [1, 2]}), tmp_path / "e.parquet")
    (tmp_path / ".hidden").write_text("no")
    name = tmp_path.name
    assert read(tmp_path) == [
        ("plain café \ufffd", name),
        ("packed", name),
        ("one", name),
        ("two", "own"),
        ("three ?", name),
        ("four", name),
        ("", name),
    ]
    assert read(tmp_path / "a.txt") == [("plain café \ufffd", "a.txt")]


def test_an_artifact(collected: Callable[..., Path]) -> None:
    found = collected([Document(f"text {k}", f"source {k}", "web", "en", "x", str(k)) for k in range(3)])
    assert read(found) == [(f"text {k}", f"source {k}") for k in range(3)]


def test_mistakes_are_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="nowhere does not exist"):
        read_paths([tmp_path / "nowhere"])
    with pytest.raises(GristmillError, match="holds no file"):
        read_paths([tmp_path])
    pq.write_table(pa.table({"words": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(GristmillError, match="no column 'text' but words"):
        read(tmp_path)
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(GristmillError, match=r"y\.parquet cannot be read"):
        read(tmp_path / "y.parquet")
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress(b"x" * 5000)[:20])
    with pytest.raises(GristmillError, match=r"z\.txt\.gz cannot be read"):
        read(tmp_path / "z.txt.gz")
