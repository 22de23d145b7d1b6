"""Bytes to text, and which format a file has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.data.collect.formats.decode import decode
from gristmill.data.collect.formats.detect import detect

RUSSIAN = "Привет, как дела? Сегодня хорошая погода, и мы идём гулять."
JAPANESE = "日本語のテキストです。これは長い文章なので、文字コードが分かります。"
FRENCH = "L'été à la française : où est le garçon ? Là-bas, près de la forêt."


@given(st.text())
def test_valid_utf8_comes_back_whole(text: str) -> None:
    expected = text.removeprefix("\ufeff")
    if "\0" not in text:
        assert decode(text.encode()) == (expected, False)
        assert decode(("\ufeff" + text).encode()) == (text, False)


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "iso-8859-1", "iso-2022-jp", "nonsense", "utf-16", ""]))
def test_any_bytes_give_text_that_can_be_written(data: bytes, declared: str | None) -> None:
    text, _ = decode(data, declared)
    text.encode()
    assert "\0" not in text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_wide_encodings_with_and_without_marks(encoding: str) -> None:
    text = "Plain words, written by a program of Windows.\r\nÄpfel."
    data = text.encode(encoding)
    assert decode(data) == (text, False)
    if encoding in ("utf-16", "utf-32"):
        assert decode(data[:-1])[1], "a unit cut in half is a repair"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (JAPANESE, "euc-jp"), (JAPANESE, "shift-jis"), (FRENCH, "cp1252")],
)
def test_old_encodings_are_found(text: str, encoding: str) -> None:
    padded = ("Some words in ASCII come first.\n" * 8000 + text + "\n").encode(encoding)
    assert decode(padded)[0].endswith(text + "\n")
    assert not decode(padded)[1]


def test_a_declared_encoding_is_used_where_utf8_does_not_fit() -> None:
    assert decode("naïve".encode("latin-1"), "ISO-8859-1") == ("naïve", False)
    assert decode("żółw".encode("iso-8859-2"), "iso-8859-2") == ("żółw", False)
    assert decode(JAPANESE.encode("iso-2022-jp"), "iso-2022-jp") == (JAPANESE, False)
    assert decode("naïve".encode(), "iso-8859-1") == ("naïve", False), "valid UTF-8 whatever is declared"


def test_repairs_are_flagged() -> None:
    assert decode("café au lait, ".encode() * 12 + b"caf\xe9 \xe2\x80") == ("café au lait, " * 12 + "café �", True)
    assert decode(b"a\0b\0\0c d e f g h i j k l") == ("abc d e f g h i j k l", True)
    text, repaired = decode(bytes(range(128, 256)) * 3)
    assert repaired
    assert text


@pytest.mark.parametrize(
    ("name", "head", "format"),
    [
        ("a/b.EPUB", b"PK\x03\x04", "epub"),
        ("book", b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/epub+zip", "epub"),
        ("archive.zip", b"PK\x03\x04", None),
        ("x", b"%PDF-1.7", "pdf"),
        ("enwiki-pages-articles.xml", b'<mediawiki xmlns="x">', "wikipedia"),
        ("Posts.xml", b'<?xml version="1.0"?>\n<posts>', "stackexchange"),
        ("superuser/data.xml", b"<?xml?><posts>", "stackexchange"),
        ("pom.xml", b"<project>", "code"),
        ("84-0.txt", b"The Project Gutenberg EBook of Frankenstein", "gutenberg"),
        ("pg1.txt", b"*** START OF THE PROJECT GUTENBERG EBOOK 1 ***", "gutenberg"),
        ("notes.txt", b"words", None),
        ("page.html", b"<html>", None),
        ("README.md", b"# x", None),
        ("n.ipynb", b"{}", "notebook"),
        ("i.rst", b"x", "rst"),
        ("ls.1", b'.\\" c\n.TH LS 1', "man"),
        ("open.3posix", b"'\\\" t\n.TH OPEN 3", "man"),
        ("data.1", b"1 2 3", None),
        ("m.tex", b"", "latex"),
        ("2101.00001", b"% c\n\\documentclass{article}", None),
        ("paper", b"% c\n\\documentclass{article}", "latex"),
        ("a.py", b"", "code"),
        ("run", b"#!/usr/bin/env python3\n", "code"),
        ("photo.jpg", b"\xff\xd8\xff\0\0", None),
    ],
)
def test_formats_by_name_and_head(name: str, head: bytes, format: str | None) -> None:
    assert detect(name, head) == format


@given(st.text(max_size=20), st.binary(max_size=200))
def test_detection_takes_anything(name: str, head: bytes) -> None:
    detect(name, head)
