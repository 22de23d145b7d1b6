"""Stage `collected` in tasks: the cut of the input, the number of workers, going on where it was cut, progress."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import Collected, jsonl, only, page, run_in, tarred, warc, write, zipped

from gristmill.data import engines, pool
from gristmill.data.collect import assemble, collect, plan, stage
from gristmill.data.config import LimitsConfig, PathSource
from gristmill.data.schema import DOCUMENTS
from gristmill.errors import GristmillError


def test_large_tables_are_cut_into_tasks_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        jsonl(300).replace(b'{"text": "row 77 ', b'not json {"text": "row 77 ') + b'{"text": "no newline at the end"}'
    )
    write(tmp_path / "d", a__jsonl=rows)
    table = pa.table({"text": [f"row {n}" for n in range(900)]})
    pq.write_table(table, tmp_path / "d" / "b.parquet", row_group_size=100, compression="none")
    whole = Collected(tmp_path / "whole", tmp_path / "d")
    assert len(whole.rows) == 300 + 900
    assert whole.problems == {"broken": ["d/a.jsonl, row 77"]}
    monkeypatch.setattr(plan, "SMALL_BYTES", 2000)
    for size in (149, 5000, 20_000):
        monkeypatch.setattr(plan, "SPLIT_BYTES", size)
        cut = Collected(tmp_path / "cut", tmp_path / "d")
        assert cut.rows == whole.rows
        assert cut.report == whole.report
    assert len(list((tmp_path / "cut" / "_scratch" / "tasks").iterdir())) > 3


def test_the_number_of_workers_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any) -> None:
    write(tmp_path / "d", a__jsonl=jsonl(2000), b__jsonl__gz=gzip.compress(jsonl(500)), c__txt="text", e__txt="")
    monkeypatch.setattr(plan, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(plan, "SPLIT_BYTES", 100_000)
    monkeypatch.setattr(assemble, "PART_BYTES", 50_000)
    one = Collected(tmp_path / "one", tmp_path / "d")
    two = Collected(tmp_path / "two", tmp_path / "d", workers=2)
    assert tree(one.out) == tree(two.out)
    assert len(tree(one.out)) >= 4  # several parts and the report
    assert pq.read_schema(one.out / "documents" / "part-00000.parquet").equals(DOCUMENTS)


def test_only_the_first_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", a__jsonl=jsonl(100) + b"bad\n", b__jsonl=jsonl(100), c__jsonl=jsonl(100))
    monkeypatch.setattr(plan, "SMALL_BYTES", 10)
    monkeypatch.setattr(plan, "SPLIT_BYTES", 3000)
    everything = Collected(tmp_path / "all", tmp_path / "d")
    for count in (1, 99, 100, 150, 299, 300, 1000):
        first = Collected(tmp_path / "first", tmp_path / "d", max_documents=count)
        assert first.rows == everything.rows[:count]
        assert first.report["documents"] == first.figures["local_documents"] == min(count, 300)
        assert ("broken" in first.problems) == (count >= 100)


def test_names_that_are_not_unique_get_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["a", "b", "a", "c", "a", "b"]
    write(tmp_path / "d", a__jsonl="".join(json.dumps({"text": str(n), "id": i}) + "\n" for n, i in enumerate(ids)))
    for at_a_time in (8_000_000, 2):  # the ids are looked at in one range, or in several
        monkeypatch.setattr(assemble, "IDS_AT_A_TIME", at_a_time)
        found = Collected(tmp_path / "out", tmp_path / "d", id_field="id")
        assert [name.rpartition("/")[2] for name in found.texts] == ["a", "b", "a@2", "c", "a@3", "b@2"]
        assert len({row["id"] for row in found.rows}) == 6
        assert found.problems == {"repeated_name": ["d/a.jsonl/a", "d/a.jsonl/a", "d/a.jsonl/b"]}
    monkeypatch.setattr(assemble, "MOST_REPEATED", 2)
    with pytest.raises(GristmillError, match="id_field"):
        Collected(tmp_path / "out", tmp_path / "d", id_field="id")
    monkeypatch.undo()
    write(tmp_path / "d", a__jsonl="".join(json.dumps({"text": "x", "id": i}) + "\n" for i in ("a", "a", "a@2")))
    with pytest.raises(GristmillError, match="names of their own"):
        Collected(tmp_path / "out", tmp_path / "d", id_field="id")


def test_documents_are_renamed_without_pandas(tmp_path: Path) -> None:
    """It is 50 MB in every worker, and pyarrow would import it wherever it is installed."""
    write(tmp_path / "d", a__jsonl='{"text": "x", "id": "a"}\n' * 3)
    code = (
        "import sys; from pathlib import Path; from collecting import PathSource, collect, only, run_in;"
        "source = PathSource(path=sys.argv[2], domain='mine', id_field='id');"
        "collect(only(paths=(source,)), run_in(Path(sys.argv[1]))); print('pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout == "False\n"
    origins = pq.read_table(tmp_path / "out" / "documents")["origin"].to_pylist()
    assert origins == ["d/a.jsonl/a", "d/a.jsonl/a@2", "d/a.jsonl/a@3"]


def test_workers_are_forked_from_a_process_that_has_loaded_the_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def open_mapper(*how: Any) -> Any:
        asked.append(how)
        return engines.open_mapper(*how)

    monkeypatch.setattr(stage, "open_mapper", open_mapper)
    write(tmp_path / "d", a__jsonl=jsonl(5))
    Collected(tmp_path / "out", tmp_path / "d")
    *_, preload = asked[0]
    assert pool.load(preload)({}) == {}
    assert preload.startswith("gristmill.data.collect.worker:")


def test_a_cut_stage_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any) -> None:
    """The writer falls after every row group in turn; each time the stage is begun again in the same directory."""
    from gristmill.data.collect import worker

    members = {f"{n}.txt": f"member {n} " * 9 for n in range(9)}
    tar = tarred({"a.jsonl": jsonl(30), "b.zip": zipped(members), "c.txt": b"c"}, "w:gz")
    long = "\n".join(f"line {n}" for n in range(300))
    write(tmp_path / "d", a__jsonl=jsonl(60) + b"bad\n", b__jsonl__gz=gzip.compress(jsonl(60))[:-20], c__tar__gz=tar)
    write(tmp_path / "d", d__warc__gz=warc({f"http://a/{n}": page(f"page {n}") for n in range(30)})[0], e__txt=long)
    write(tmp_path / "d", f__csv="n,text\n" + "".join(f"{n},row {n}\n" for n in range(50)) + '1,"' + "x" * 2000)
    write(tmp_path / "d", g__json=json.dumps([{"text": f"item {n}"} for n in range(40)] + [3]))
    pq.write_table(pa.table({"text": [f"p{n}" for n in range(90)]}), tmp_path / "d" / "h.parquet", row_group_size=25)
    monkeypatch.setattr(worker, "ROW_GROUP_ROWS", 7)
    limits = {"max_document_bytes": 1000}
    whole = Collected(tmp_path / "whole", tmp_path / "d", limits=limits)
    assert {"broken", "truncated", "too_large", "no_text"} <= set(whole.problems)
    flush = worker._Output._flush
    flushes = [0]

    def falls(self: Any) -> None:
        flush(self)
        flushes[0] += 1
        raise RuntimeError("cut")

    config = only(paths=(PathSource(path=str(tmp_path / "d"), domain="mine"),), limits=LimitsConfig(**limits))
    monkeypatch.setattr(worker._Output, "_flush", falls)
    for _ in range(300):
        try:
            collect(config, run_in(tmp_path / "cut"))
            break
        except RuntimeError:
            continue
    assert flushes[0] > 50
    assert tree(tmp_path / "cut") == tree(whole.out)


def test_progress_tells_how_much_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gristmill.events import EventLog

    monkeypatch.setattr(stage, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr("gristmill.events.PROGRESS_SECONDS", 0.0)
    write(tmp_path / "d", a__jsonl=jsonl(20_000))
    log = EventLog(None)
    events: list[dict[str, Any]] = []
    log.subscribers.append(events.append)
    run = run_in(tmp_path / "out")
    config = only(paths=(PathSource(path=str(tmp_path / "d"), domain="mine"),))
    collect(config, type(run)(**{**vars(run), "log": log.stage("collected")}))
    read = [event["done"] for event in events if event["unit"] == "MB read"]
    assert read == sorted(read)
    assert read[-1] == events[0]["total"] == round((tmp_path / "d" / "a.jsonl").stat().st_size / 1e6, 1)
    assert any(0 < done < read[-1] for done in read)
