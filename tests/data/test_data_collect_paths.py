"""Which files a path means, on this machine and behind URLs; what the fingerprint sees of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from collecting import Collected, only, run_in, tarred, zipped
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.data.collect import collect, discover, identity
from gristmill.data.collect.tally import NAMED, Tally
from gristmill.data.config import CollectConfig, LimitsConfig, PathSource
from gristmill.errors import GristmillError


def names(path: Path | str, **fields: Any) -> list[str]:
    return [file.name for file in discover.find_files(PathSource(path=str(path), domain="x", **fields), Tally())]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    for name in ("b.md", "a.txt", "sub/c.md", "sub/deep/d.md", "sub/deep/[1].txt", ".hidden.md", ".git/e.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_a_file_a_directory_and_globs(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["notes/a.txt", "notes/b.md", "notes/sub/c.md", "notes/sub/deep/[1].txt", "notes/sub/deep/d.md"]
    assert names(notes) == names(f"{notes}/") == everything
    assert names(notes / "b.md") == ["b.md"]
    assert names(notes / ".hidden.md") == [".hidden.md"]  # asked for by name
    assert names(notes / "**" / "*.md") == ["notes/b.md", "notes/sub/c.md", "notes/sub/deep/d.md"]
    assert names(notes / "*.md") == ["notes/b.md"]
    assert names(notes / "*" / "?.md") == ["notes/sub/c.md"]
    assert names(notes / "[ab].*") == ["notes/a.txt", "notes/b.md"]
    assert names(f"file://{notes}/a.txt") == ["a.txt"]
    monkeypatch.chdir(notes)
    assert names(".") == [name.removeprefix("notes/") for name in everything]
    assert names("sub") == ["sub/c.md", "sub/deep/[1].txt", "sub/deep/d.md"]
    monkeypatch.setenv("HOME", str(notes))
    assert names("~/sub/c.md") == ["c.md"]
    with pytest.raises(GristmillError, match="matches no file"):
        names("nothing/*.md")
    with pytest.raises(GristmillError, match="matches no file"):
        names("missing.txt")
    Path("self").symlink_to("self")
    with pytest.raises(GristmillError, match="'self' cannot be looked up: Too many levels of symbolic links"):
        names("self")


def test_include_and_exclude_look_into_archives(notes: Path, tmp_path: Path) -> None:
    (notes / "packed.zip").write_bytes(zipped({"in/a.md": "zip a", "in/b.txt": "zip b"}))
    (notes / "packed.tar").write_bytes(tarred({"a.md": b"tar a", "sub/b.md": b"tar b"}))
    only_md = Collected(tmp_path / "out", notes, include=("*.md",), exclude=("sub/**",))
    assert list(only_md.texts) == [
        "notes/b.md",
        "notes/packed.tar/a.md",
        "notes/packed.tar/sub/b.md",
        "notes/packed.zip/in/a.md",
    ]
    deep = Collected(tmp_path / "out", notes, include=("sub/deep/*",))
    assert list(deep.texts) == ["notes/sub/deep/[1].txt", "notes/sub/deep/d.md"]
    without = Collected(tmp_path / "out", notes, exclude=("*.zip", "*.txt", "packed.tar/**"))
    assert list(without.texts) == ["notes/b.md", "notes/sub/c.md", "notes/sub/deep/d.md"]


def test_loops_of_links_end_and_each_directory_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "r"
    (root / "z" / "real").mkdir(parents=True)
    (root / "z" / "real" / "x.txt").write_text("x")
    (root / "a-link").symlink_to(root / "z" / "real")  # the real way counts, though its name comes later
    (root / "z" / "up").symlink_to(root)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y.txt").write_text("y")
    (root / "b1").symlink_to(tmp_path / "outside")
    (root / "b2").symlink_to(tmp_path / "outside")
    (root / "file-link.txt").symlink_to(root / "z" / "real" / "x.txt")
    assert names(root) == ["r/b1/y.txt", "r/file-link.txt", "r/z/real/x.txt"]


def test_what_cannot_be_looked_at_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ok.txt").write_text("x")
    (tmp_path / "locked").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tally = Tally()
    source = PathSource(path=str(tmp_path), domain="x")
    assert [file.name.rpartition("/")[2] for file in discover.find_files(source, tally)] == ["ok.txt"]
    count, found = tally.problems["unreadable"]
    assert count == 2
    assert sorted(name.rpartition("/")[2] for name in found) == [
        "gone: No such file or directory",
        "locked: Permission denied",
    ]
    with pytest.raises(GristmillError, match=r"locked' matches no file .*; locked: Permission denied"):
        names(tmp_path / "locked")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with open(os.fsencode(tmp_path / "d") + b"/caf\xe9.txt", "wb") as file:
        file.write(b"text")
    assert Collected(tmp_path / "out", tmp_path / "d").texts == {"d/caf\\xe9.txt": "text"}


def test_two_files_of_one_name_are_refused_before_any_work(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "x.md").write_text(directory)
    with pytest.raises(GristmillError, match=r"both called 'x\.md'"):
        Collected(tmp_path / "out", tmp_path / "a" / "x.md", tmp_path / "b" / "x.md")
    config = only(
        paths=tuple(PathSource(path=str(tmp_path / d / "x.md"), domain="mine", name=f"from-{d}") for d in "ab")
    )
    assert collect(config, run_in(tmp_path / "out"))["documents"] == 2


def test_paths_behind_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    rows = b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(5))
    memory.pipe({"/data/set/a.jsonl": rows, "/data/set/sub/b.txt": b"b", "/data/set/.git/c.txt": b"hidden"})
    memory.pipe({"/data/set/z.zip": zipped({"in.txt": "zipped"})})
    found = Collected(tmp_path / "out", "memory://data/set")
    assert found.texts == {f"set/a.jsonl/{n + 1}": f"row {n}" for n in range(5)} | {
        "set/sub/b.txt": "b",
        "set/z.zip/in.txt": "zipped",
    }
    assert names("memory://data/set/*.jsonl") == ["set/a.jsonl"]
    assert names("memory://data/set/**/*.txt") == ["set/sub/b.txt"]
    assert names("memory://data/set/sub/b.txt") == ["b.txt"]
    with pytest.raises(GristmillError, match="matches no file"):
        names("memory://data/none")
    with pytest.raises(GristmillError, match="pip install s3fs"):
        names("s3://bucket/key")
    with pytest.raises(GristmillError, match="nosuch://"):
        names("nosuch://x/y")


def test_having_no_network_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(type(memory), "info", offline)
    with pytest.raises(GristmillError, match=r"memory://x' cannot be looked up \(ConnectionError.*is there a network"):
        names("memory://x")


def test_the_fingerprint_sees_files_change(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("one")
    config = only(paths=(PathSource(path=str(tmp_path / "x.md"), domain="mine"),))
    before = identity(config)
    assert json.loads(json.dumps(before)) == identity(config)
    (tmp_path / "x.md").write_text("longer")
    assert identity(config)["paths"] != before["paths"]
    assert identity(config)["packages"] == before["packages"]
    assert {"fastwarc", "resiliparse"} <= set(before["packages"])


def test_the_fingerprint_knows_the_readers_that_may_be_used_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("one")

    def readers(**fields: Any) -> set[str]:
        return set(identity(only(paths=(PathSource(path=str(tmp_path), domain="mine", **fields),)))["packages"])

    assert readers(format="jsonl") == readers(format="jsonl", html="trafilatura") == {"resiliparse"}
    assert readers(format="pdf") == {"resiliparse", "pypdfium2"}
    assert readers(format="html", html="trafilatura") == {"resiliparse", "trafilatura"}
    assert readers(format="warc") == {"resiliparse", "fastwarc"}
    assert readers() == {"resiliparse", "fastwarc", "pypdfium2", "warcio"}
    assert readers(html="trafilatura") == readers() | {"trafilatura"}


def test_a_look_at_the_fingerprint_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from gristmill.data.collect import identity;"
        "from gristmill.data.config import CollectConfig;"
        "config = CollectConfig(books={'enabled': False}, paths=[{'path': sys.argv[1], 'domain': 'x'}]);"
        "assert identity(config)['paths'][0]['files'] == 1;"
        "heavy = ('pyarrow', 'fsspec', 'fastwarc', 'numpy', 'resiliparse', 'warcio', 'trafilatura');"
        "print([m for m in heavy if m in sys.modules])"
    )
    (tmp_path / "x.md").write_text("one")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_older_key_and_bad_values() -> None:
    old = CollectConfig(local=[{"path": "x", "domain": "a"}])
    assert old == CollectConfig(paths=[{"path": "x", "domain": "a"}])
    assert "paths" in old.model_dump()
    assert "local" not in old.model_dump()
    for field, value in {"domain": "No", "language": "english", "format": "docx", "html": "bs4", "name": "a b"}.items():
        with pytest.raises(ValidationError, match=field):
            PathSource(**{"path": "x", "domain": "a", field: value})
    assert PathSource(path="x", domain="a", language="und").language == "und"
    with pytest.raises(ValidationError, match="max_document_bytes"):
        LimitsConfig(max_document_bytes=(1 << 30) + 1)


GLOB_PARTS = st.sampled_from(["*", "?", "a*", "[ab]", "[!a]", "*.md", "a.md", "ab", "**"])
NAMES = st.lists(st.sampled_from(["a", "b", "ab", "a.md", "b.md"]), min_size=1, max_size=4)


@given(parts=st.lists(GLOB_PARTS, min_size=1, max_size=3), name=NAMES)
def test_globs_mean_what_they_mean_to_fsspec(parts: list[str], name: list[str]) -> None:
    import re

    from fsspec.utils import glob_translate

    pattern, path = "/".join(parts), "/".join(name)
    assert discover.matches_path(path, pattern) == bool(re.fullmatch(glob_translate(pattern), path))


def test_only_so_many_problems_are_named() -> None:
    tally, other = Tally(), Tally()
    for number in range(NAMED + 5):
        tally.problem("empty", f"file {number}")
        other.problem("empty", f"other {number}", "with\nmany\x00 words " * 50)
    tally.add(other)
    count, found = tally.problems["empty"]
    assert count == 2 * (NAMED + 5)
    assert found == [f"file {number}" for number in range(NAMED)]
    assert all(name.isprintable() and len(name) < 230 for name in other.problems["empty"][1])
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


def test_patterns_that_are_none_are_refused(notes: Path) -> None:
    assert not discover.matches_path("a/b", "a[!x]b")
    assert not discover.matches_path("a/b", "a[.-0]b")
    assert discover.matches_path("a\\", "a[\\]")
    with pytest.raises(GristmillError, match=r"\[z-a\]"):
        names(notes, exclude=("[z-a]",))
