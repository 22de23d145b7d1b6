"""Stage `corpus` over tables that are broken in every way: counted, named, and never fatal unless nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.artifact import StageRun
from gristmill.data.config import CorpusConfig
from gristmill.data.corpus import read_documents
from gristmill.data.process import process
from gristmill.data.process.rows import Counts, Group, read_rows
from gristmill.data.schema import DOCUMENTS, document_id
from gristmill.errors import GristmillError

Make = Callable[..., StageRun]
Prose = Callable[..., str]


@pytest.fixture
def table(prose: Prose) -> Callable[..., pa.Table]:
    """`table(first, rows)`: sound documents numbered from `first`."""

    def make(first: int, rows: int = 20) -> pa.Table:
        numbers = range(first, first + rows)
        columns = {
            "id": [document_id("test", str(number)) for number in numbers],
            "text": [prose(number, 80) for number in numbers],
            "origin": [str(number) for number in numbers],
            **{name: ["test"] * rows for name in ("source", "domain", "license", "flags")},
            "language": ["en"] * rows,
        }
        return pa.table(columns).select(DOCUMENTS.names).cast(DOCUMENTS)

    return make


def run_on(tables: list[pa.Table | bytes], make: Make, tmp_path: Path) -> tuple[StageRun, dict[str, Any]]:
    documents = tmp_path / "collected" / "documents"
    documents.mkdir(parents=True)
    for number, content in enumerate(tables):
        path = documents / f"part-{number:05d}.parquet"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
    run = make(collected=tmp_path / "collected")
    process(CorpusConfig(), run)
    return run, json.loads((run.out / "report.json").read_text())


def replaced(table: pa.Table, name: str, column: Any) -> pa.Table:
    place = table.schema.get_field_index(name)
    column = column if isinstance(column, pa.Array) else pa.array(column)
    return table.set_column(place, pa.field(name, column.type), column)


def test_everything_broken_is_named_and_the_rest_goes_on(
    table: Callable[..., pa.Table], stage_run: Make, tmp_path: Path
) -> None:
    nulls = table(20)["text"].to_pylist()
    nulls[3] = nulls[4] = None
    wrong_bytes = [text.encode() for text in table(40)["text"].to_pylist()]
    wrong_bytes[7] = b"\xff\xfe " + wrong_bytes[7]
    wrong_bytes[8] = b""  # nothing wrong with it
    no_utf8 = pa.array(wrong_bytes, pa.binary()).view(pa.string())
    strange_ids = ["x", *table(60)["id"].to_pylist()[1:]]
    run, report = run_on(
        [
            table(0),
            replaced(table(20), "text", nulls),
            replaced(table(40), "text", no_utf8),
            replaced(table(60), "id", strange_ids),
            replaced(table(80), "domain", list(range(20))),
            replaced(table(100), "text", [["a", "list"]] * 20),
            table(120).drop_columns(["language"]),
            b"this is no Parquet",
            b"",
        ],
        stage_run,
        tmp_path,
    )
    rows = {row["origin"]: row for row in read_documents(run.out).to_pylist()}
    assert set(rows) == {str(number) for number in range(80)} - {"23", "24", "48"}
    assert rows["47"]["text"].startswith("\ufffd\ufffd ")
    assert rows["60"]["id"] == document_id("test", "60")
    found = [(problem["where"], problem["what"], problem["rows"]) for problem in report["problems"]]
    assert sorted(found) == [
        ("part-00001.parquet, row group 0", "column text is null: the row is left out", 2),
        ("part-00002.parquet, row group 0", "column text holds bytes that are no UTF-8: U+FFFD takes their place", 1),
        ("part-00003.parquet, row group 0", "column id is not 16 hexadecimal digits: made anew", 1),
        ("part-00004.parquet, row group 0", "column domain is int64, not text: its rows are left out", 20),
        (
            "part-00005.parquet, row group 0",
            "column text is list<element: string>, not text: its rows are left out",
            20,
        ),
        ("part-00006.parquet, row group 0", "column language is missing: its rows are left out", 20),
        ("part-00007.parquet", "the file cannot be read", 0),
        ("part-00008.parquet", "the file cannot be read", 0),
    ]
    assert report["domains"]["test"]["collected"]["documents"] == 78


def test_columns_of_other_text_types_are_text(table: Callable[..., pa.Table], stage_run: Make, tmp_path: Path) -> None:
    plain = table(0)
    columns = {name: plain[name].combine_chunks() for name in plain.column_names}
    columns["text"] = columns["text"].cast(pa.large_string())
    columns["domain"] = columns["domain"].dictionary_encode()
    columns["source"] = columns["source"].cast(pa.binary())
    run, report = run_on([pa.table(columns)], stage_run, tmp_path)
    assert report["problems"] == []
    assert read_documents(run.out)["text"].to_pylist() == plain["text"].to_pylist()


def test_a_row_group_with_a_spoilt_page_is_left_out(
    table: Callable[..., pa.Table], stage_run: Make, tmp_path: Path
) -> None:
    path = tmp_path / "two.parquet"
    with pq.ParquetWriter(path, DOCUMENTS, compression="zstd") as writer:
        writer.write_table(table(0))
        writer.write_table(table(20))
    spoilt = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    spoilt[place : place + 200] = bytes(200)
    run, report = run_on([bytes(spoilt)], stage_run, tmp_path)
    assert set(read_documents(run.out)["origin"].to_pylist()) == {str(number) for number in range(20)}
    what = "the row group cannot be read: its rows are left out"
    assert report["problems"] == [{"where": "part-00000.parquet, row group 1", "what": what, "rows": 20}]


@pytest.mark.parametrize(("content", "said"), [(b"nothing", "the file cannot be read"), (None, "has no rows")])
def test_nothing_that_can_be_read_is_an_error(
    content: bytes | None, said: str, table: Callable[..., pa.Table], stage_run: Make, tmp_path: Path
) -> None:
    with pytest.raises(GristmillError, match=f"no document could be read.*{said}"):
        run_on([table(0, 0) if content is None else content], stage_run, tmp_path)


def test_portions_hold_all_rows_in_order(
    table: Callable[..., pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gristmill.data.process.rows.BATCH_BYTES", 3000)
    monkeypatch.setattr("gristmill.data.process.rows.SLICE_BYTES", 5000)
    texts = table(0)["text"].to_pylist()
    texts[4] = "é" * 9000  # nowhere to cut but between characters of two bytes
    texts[5] = ("word " * 3000).strip()
    texts[6] = "line\n" * 2000
    path = tmp_path / "part.parquet"
    pq.write_table(replaced(table(0), "text", texts), path)
    counts = Counts()
    batches = list(read_rows(Group(str(path), 0, 20), counts))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert "".join(row["text"] for row in rows) == "".join(texts)
    assert [int(row["origin"].partition("#")[0]) for row in rows] == sorted(
        int(row["origin"].partition("#")[0]) for row in rows
    )
    slices = [row for row in rows if "#" in row["origin"]]
    assert {row["origin"].partition("#")[0] for row in slices} == {"4", "5", "6"}
    assert max(len(row["text"].encode()) for row in slices) <= 5000
    assert all(row["id"] == document_id("test", row["origin"]) for row in rows)
    assert all(
        text.endswith((" ", "\n")) for text in [row["text"] for row in slices if row["origin"] in ("5#1", "6#1")]
    )
    assert counts.read == {"test": [20, sum(len(text.encode()) for text in texts)]}
