"""Small helpers for the tests of stage `collected`: run it on files, and make the files."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from gristmill.artifact import Figures, StageRun
from gristmill.data.collect import collect
from gristmill.data.config import (
    BooksConfig,
    CodeConfig,
    CollectConfig,
    DocsConfig,
    LimitsConfig,
    PathSource,
    WebConfig,
)
from gristmill.events import StageLog

OFF: dict[str, Any] = {
    "books": BooksConfig(enabled=False),
    "web": WebConfig(enabled=False),
    "docs": DocsConfig(enabled=False),
    "code": CodeConfig(enabled=False),
}


def only(**sections: Any) -> CollectConfig:
    return CollectConfig(**(OFF | sections))


def run_in(out: Path, workers: int = 1) -> StageRun:
    (out / "_scratch").mkdir(parents=True, exist_ok=True)
    return StageRun(out, out / "_scratch", {}, 0, StageLog.silent(), workers=workers)


class Collected:
    """What stage `collected` made of one or more paths, in a fresh directory."""

    def __init__(
        self, out: Path, *paths: Path | str, limits: dict[str, Any] | None = None, workers: int = 1, **fields: Any
    ):
        shutil.rmtree(out, ignore_errors=True)
        sources = tuple(PathSource(**{"path": str(path), "domain": "mine", **fields}) for path in paths)
        self.out = out
        config = only(paths=sources, limits=LimitsConfig(**(limits or {})))
        self.figures: Figures = collect(config, run_in(out, workers))
        self.report = json.loads((out / "report.json").read_text())
        self.rows: list[dict[str, Any]] = pq.read_table(out / "documents").to_pylist()

    @property
    def texts(self) -> dict[str, str]:
        """Origin -> text."""
        return {row["origin"]: row["text"] for row in self.rows}

    @property
    def problems(self) -> dict[str, list[str]]:
        """Kind -> the names in the report, without details."""
        found = self.report["problems"]
        return {kind: [name.partition(":")[0] for name in entry["first"]] for kind, entry in found.items()}

    def row(self, origin: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["origin"] == origin)


def zipped(files: dict[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def page(text: str) -> bytes:
    return f"<html><head><title>T</title></head><body><main><p>{text}</p></main></body></html>".encode()


def warc(
    pages: dict[str, bytes], gzip: bool = True, kind: str = "response", status: str = "200 OK", **headers: str
) -> tuple[bytes, list[int]]:
    """A WARC file with a record a page, and where each begins. Headers are named like `Content_Type`."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=gzip)
    starts = []
    named = [(name.replace("_", "-"), value) for name, value in ({"Content_Type": "text/html"} | headers).items()]
    for url, body in pages.items():
        starts.append(out.tell())
        http = StatusAndHeaders(status, named, protocol="HTTP/1.1") if kind == "response" else None
        type = "" if kind == "response" else headers.get("Content_Type", "")
        record = writer.create_warc_record(
            url, kind, payload=io.BytesIO(body), http_headers=http, warc_content_type=type
        )
        writer.write_record(record)
    return out.getvalue(), starts


def jsonl(count: int, words: int = 20) -> bytes:
    rows = ({"text": f"row {n} " + "wörd " * words, "n": n} for n in range(1, count + 1))
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(directory: Path, **files: bytes | str) -> Path:
    """Files by name, `a__txt` for `a.txt`."""
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name.replace("__", ".")).write_bytes(data.encode() if isinstance(data, str) else data)
    return directory
