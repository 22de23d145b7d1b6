"""`gristmill bench data`: the data stages on real text, measured as a user runs them, beside other tools.

Every figure is of whole processes, started as commands: reading and writing Parquet, starting Python and loading models
are in it. The text is laid out first; laying it out is not.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from gristmill import hardware
from gristmill.errors import GristmillError

from . import peers
from .measure import Cost, run
from .planted import dedup_quality
from .text import Measured, installed_directories, write_documents, write_warc

PEER_MEGABYTES = 2.0  # most peers are slow: a small piece of the same file is enough for a rate
PLANTED_ORIGINALS = 1000
SOURCES_OFF = {name: {"enabled": False} for name in ("books", "web", "docs", "code")}
# Gopher's rules and near-duplicates only: what the peers do.
RULES_AND_MINHASH: dict[str, Any] = {"clean": {"repair_encoding": False}, "language": None, "privacy": None}


@dataclass(frozen=True)
class Row:
    """One measured thing. `rate` is megabytes of text (of HTML for a WARC) per processor second."""

    name: str
    megabytes: float
    rate: float
    seconds: float | None = None
    peak_megabytes: float | None = None
    note: str = ""


def bench_data(
    directories: list[Path], megabytes: float, workers: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure, and return the rows with what they were measured on. `directories`: where to find text and pages; none
    takes what is installed on this machine. GristmillError when they hold too little."""
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as name:
        place = Path(name)
        places = directories or installed_directories()
        say(f"laying out {megabytes:.0f} MB of text from {', '.join(map(str, places))}")
        text = write_documents(places, megabytes, place / "text.jsonl")
        warc = write_warc(places, megabytes, place / "pages.warc.gz")
        rows = _ours(text, warc, place, workers, say) + _theirs(text, say)
        say("planted duplicates")
        return {
            "rows": [row.__dict__ for row in rows],
            "deduplication": dedup_quality(places, PLANTED_ORIGINALS),
            "documents": text.documents,
            "megabytes": round(text.bytes / 1e6, 1),
            "workers": workers,
            "hardware": hardware.describe(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("pyarrow", "numpy", "numba", "resiliparse")},
        }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{report['documents']:,} documents, {report['megabytes']:,} MB of text, {report['workers']} workers", ""]
    lines.append(f"{'what':<46}{'MB':>8}{'MB/CPU-s':>10}{'seconds':>9}{'peak MB':>9}  note")
    for row in report["rows"]:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        peak = f"{row['peak_megabytes']:.0f}" if row["peak_megabytes"] else ""
        name, size, rate, note = row["name"], row["megabytes"], row["rate"], row["note"]
        lines.append(f"{name:<46}{size:>8.1f}{rate:>10.2f}{seconds:>9}{peak:>9}  {note}".rstrip())
    found = report["deduplication"]
    lines.append(f"\nplanted duplicates, {found['documents']:,} documents: recall at J >= 0.8, precision at J >= 0.7")
    for name, what in (("checked", "gristmill"), ("merged", "the same candidates merged unchecked")):
        score = found[name]
        lines.append(f"{what:<46}{score['recall']:>8.3f}{score['precision']:>10.3f}")
    return "\n".join(lines)


def _ours(text: Measured, warc: Measured | None, place: Path, workers: int, say: Callable[[str], None]) -> list[Row]:
    chain = place / "chain"
    recipe = _recipe(chain, text.path, "other", {})
    warm = _recipe(place / "warm", _few_lines(text.path, place), "other", {})
    _data("collect", warm, 1)
    _data("clean", warm, 1)  # compiles what is not compiled yet
    rows = []
    say("collecting")
    rows.append(_row("collect from JSONL", text, _data("collect", recipe, workers)))
    say("the default chain, one worker")
    alone = _data("clean", recipe, 1)
    rows.append(_row("default chain, 1 worker", text, alone))
    shutil.rmtree(chain / "artifacts" / "corpus")
    say(f"the default chain, {workers} workers")
    together = _data("clean", recipe, workers)
    note = f"{alone.seconds / together.seconds:.2f} times as fast as 1 worker"
    rows.append(_row(f"default chain, {workers} workers", text, together, note))
    say("only a threshold changed")
    changed = _recipe(chain, text.path, "other", {"rules": {"other": {"quality": {"min_words": 60}}}})
    rows.append(_row("default chain, only a threshold changed", text, _data("clean", changed, workers)))
    say("Gopher rules and MinHash only")
    plain = _recipe(place / "plain", text.path, "other", RULES_AND_MINHASH)
    _data("collect", plain, workers)
    rows.append(_row("Gopher rules + MinHash", text, _data("clean", plain, workers)))
    if warc is not None:
        say("HTML in WARC")
        cost = _data("collect", _recipe(place / "warc", warc.path, "web", {}), workers)
        rows.append(_row("collect from HTML in WARC", warc, cost, "MB of HTML"))
    return rows


def _theirs(text: Measured, say: Callable[[str], None]) -> list[Row]:
    rows = []
    for name in peers.installed():
        say(f"{name}, for comparison")
        command = [sys.executable, "-m", "gristmill.bench.peers", name, str(text.path), str(PEER_MEGABYTES)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise GristmillError(f"the peer {name} failed: {done.stderr[-1000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(Row(name, found["megabytes"], round(found["mb_per_cpu_second"], 2), note=found["does"]))
    return rows


def _row(name: str, measured: Measured, cost: Cost, note: str = "") -> Row:
    size = measured.bytes / 1e6
    rate = round(size / cost.cpu_seconds, 2)
    return Row(name, round(size, 1), rate, round(cost.seconds, 2), round(cost.peak_bytes / 1e6, 1), note)


def _data(verb: str, recipe: Path, workers: int) -> Cost:
    """`gristmill data VERB` in the recipe's directory."""
    command = [sys.executable, "-m", "gristmill", "data", verb, str(recipe), "--run", str(recipe.parent)]
    return run([*command, "--workers", str(workers)])


def _recipe(directory: Path, path: Path, domain: str, corpus: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    recipe = directory / "bench.yaml"
    collected = SOURCES_OFF | {"paths": [{"path": str(path), "domain": domain}]}
    recipe.write_text(yaml.safe_dump({"name": "bench", "seed": 1, "collected": collected, "corpus": corpus}))
    return recipe


def _few_lines(path: Path, place: Path) -> Path:
    """The first lines of a file as a file of their own."""
    few = place / "few.jsonl"
    with open(path, encoding="utf-8") as source, open(few, "w", encoding="utf-8") as target:
        target.writelines(line for line, _ in zip(source, range(20), strict=False))
    return few
