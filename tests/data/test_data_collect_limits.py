"""Stage `collected` on what is too much: bombs, archives in archives, long lines, large files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import Collected, page, tarred, write, zipped

from gristmill.data.collect import archives, streams
from gristmill.data.collect.formats import epub
from gristmill.data.config import LimitsConfig
from gristmill.errors import GristmillError


def test_bombs_do_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 1 << 20)
    packer = zlib.compressobj(9, wbits=31)
    line = (b"bomb " * 19 + b"boom\n") * 100
    ratio = b"".join(packer.compress(line) for _ in range(400)) + packer.flush()  # 4 MB out of about 12 KB
    bombs = {"good.txt": "good", "bomb.txt": line * 400, "n/empty.zip": zipped({})}
    many = zipped({f"{n}.txt": str(n) for n in range(60)})
    write(
        tmp_path / "d",
        a__txt__gz=ratio,
        b__zip=zipped(bombs),
        c__zip=many,
        d__tar=tarred({f"{n}": b"x" for n in range(60)}),
    )
    limits = {"max_document_bytes": 2_000_000, "max_members": 50}
    found = Collected(tmp_path / "out", tmp_path / "d", limits=limits)
    assert found.problems["bomb"] == ["d/a.txt.gz", "d/b.zip/bomb.txt", "d/c.zip", "d/d.tar"]
    assert "holds more than 50 entries" in found.report["problems"]["bomb"]["first"][2]
    assert found.texts["d/b.zip/good.txt"] == "good"
    assert len([name for name in found.texts if name.startswith("d/d.tar/")]) == 50
    limits = {"max_unpacked_bytes": 100_000}
    found = Collected(tmp_path / "out", tmp_path / "d", limits=limits)
    assert "100,000 bytes" in found.report["problems"]["bomb"]["first"][0]


def test_a_directory_of_too_many_entries_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = bytearray(zipped({f"{n}.txt": "text" for n in range(60)}))
    lies = many[:]
    lies[-14:-10] = b"\1\0\1\0"  # "one entry", which binds nobody
    write(tmp_path / "d", a__zip=bytes(many), b__zip=bytes(lies), c__epub=bytes(many), d__txt="text")
    entries = []
    real = zipfile.ZipInfo.__init__
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", lambda self, *a, **k: (entries.append(a), real(self, *a, **k))[1])
    monkeypatch.setattr(epub, "_MAX_FILES", 50)
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_members": 50})
    assert found.problems == {"bomb": ["d/a.zip", "d/b.zip", "d/c.epub"]}
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_in_memory_bytes": 2000})
    assert found.problems == {"bomb": ["d/a.zip", "d/b.zip", "d/c.epub"]}
    assert entries == []
    Collected(tmp_path / "out", tmp_path / "d" / "a.zip", limits={"max_members": 60})
    assert len(entries) == 60  # opened once, though it is looked at twice


def test_a_packed_tar_archive_spends_its_size_once(tmp_path: Path) -> None:
    tar = tarred({"a.txt": b"a " * 30_000, "b.txt": b"b " * 30_000}, "w:gz")
    write(tmp_path / "d", a__tar__gz=tar, b__zip=zipped({"c.tar.gz": tar}), c__tar=gzip.decompress(tar))  # type: ignore[dict-item]
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_unpacked_bytes": 140_000})
    assert found.problems == {}
    assert len(found.rows) == 6
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_unpacked_bytes": 110_000})
    assert found.problems == {"bomb": ["d/a.tar.gz/b.txt", "d/a.tar.gz", "d/b.zip/c.tar.gz"]}


def test_the_holes_of_a_sparse_file_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 1 << 20)
    data = b"text " * 4000
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("hole.txt")
        entry.size = len(data)
        entry.pax_headers = {"GNU.sparse.map": f"0,{len(data)}", "GNU.sparse.size": str(10**12)}
        archive.addfile(entry, io.BytesIO(data))
    write(tmp_path / "d", a__tar=out.getvalue(), b__txt="text")
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert found.texts == {"d/b.txt": "text"}
    assert found.problems == {"bomb": ["d/a.tar/hole.txt"]}


def test_what_is_held_whole_is_not_larger_than_allowed(tmp_path: Path) -> None:
    long = "word " * 1000
    files = ("a.tex", "b.rst", "c.1", "d.ipynb", "e.pdf", "f.py", "h.json")
    texts = {"a.tex": "\\documentclass{a}" + long, "c.1": ".TH X 1\n" + long, "e.pdf": "%PDF-1.4" + long}
    texts |= {"g.txt": "The Project Gutenberg EBook of X\n" + long, "h.json": json.dumps([{"text": long}])}
    write(tmp_path / "d", **{name.replace(".", "__"): texts.get(name, long) for name in (*files, "g.txt")})
    packed = {name.replace(".", "__") + "__gz": gzip.compress((tmp_path / "d" / name).read_bytes()) for name in files}
    write(tmp_path / "d", i__txt="short", **packed)  # type: ignore[arg-type]
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_in_memory_bytes": 4000})
    assert list(found.texts) == ["d/i.txt"]
    expected = [f"d/{name}{ending}" for name in files for ending in ("", ".gz")]
    assert sorted(found.problems["too_large"]) == sorted([*expected, "d/g.txt"])
    assert len(found.problems) == 1


def test_archives_in_archives_end_somewhere(tmp_path: Path) -> None:
    data: dict[int, bytes] = {0: b"deep"}
    for level in range(1, 5):
        data[level] = zipped({"n.zip" if level > 1 else "deep.txt": data[level - 1]})
    four = b"x" * 10
    for _ in range(5):
        four = gzip.compress(four)
    write(
        tmp_path / "d",
        three__zip=data[3],
        four__zip=data[4],
        g__txt__gz=four,
        t__tar__gz=tarred({"n.zip": data[2]}, "w:gz"),
    )
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert list(found.texts) == ["d/t.tar.gz/n.zip/n.zip/deep.txt", "d/three.zip/n.zip/n.zip/deep.txt"]
    assert found.problems == {"too_deep": ["d/four.zip/n.zip/n.zip/n.zip", "d/g.txt.gz"]}
    two = Collected(
        tmp_path / "out", tmp_path / "d" / "three.zip", tmp_path / "d" / "t.tar.gz", limits={"max_depth": 3}
    )
    assert len(two.rows) == 2
    with pytest.raises(GristmillError, match="archives inside too many archives"):
        Collected(tmp_path / "out", tmp_path / "d" / "three.zip", limits={"max_depth": 0})


def test_a_zip_archive_that_lies_about_itself(tmp_path: Path) -> None:
    assert archives.clean_name("../../etc/./pass\nwd\\x\ud800") == "etc/pass\ufffdwd/x\ufffd"
    locked = bytearray(zipped({"a.txt": "hidden", "b.txt": "open"}))
    for sign in (b"PK\x03\x04", b"PK\x01\x02"):
        locked[locked.index(sign) + (6 if sign[2] == 3 else 8)] |= 1
    write(tmp_path / "d", a__zip=bytes(locked), b__docx=zipped({"word/document.xml": "<w/>"}))
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert found.texts == {"d/a.zip/b.txt": "open"}
    assert found.problems == {"encrypted": ["d/a.zip/a.txt"], "unknown_format": ["d/b.docx"]}


def test_what_is_too_large_is_left_out(tmp_path: Path) -> None:
    long = "word " * 1000
    write(
        tmp_path / "d",
        a__jsonl=json.dumps({"text": long}) + "\n" + json.dumps({"text": "short"}) + "\n" + json.dumps({"text": long}),
        b__html=page(long),
        c__csv=f'id,text\n1,"{long}"\n2,"short"\n',
        d__json=json.dumps([{"text": long}, {"text": "short"}]),
    )
    pq.write_table(pa.table({"text": [long, "short"]}), tmp_path / "d" / "e.parquet")
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_document_bytes": 4000})
    assert list(found.texts) == ["d/a.jsonl/2", "d/c.csv/2", "d/d.json/2", "d/e.parquet/2"]
    assert found.problems["too_large"] == [
        "d/a.jsonl, row 1", "d/a.jsonl, row 3", "d/b.html", "d/c.csv, row 1", "d/d.json/1", "d/e.parquet, row 1",
    ]  # fmt: skip
    (tmp_path / "d" / "f.zip").write_bytes(zipped({"a.txt": long, "b.txt": long * 2}))
    small = Collected(tmp_path / "out", tmp_path / "d", max_file_bytes=6000)
    assert small.problems["too_large"] == ["d/a.jsonl", "d/f.zip/b.txt"]


def test_the_rest_of_a_long_field_is_not_taken_for_rows(tmp_path: Path) -> None:
    field = "\n".join(f"{n},line of a field" for n in range(300))
    write(tmp_path / "d", a__csv=f'id,text\n1,"{field}"\n2,"short"\n3,"{field}')
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_document_bytes": 1000})
    assert found.texts == {"d/a.csv/2": "short"}
    assert found.problems == {"too_large": ["d/a.csv, row 1", "d/a.csv, row 3"]}


def test_a_long_text_file_is_read_in_parts(tmp_path: Path) -> None:
    lines = [f"line {n} " + "x" * (n % 50) for n in range(400)]
    lines[200] = "y" * 3000
    for data in ("\n".join(lines), "\n".join(lines) + "\n"):
        write(tmp_path / "d", a__txt=data)
        found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_document_bytes": 1000})
        parts = list(found.texts.values())
        assert "".join(parts) == data.replace(lines[200] + "\n", "")
        assert list(found.texts)[:2] == ["d/a.txt#1", "d/a.txt#2"]
        assert max(map(len, parts)) <= 1000
        assert found.problems == {"too_large": ["d/a.txt"]}
    write(tmp_path / "d", a__txt="z" * 50_000)
    write(tmp_path / "d", b__txt="z" * 1000)
    found = Collected(tmp_path / "out", tmp_path / "d", limits={"max_document_bytes": 1000})
    assert list(found.texts) == ["d/b.txt"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_of_many_megabytes_is_never_held(tmp_path: Path, name: str) -> None:
    import tracemalloc

    if name == "a.jsonl":
        (tmp_path / name).write_bytes(b'{"text": "' + b"x" * 30_000_000 + b'"}\n{"text": "after"}\n')
    else:
        pq.write_table(pa.table({"text": ["x" * 30_000_000, "after"]}), tmp_path / name)
    Collected(tmp_path / "out", tmp_path / name)  # imports happen here
    tracemalloc.start()
    found = Collected(tmp_path / "out", tmp_path / name, limits={"max_document_bytes": 1_000_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.texts == {f"{name}/2": "after"}
    assert found.problems == {"too_large": [f"{name}, row 1"]}
    assert peak < 12_000_000


def test_a_tail_of_zeros_is_no_damage_and_garbage_is() -> None:
    budget = streams.Budget(LimitsConfig())
    for tail, problem in ((b"", None), (b"\0" * 600, None), (b"garbage", "broken")):
        stream = streams.unpack(io.BytesIO(gzip.compress(b"text") + tail), "gz", budget)
        assert stream.read() == b"text"
        found = streams.problem_of(stream)
        assert (found[0] if found else None) == problem


def test_zip64_and_old_tars_are_known() -> None:
    assert archives.archive_of(tarred({"a": b"x"})) == "tar"
    assert archives.archive_of(zipped({"a": "x"})) == "zip"
    assert archives.archive_of(b"plain text " * 60) is None
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"x")
    assert archives.archive_of(out.getvalue()) == "zip"
