"""Stage `collected`: texts of all sources as one table of documents.

The pages of the web source are kept as WARC beside it. Everything here depends on the configuration and on the versions
of the packages that the texts come from, never on the machine: no path, time or value of this process gets into a text.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from gristmill.artifact import Figures, StageRun
from gristmill.errors import GristmillError

from . import sources
from .config import CollectConfig
from .local import local_documents, local_files
from .schema import DOCUMENTS, Document, DocumentWriter
from .web import collect_web

WARC = "web.warc.gz"


def collect(config: CollectConfig, run: StageRun) -> Figures:
    """Write `documents/` and, with the web source, `web.warc.gz`."""
    identity(config)  # a package or file that is missing shows before any work
    figures: Figures = {"documents": 0, "bytes": 0}
    (run.out / WARC).unlink(missing_ok=True)
    seen: set[str] = set()
    with DocumentWriter(run.out / "documents", DOCUMENTS) as writer:
        for name, documents in _sources(config, run):
            started = time.perf_counter()
            before = writer.rows, writer.bytes
            for document in documents:
                _add(writer, document, seen)
                run.log.progress(writer.rows - before[0], writer.rows - before[0] + 1, f"documents of {name}")
            run.log.progress(writer.rows - before[0], writer.rows - before[0], f"documents of {name}")
            figures[f"{name}_documents"] = writer.rows - before[0]
            figures[f"{name}_bytes"] = writer.bytes - before[1]
            figures[f"{name}_seconds"] = round(time.perf_counter() - started, 3)
    if not writer.rows:
        raise GristmillError(
            "nothing was collected: the enabled sources hold no text; look at `collected` in the recipe"
        )
    return figures | {"documents": writer.rows, "bytes": writer.bytes}


def identity(config: CollectConfig) -> dict[str, Any]:
    """What the texts depend on beside the configuration: Python's version, those of the packages, and the size and
    time of change of local files. Part of the stage's fingerprint."""
    found: dict[str, Any] = {"python": platform.python_version()}
    packages: dict[str, str | None] = {}
    if config.books.enabled:
        packages |= dict(sources.WORKS[work] for work in config.books.works)
    if config.docs.enabled:
        packages |= dict.fromkeys(config.docs.packages)
    if config.web.enabled:
        packages |= dict.fromkeys(("fastwarc", "resiliparse", "warcio"))
    found["packages"] = {name: sources.distribution(name, packages[name]).version for name in sorted(packages)}
    files = (file for source in config.local for file in local_files(source))
    found["local"] = [[name, file.stat().st_size, file.stat().st_mtime_ns] for name, file in files]
    return found


def _sources(config: CollectConfig, run: StageRun) -> Iterator[tuple[str, Iterator[Document]]]:
    """(name, its documents) for every enabled source, in the order of the table."""
    simple: tuple[tuple[str, Any, Callable[[Any], Iterator[Document]]], ...] = (
        ("books", config.books, sources.books),
        ("code", config.code, sources.code),
        ("docs", config.docs, sources.docs),
    )
    for name, section, read in simple:
        if section.enabled:
            yield name, islice(read(section), section.max_documents)
    if config.web.enabled:

        def progress(done: int, total: int) -> None:
            run.log.progress(done, total, "pages rendered")

        pages = collect_web(config.web, run.out / WARC, run.scratch, progress)
        yield "web", islice(pages, config.web.max_documents)
    if config.local:
        yield "local", (document for source in config.local for document in local_documents(source))


def _add(writer: DocumentWriter, document: Document, seen: set[str]) -> None:
    if document.id in seen:
        raise GristmillError(
            f"two documents of source {document.source!r} are both called {document.origin!r}; "
            "give the second local path in such a way that the names differ, or leave it out"
        )
    seen.add(document.id)
    # A file may hold lone surrogates in a JSON escape; UTF-8, and so the table, cannot.
    text = document.text.encode("utf-8", "ignore")
    writer.add(len(text), id=document.id, **document._replace(text=text.decode())._asdict())
