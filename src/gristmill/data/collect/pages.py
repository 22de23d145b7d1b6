"""The pages of the web source: HTML rendered from the standard library and kept as WARC.

WARC (ISO 28500) is what crawlers write, so the road from here (`warc.py`) is the one that real crawls take.
"""

from __future__ import annotations

import io
import json
import os
import pkgutil
import subprocess
import sys
import uuid
from pathlib import Path

from gristmill.errors import GristmillError

from ..config import WebConfig
from .packages import standard_library

HOST = "https://pydoc.example"  # a name reserved for examples (RFC 2606): nobody serves these pages
WARC_DATE = "2026-01-01T00:00:00Z"  # a constant, since an artifact holds no clock
STALLED_SECONDS = 120
# Importing these opens windows or browsers, prints poems, runs programs, or shows tests and data.
_SKIPPED = {"__main__", "antigravity", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}
_SKIPPED_BELOW = {"__main__", "test", "tests", "idle_test"}


def render_web(config: WebConfig, warc: Path, scratch: Path) -> None:
    """Render the pages and keep them as the file `warc`. GristmillError when there is none to render."""
    modules = list(config.modules) if config.modules is not None else standard_library_modules()
    found = render_pages(modules[: config.max_documents], scratch / "pages.jsonl")
    if not found:
        raise GristmillError("web.modules names no module that can be imported; correct it or disable web")
    unfinished = scratch / warc.name
    write_warc(unfinished, found)
    os.replace(unfinished, warc)


def standard_library_modules() -> list[str]:
    """Public modules of this Python's standard library, sorted; those with side effects are left out."""
    names = [name for name in sys.stdlib_module_names if not name.startswith("_") and name not in _SKIPPED]
    waiting = list(names)
    while waiting:
        parent = waiting.pop()
        directory = standard_library().joinpath(*parent.split("."))
        for module in pkgutil.iter_modules([str(directory)]):
            if module.name not in _SKIPPED_BELOW:
                names.append(f"{parent}.{module.name}")
                waiting.append(names[-1])
    return sorted(names)


def render_pages(modules: list[str], file: Path) -> list[tuple[str, str]]:
    """(module, HTML page) for every module that can be imported, in the given order.

    The work is done by another process (`pydoc_pages.py`). Should a module bring it down or hang, that module is
    left out and another process goes on behind it.
    """
    file.unlink(missing_ok=True)
    records: list[dict[str, str]] = []
    while len(records) < len(modules):
        _run_renderer(modules[len(records) :], file)
        records = [json.loads(line) for line in file.read_bytes().split(b"\n") if line] if file.exists() else []
        if len(records) < len(modules):
            fallen = {"module": modules[len(records)], "error": "the process fell"}
            records.append(fallen)
            with open(file, "a", encoding="utf-8") as output:
                output.write(json.dumps(fallen) + "\n")
    return [(record["module"], record["html"]) for record in records if "html" in record]


def _run_renderer(modules: list[str], file: Path) -> None:
    script = Path(__file__).with_name("pydoc_pages.py")
    # A bare environment: nothing of the user's can reach a page, and the order of sets is the same each time.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8", "HOME": "/"}
    with open(file.with_suffix(".names"), "w+", encoding="utf-8") as names:
        names.write("\n".join(modules))
        names.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(script), str(file.resolve())],
            stdin=names,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=file.parent,
        )
    size = -1
    while process.poll() is None:
        try:
            process.wait(STALLED_SECONDS)
        except subprocess.TimeoutExpired:
            now = file.stat().st_size if file.exists() else 0
            if now == size:
                process.kill()
            size = now


def write_warc(path: Path, pages: list[tuple[str, str]]) -> None:
    """One WARC response record per page; the same pages give the same bytes."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for module, page in pages:
            url = f"{HOST}/{module}.html"
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                url,
                "response",
                payload=io.BytesIO(page.encode()),
                http_headers=http,
                warc_headers_dict={
                    "WARC-Date": WARC_DATE,
                    "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}>",
                },
            )
            writer.write_record(record)
