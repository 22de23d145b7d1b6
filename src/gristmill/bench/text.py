"""Real text to measure on: what lies on this machine, or the directories that are given.

HTML pages are also written as WARC, so that the road from a crawl can be timed. A share of the documents is copied with
small edits: a corpus without near-duplicates would let deduplication off too lightly.
"""

from __future__ import annotations

import io
import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gristmill.errors import GristmillError

COPIED = 0.12  # share of documents that are near-duplicates of others
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".c", ".h", ".tex"}
HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
LEAST_CHARACTERS = 400
MOST_CHARACTERS = 200_000


@dataclass(frozen=True)
class Measured:
    """A file to measure on, with its documents and the UTF-8 bytes of their text."""

    path: Path
    documents: int
    bytes: int


def write_documents(directories: list[Path], megabytes: float, path: Path, seed: int = 0) -> Measured:
    """A JSONL file of about so many megabytes of text with near-duplicates planted in it."""
    source = random.Random(seed)
    earlier: list[str] = []
    documents = size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts(directories):
            written = [text]
            if earlier and source.random() < COPIED:
                written.append(_edited(source.choice(earlier), source))
            file.writelines(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in written)
            documents += len(written)
            size += sum(len(each.encode()) for each in written)
            if len(earlier) < 2000:
                earlier.append(text)
            if size >= megabytes * 1e6:
                break
    if size < megabytes * 1e6:
        raise GristmillError(f"only {size / 1e6:.0f} MB of text were found; name more directories with --text")
    return Measured(path, documents, size)


def write_warc(directories: list[Path], megabytes: float, path: Path) -> Measured | None:
    """A WARC file with about so many megabytes of HTML (`bytes` counts those); None where there are no pages."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    documents = size = 0
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for page in files(directories, HTML_SUFFIXES):
            html = page.read_bytes()
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            url = f"https://bench.example/{documents}"
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(html), http_headers=http))
            documents += 1
            size += len(html)
            if size >= megabytes * 1e6:
                break
    return Measured(path, documents, size) if documents else None


def texts(directories: list[Path]) -> Iterator[str]:
    """Texts of the files below the directories; pages without their markup."""
    from resiliparse.extract.html2text import extract_plain_text

    for file in files(directories, TEXT_SUFFIXES | HTML_SUFFIXES):
        text = file.read_bytes().decode("utf-8", "ignore")
        if file.suffix in HTML_SUFFIXES:
            text = str(extract_plain_text(text, main_content=True))
        if LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
            yield text


def files(directories: list[Path], suffixes: set[str]) -> Iterator[Path]:
    """The files below the directories that have one of the suffixes, in a fixed order that mixes the directories."""
    found = [
        file
        for directory in directories
        for file in directory.rglob("*")
        if file.suffix in suffixes and file.is_file() and not file.is_symlink()
    ]
    found.sort()
    random.Random(0).shuffle(found)
    yield from found


def installed_directories() -> list[Path]:
    """Where text lies on most machines: Python's library and packages, and the system's documentation."""
    candidates = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), Path("/usr/share/doc")]
    return [path for path in candidates if path.is_dir()]


def _edited(text: str, source: random.Random) -> str:
    """A copy in which up to 4 % of the words are others; one in three gets a line on top."""
    words = text.split(" ")
    for _ in range(int(len(words) * source.random() * 0.04)):
        words[source.randrange(len(words))] = f"word{source.randrange(10_000)}"
    header = f"Copy number {source.randrange(10_000)} of this page.\n\n" if source.random() < 0.3 else ""
    return header + " ".join(words)
