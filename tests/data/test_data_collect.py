"""Stage `collected` on files: formats, archives, tables, licences, bad input, limits."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import Collected, jsonl, page, tarred, warc, write, zipped

from gristmill.data.collect import pagetext, plan
from gristmill.errors import GristmillError

MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of this software.\n"
    "The above copyright notice and this permission notice shall be included in all copies.\n"
    'THE SOFTWARE IS PROVIDED "AS IS".\n'
)


def test_files_of_every_kind(tmp_path: Path) -> None:
    root = write(
        tmp_path / "mine",
        a__txt="plain ü",
        b__md="---\ntitle: x\nlicense: MIT\n---\n# deep\n",
        c__jsonl='{"text": "first"}\n\n{"text": "third", "x": 1}\n',
        e__html=page("page"),
        f__warc__gz=warc({"http://a/m": page("crawled")})[0],
        g__csv='id,text\n1,"a ""quoted"" line\nand another"\n2,plain\n',
        h__tsv="text\tn\ntabbed\t1\n",
        i__json='[{"text": "one"}, {"text": "two"}]',
        j__json='{"text": "single",\n "n": 1}',
        k__json='{"text": "l1"}\n{"text": "l2"}\n',
        l__py="import os\nprint(os.sep)\n",
        m__csv="id;text\n1;Grüße\n",
    )
    pq.write_table(pa.table({"text": ["p", None, "q"]}), root / "d.parquet")
    found = Collected(tmp_path / "out", root)
    assert {name: text.strip() for name, text in found.texts.items()} == {
        "mine/a.txt": "plain ü",
        "mine/b.md": "# deep",
        "mine/c.jsonl/1": "first",
        "mine/c.jsonl/3": "third",
        "mine/d.parquet/1": "p",
        "mine/d.parquet/3": "q",
        "mine/e.html": "page",
        "mine/f.warc.gz/http://a/m": "crawled",
        "mine/g.csv/1": 'a "quoted" line\nand another',
        "mine/g.csv/2": "plain",
        "mine/h.tsv/1": "tabbed",
        "mine/i.json/1": "one",
        "mine/i.json/2": "two",
        "mine/j.json/1": "single",
        "mine/k.json/1": "l1",
        "mine/k.json/2": "l2",
        "mine/l.py": "import os\nprint(os.sep)",
        "mine/m.csv/1": "Grüße",
    }
    assert found.row("mine/l.py")["flags"] == "code-python"
    assert found.report["files"] == 13
    formats = found.report["sources"]["local"]["formats"]
    assert formats["jsonl"] == {"documents": 4, "bytes": len("firstthirdl1l2")}
    assert sum(entry["bytes"] for entry in formats.values()) == found.report["bytes"] == found.figures["bytes"]


def test_a_line_a_document(tmp_path: Path) -> None:
    write(tmp_path / "d", a__txt="one\n\ntwo\n", b__jsonl='{"x": 1}\n')
    assert Collected(tmp_path / "out", tmp_path / "d", format="lines").texts == {
        "d/a.txt/1": "one",
        "d/a.txt/3": "two",
        "d/b.jsonl/1": '{"x": 1}',
    }


def test_rows_may_state_more_than_their_text(tmp_path: Path) -> None:
    rows = [
        {"body": "a", "key": 7, "lic": "MIT", "lang": "DE-de", "topic": "Science & Art"},
        {"body": "b", "key": "u/\ud800v", "lic": None, "lang": "not a language", "topic": "!"},
    ]
    write(tmp_path / "d", a__jsonl="".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"body": ["c"], "key": [9], "lic": ["GPL-2.0-only"]}), tmp_path / "d" / "b.parquet")
    fields = {"id_field": "key", "license_field": "lic", "language_field": "lang", "domain_field": "topic"}
    found = Collected(tmp_path / "out", tmp_path / "d", text_field="body", language="und", name="site", **fields)
    assert [[row[k] for k in ("origin", "license", "language", "domain", "source")] for row in found.rows] == [
        ["d/a.jsonl/7", "MIT", "de-de", "science_art", "site"],
        ["d/a.jsonl/u/\ufffdv", "unknown", "und", "mine", "site"],
        ["d/b.parquet/9", "GPL-2.0-only", "und", "mine", "site"],
    ]
    assert found.problems == {"missing_field": ["d/b.parquet", "d/b.parquet"]}


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_compressed_files(tmp_path: Path, kind: str) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(
        kind, lambda data: pa.compress(data, codec="zstd", asbytes=True)
    )
    data = jsonl(3000)
    (tmp_path / f"two.jsonl.{kind}").write_bytes(pack(data) + pack(b'{"text": "last"}\n'))  # one behind the other
    found = Collected(tmp_path / "out", tmp_path / f"two.jsonl.{kind}")
    assert len(found.rows) == 3001
    assert found.rows[-1]["text"] == "last"
    assert found.problems == {}
    whole = pack(data)
    (tmp_path / f"cut.jsonl.{kind}").write_bytes(whole[: len(whole) // 2])
    cut = Collected(tmp_path / "out", tmp_path / f"cut.jsonl.{kind}", tmp_path / f"two.jsonl.{kind}")
    kept = [row["text"] for row in cut.rows if row["origin"].startswith("cut")]
    assert cut.problems["truncated"] == [f"cut.jsonl.{kind}"]
    assert kept == [row["text"] for row in found.rows[: len(kept)]]
    if kind in ("gz", "zst"):  # the others unpack in blocks as large as this file
        assert len(kept) > 500


def test_archives_are_read_member_by_member(tmp_path: Path) -> None:
    inner = zipped({"LICENSE": MIT, "inner/file.txt": "in zip", "inner/page.html": page("web"), ".git/x.txt": "no"})
    files = {
        "./a/one.txt": b"one",
        "./a/in.zip": inner,
        "./b/two.txt.gz": gzip.compress(b"two"),
        "__MACOSX/c.txt": b"n",
    }
    write(
        tmp_path / "d",
        x__zip=inner,
        y__tar=tarred(files),
        z__tar__gz=tarred(files, "w:gz"),
        w__tgz=tarred(files, "w:gz"),
    )
    found = Collected(tmp_path / "out", tmp_path / "d", exclude=("LICENSE",))
    from_zip = {"inner/file.txt": "in zip", "inner/page.html": "web"}
    from_tar = {"a/one.txt": "one", "b/two.txt.gz": "two"} | {f"a/in.zip/{k}": v for k, v in from_zip.items()}
    expected = {f"d/x.zip/{k}": v for k, v in from_zip.items()}
    for name in ("y.tar", "z.tar.gz", "w.tgz"):
        expected |= {f"d/{name}/{k}": v for k, v in from_tar.items()}
    assert {k: v.strip() for k, v in found.texts.items()} == expected
    assert found.row("d/y.tar/a/in.zip/inner/file.txt")["license"] == "MIT"
    assert found.row("d/y.tar/a/one.txt")["license"] == "unknown"
    assert not [path for path in tmp_path.rglob("*") if path.name in ("one.txt", "file.txt")]  # nothing is extracted


def test_licence_files_are_for_what_lies_below_them(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write(root, a__txt="top")
    write(root / "lib", LICENSE=MIT, b__txt="below")
    write(root / "lib" / "deep", c__txt="deeper", d__py="# SPDX-License-Identifier: BSD-3-Clause\nx = 1\n")
    tar = tarred({f"src/{p.relative_to(root)}": p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}, "w:xz")
    write(tmp_path / "packed", s__tar__xz=tar)
    for path, prefix in ((root, "tree"), (tmp_path / "packed", "packed/s.tar.xz/src")):
        found = Collected(tmp_path / "out", path, license="CC0-1.0")
        licenses = {row["origin"].removeprefix(prefix + "/"): row["license"] for row in found.rows}
        assert licenses == {
            "a.txt": "CC0-1.0",
            "lib/LICENSE": "MIT",
            "lib/b.txt": "MIT",
            "lib/deep/c.txt": "MIT",
            "lib/deep/d.py": "BSD-3-Clause",
        }


def test_latex_finds_its_parts_but_never_outside_the_source(tmp_path: Path) -> None:
    main = "\\documentclass{article}\\begin{document}Main text. \\input{parts/one}\\input{../../secret}\\end{document}"
    (tmp_path / "secret.tex").write_text("SECRET")
    paper = tmp_path / "papers" / "p"
    write(tmp_path / "papers")
    write(paper, main__tex=main)
    write(paper / "parts", one__tex="Part one.")
    files = {f"p/{p.relative_to(paper)}": p.read_bytes() for p in sorted(paper.rglob("*.tex"))}
    write(tmp_path / "packed", a__tar__gz=tarred(files, "w:gz"), b__zip=zipped(files))  # type: ignore[arg-type]
    for path in (tmp_path / "papers", tmp_path / "packed"):
        found = Collected(tmp_path / "out", path)
        mains = [text for name, text in found.texts.items() if name.endswith("main.tex")]
        assert mains
        for text in mains:
            assert "Main text." in text
            assert "Part one." in text
            assert "SECRET" not in text


def test_bad_input_is_counted_and_named_and_the_rest_is_read(tmp_path: Path) -> None:
    root = write(
        tmp_path / "d",
        ok__txt="fine",
        empty__txt="",
        blank__txt=" \n ",
        binary__dat=bytes(range(256)) * 8,
        picture__png=b"\x89PNG\r\n\x1a\n" + bytes(200),
        latin__txt="café crème brûlée à la française".encode("latin-1"),
        wide__txt="wide text ü".encode("utf-16"),
        nul__txt=b"a nul \0 in " + b"the text " * 20,
        broken__txt="déjà vu, déjà lu, déjà entendu".encode()[:-1] + b"\xff, and more",
        rows__jsonl=b'{"text": "a"}\n{"text": \n[1]\n{"body": "x"}\n{"text": 5}\n{"text": ""}\n{"text": "z\\ud800z"}\n'
        b'\xff\xfe\n{"text": "caf\xe9 cr\xe8me"}\n' + b"[" * 100_000 + b"\n",
        bad__parquet=b"PAR1nonsense",
        column__csv="a,b\n1,2\n",
        cut__zip=zipped({"a.txt": "x"})[:-30],
        cut__tar=tarred({"a.txt": b"first", "b.txt": b"x" * 5000})[:3000],
        secret__pdf=b"%PDF-1.4 nonsense",
    )
    pq.write_table(pa.table({"text": [1, 2]}), root / "type.parquet")
    (root / "dangling").symlink_to("nothing")
    (root / "self").symlink_to("self")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "fifo")
    found = Collected(tmp_path / "out", root)
    assert found.texts == {
        "d/ok.txt": "fine",
        "d/latin.txt": "café crème brûlée à la française",
        "d/wide.txt": "wide text ü",
        "d/nul.txt": "a nul  in " + "the text " * 20,
        "d/broken.txt": found.texts["d/broken.txt"],
        "d/rows.jsonl/1": "a",
        "d/rows.jsonl/7": "zz",
        "d/rows.jsonl/9": "café crème",
        "d/cut.tar/a.txt": "first",
    }
    assert found.texts["d/broken.txt"].startswith("déjà vu, déjà lu, déjà entend")
    problems = {kind: sorted(named) for kind, named in found.problems.items()}
    assert problems == {
        "broken": ["d/bad.parquet", "d/cut.tar/b.txt", "d/cut.zip",
                   *[f"d/rows.jsonl, row {n}" for n in (10, 2, 8)], "d/secret.pdf"],
        "empty": ["d/blank.txt", "d/empty.txt", "d/rows.jsonl/6"],
        "no_text": ["d/column.csv", *[f"d/rows.jsonl, row {n}" for n in (3, 4, 5)], "d/type.parquet"],
        "repaired": ["d/broken.txt", "d/nul.txt"],
        "truncated": ["d/cut.tar"],
        "unknown_format": ["d/binary.dat", "d/picture.png"],
        "unreadable": ["d/dangling", "d/self"],
    }  # fmt: skip
    assert found.report["passed_over"] == {"special files": 1}
    assert found.figures["problems"] == sum(len(named) for named in problems.values())
    assert found.row("d/nul.txt")["flags"] == "repaired"


def test_odd_rows_of_tables_are_told(tmp_path: Path) -> None:
    write(
        tmp_path / "d",
        a__csv='id,text\n1,an, unquoted comma\n2,"fine, this"\n3,4" pipes\n4,,,\n5,"never closed\n6,more\n',
        b__csv=b"id,text\n1,ok\n2,nul\0here\n",
        c__jsonl='{"text": "n\\u0000l"}\n{"text": "ok"}\n',
        d__json=b'[{"text": "n\\u0000l"}, {"text": "ok"}]',
        e__json=b'[{"text": "nul \0 there"}]',
    )
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert found.texts == {
        "d/a.csv/2": "fine, this",
        "d/a.csv/3": '4" pipes',
        "d/a.csv/5": "never closed\n6,more\n",
        "d/b.csv/1": "ok",
        "d/b.csv/2": "nulhere",
        "d/c.jsonl/1": "nl",
        "d/c.jsonl/2": "ok",
        "d/d.json/1": "nl",
        "d/d.json/2": "ok",
        "d/e.json/1": "nul  there",
    }
    assert found.problems == {
        "broken": ["d/a.csv, row 1", "d/a.csv, row 5"],
        "empty": ["d/a.csv/4"],
        "repaired": ["d/b.csv/2", "d/c.jsonl/1", "d/d.json/1", "d/e.json"],
    }
    assert found.report["problems"]["broken"]["first"] == [
        "d/a.csv, row 1: 3 fields, but the header has 2",
        "d/a.csv, row 5: a quotation mark is never closed: the rest of the file is in this row",
    ]
    flagged = [row["origin"] for row in found.rows if row["flags"] == "repaired"]
    assert flagged == ["d/b.csv/2", "d/c.jsonl/1", "d/d.json/1"]


def test_tables_in_utf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"häll{n}" for n in range(100)]
    write(
        tmp_path / "d",
        a__csv="id,text\r\n".encode("utf-16") + "".join(f"1,{row}\r\n" for row in rows).encode("utf-16-le"),
        b__jsonl="".join(json.dumps({"text": row}) + "\n" for row in rows).encode("utf-16"),
    )
    expected = [f"d/{name}/{n}" for name in ("a.csv", "b.jsonl") for n in range(1, 101)]
    for size in (1 << 20, 1000):  # never cut into pieces, whose line ends would be sought in bytes
        monkeypatch.setattr(plan, "SMALL_BYTES", size)
        monkeypatch.setattr(plan, "SPLIT_BYTES", size)
        found = Collected(tmp_path / "out", tmp_path / "d")
        assert found.texts == dict(zip(expected, rows * 2, strict=True))
        assert found.problems == {}


def test_carriage_returns_alone_are_named(tmp_path: Path) -> None:
    write(tmp_path / "d", a__csv="id,text\r1,one\r", b__csv="id,text\n1,one\rtwo\n2,three\n")
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert list(found.texts) == ["d/b.csv/2"]
    assert found.report["problems"]["broken"]["first"] == [
        "d/a.csv: has no header: a carriage return outside of quotation marks",
        "d/b.csv, row 1: a carriage return outside of quotation marks",
    ]


def test_what_holds_no_document_is_told(tmp_path: Path) -> None:
    write(tmp_path / "d", a__csv="id,text\n", b__jsonl="\n\n", c__zip=zipped({}), d__json="[ {} ]", e__txt="text")
    write(tmp_path / "d", f__zip=zipped({"in.zip": zipped({})}), g__tar__gz=tarred({"x/.hidden": b"x"}, "w:gz"))  # type: ignore[dict-item]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d" / "h.parquet")
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert found.problems == {
        "empty": ["d/a.csv", "d/b.jsonl", "d/c.zip", "d/f.zip/in.zip", "d/g.tar.gz", "d/h.parquet"],
        "no_text": ["d/d.json, row 1"],
    }


def test_rows_that_a_damaged_table_loses_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "a.parquet"
    texts = [f"{n} " + "x" * 100 for n in range(300)]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=100, use_dictionary=False, compression="none")
    data = bytearray(file.read_bytes())
    data[15_000:15_400] = b"\xff" * 400
    file.write_bytes(data)
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert len(found.rows) == 200
    assert found.problems == {"broken": ["d/a.parquet, rows 101 to 200"]}


def test_nothing_but_bad_input_is_an_error_that_says_what_is_wrong(tmp_path: Path) -> None:
    write(tmp_path / "d", a__jsonl='{"body": "x"}\n', b__txt="")
    with pytest.raises(GristmillError, match=r"every input was bad: 1 x no text in it \(d/b\.txt\); 1 x no text under"):
        Collected(tmp_path / "out", tmp_path / "d")
    with pytest.raises(GristmillError, match=r"all was passed over: 2 x excluded"):
        Collected(tmp_path / "out", tmp_path / "d", include=("*.md",))


def test_a_missing_extra_is_an_error_only_if_nothing_else_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    write(tmp_path / "d", a__pdf=b"%PDF-1.4")
    with pytest.raises(GristmillError, match=r"pip install gristmill\[pdf\]"):
        Collected(tmp_path / "out", tmp_path / "d")
    write(tmp_path / "d", b__txt="text")
    assert Collected(tmp_path / "out", tmp_path / "d").problems == {"missing_package": ["d/a.pdf"]}


def test_a_defect_of_a_reader_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As a library in Rust raises it."""

    def falls(html: bytes, *more: Any) -> Any:
        raise PanicException("boom") if b"panic" in html else KeyError("x")

    monkeypatch.setattr(pagetext, "main_text", falls)
    write(tmp_path / "d", a__html=page("panic"), b__html=page("b"), c__txt="text")
    found = Collected(tmp_path / "out", tmp_path / "d")
    assert found.texts == {"d/c.txt": "text"}
    assert found.problems == {"reader_failed": ["d/a.html", "d/b.html"]}
