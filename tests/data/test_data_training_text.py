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
from gristmill.data.training_text import prepare_out, read_paths
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


def test_rows_without_text(tmp_path: Path) -> None:
    """A null is an empty document; a row that has no such field is a mistake."""
    lines = ['{"text": null}', '{"text": "one", "source": null}', '{"text": 5, "source": 7}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "a.jsonl") == [("", "a.jsonl"), ("one", "a.jsonl"), ("5", "7")]
    for bad in ('{"no": 1}', "[1]", "null", '"text"', '{"text": "torn'):
        (tmp_path / "b.jsonl").write_text(f"{lines[1]}\n\n{bad}\n")
        with pytest.raises(GristmillError, match=r"b\.jsonl, line 3: no JSON object with a field 'text'"):
            read(tmp_path / "b.jsonl")


def test_binary_files_are_refused_and_hidden_directories_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"DIRC\0\0\0\2")
    (tmp_path / "a.txt").write_text("one")
    assert read(tmp_path) == [("one", tmp_path.name)]
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(GristmillError, match=r"b\.png is no text: it holds binary data"):
        read(tmp_path)


def test_where_to_write_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path, "is a directory; name a file"), (tmp_path / "file" / "m", "file is no directory")):
        with pytest.raises(GristmillError, match=message):
            prepare_out(out)
    prepare_out(tmp_path / "new" / "m")
    assert (tmp_path / "new").is_dir()


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
