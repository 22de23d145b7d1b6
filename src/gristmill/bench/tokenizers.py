"""`gristmill bench tokenizers`: training, encoding and packing on real text, beside other tools, in one run.

Training and packing are measured as whole processes (starting Python and reading Parquet are in it), encoding inside a
process that uses one thread. That gristmill, tokenizers and tiktoken give the same ids for all of the text, and that
gristmill and tokenizers learn the same merges, is checked on the way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill import hardware
from gristmill.artifact import write_json
from gristmill.data.schema import DOCUMENTS, SPLIT, Document, TableWriter
from gristmill.errors import GristmillError

from .measure import run
from .text import installed_directories, texts

PEERS = ("tokenizers", "tiktoken", "rustbpe", "sentencepiece")
DOMAIN = "text"
VALIDATION_EVERY = 50  # one document in so many is not trained on
PLAN_LENGTHS = (2048, 8192)  # sequence lengths for which best-fit packing is shown
PLAN_DOCUMENTS = 1_000_000
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One measured thing; `rate` is megabytes of text per processor second."""

    part: str  # training, encoding or packing
    name: str
    megabytes: float
    rate: float | None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_megabytes: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """Where things lie and what is asked for."""

    place: Path
    megabytes: float
    train_megabytes: float
    vocab_size: int
    workers: int
    encode_megabytes: float
    peers: tuple[str, ...]
    say: Say

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Arguments of a task (`tokenizer_tasks.py`)."""
        shared = {"corpus": str(self.place / "corpus"), "vocab_size": self.vocab_size}
        return shared | {name: str(value) if isinstance(value, Path) else value for name, value in more.items()}


def bench_tokenizers(
    sources: list[Path],
    megabytes: float,
    vocab_size: int,
    workers: int,
    encode_megabytes: float | None = None,
    without: tuple[str, ...] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure, and return the rows with what they were measured on.

    `sources`: directories with text, or JSONL files with a field `text`; none takes what is installed on this machine.
    `encode_megabytes`: how much of the text is encoded, None for all. `without`: peers to leave out. GristmillError
    when there is too little text, or `without` names no peer.
    """
    if unknown := set(without) - set(PEERS):
        raise GristmillError(f"--without {', '.join(sorted(unknown))}: the other tools are {', '.join(PEERS)}")
    installed = tuple(name for name in PEERS if importlib.util.find_spec(name) is not None)
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as name:
        place = Path(name)
        say(f"laying out {megabytes:.0f} MB of text")
        documents, size, trained = write_corpus(sources, megabytes, place / "corpus")
        peers = tuple(name for name in installed if name not in without)
        everything = size / 1e6 + 1
        encoded = everything if encode_megabytes is None else encode_megabytes
        bench = Bench(place, size / 1e6, trained / 1e6, vocab_size, workers, encoded, peers, say)
        _warm_up(place)
        rows = list(_training(bench))
        same_merges = _same_merges(place)
        untrained = {row.name for row in rows if row.rate is None}
        rows += list(_encoding(bench, untrained))
        rows += list(_packing(bench))
        return {
            "rows": [asdict(row) for row in rows],
            "same_merges": same_merges,
            "best_fit": _best_fit(place / f"tokens-{workers}"),
            "absent": [name for name in PEERS if name not in installed],
            "left_out": sorted(set(without)),
            "documents": documents,
            "megabytes": round(size / 1e6, 1),
            "vocab_size": vocab_size,
            "hardware": hardware.describe(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("numpy", "numba", "pyarrow", *installed)},
        }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{report['documents']:,} documents, {report['megabytes']:,} MB of text, {report['vocab_size']:,} tokens"]
    part = ""
    for row in report["rows"]:
        if row["part"] != part:
            part = row["part"]
            lines += ["", f"{part:<34}{'MB':>8}{'MB/CPU-s':>10}{'seconds':>9}{'CPU-s':>9}{'peak MB':>9}  note"]
        numbers = f"{row['megabytes']:>8.1f}{_number(row['rate'], 10, 2)}{_number(row['seconds'], 9, 1)}"
        numbers += f"{_number(row['cpu_seconds'], 9, 1)}{_number(row['peak_megabytes'], 9, 0)}"
        lines.append(f"{row['name']:<34}{numbers}  {row['note']}".rstrip())
    lines.append("")
    if report["same_merges"] is not None:
        lines.append(
            f"the merges of gristmill and tokenizers are {'the same' if report['same_merges'] else 'DIFFERENT'}"
        )
    for plan in report["best_fit"]:
        lines.append(
            f"best fit, {plan['sequence_length']} tokens: padding {plan['padding']:.3%}, cut documents "
            f"{plan['cut_documents']:.1%} (a stream cuts {plan['cut_documents_stream']:.1%}), "
            f"{plan['documents_per_second']:,} documents/s"
        )
    lines += [f"{name} is not installed" for name in report["absent"]]
    lines += [f"{name} was left out" for name in report["left_out"]]
    return "\n".join(lines)


def write_corpus(sources: list[Path], megabytes: float, directory: Path) -> tuple[int, int, int]:
    """An artifact `corpus` of one domain; its documents, the bytes of their text, and those of the train split."""
    (directory / "documents").mkdir(parents=True)
    documents = size = trained = 0
    schema = DOCUMENTS.append(SPLIT)
    with TableWriter(directory / "documents" / "part-00000.parquet", schema) as writer:
        batch: list[dict[str, Any]] = []
        for text in _documents(sources or installed_directories()):
            document = Document(text, "bench", DOMAIN, "en", "", f"document#{documents}")
            held_back = documents % VALIDATION_EVERY == VALIDATION_EVERY - 1
            length = len(text.encode())
            row = {"id": document.id, "split": "validation" if held_back else "train", "bytes": length}
            batch.append(document._asdict() | row)
            documents, size, trained = documents + 1, size + length, trained + (0 if held_back else length)
            if len(batch) == 256 or size >= megabytes * 1e6:
                writer.add(pa.RecordBatch.from_pylist(batch, schema.append(pa.field("bytes", pa.int64()))))
                batch = []
            if size >= megabytes * 1e6:
                break
    if size < megabytes * 1e6:
        raise GristmillError(f"only {size / 1e6:,.1f} MB of text were found; name more places with --text")
    write_json(directory / "report.json", {"weights": {DOMAIN: 1.0}})
    return documents, size, trained


def _documents(sources: list[Path]) -> Iterator[str]:
    for source in sources:
        if source.is_dir():
            yield from texts([source])
        else:
            with open(source, "rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        text = json.loads(line)["text"]
                        text.encode()
                    except (ValueError, KeyError, TypeError, AttributeError):
                        raise GristmillError(f"{source}, line {number}: no object with text under 'text'") from None
                    yield text


def _training(bench: Bench) -> Iterator[Row]:
    for workers in dict.fromkeys((1, bench.workers)):
        out = bench.place / f"gristmill-{workers}"
        more: dict[str, Any] = {"out": out, "workers": workers, "sample_bytes": int(2 * bench.megabytes * 1e6)}
        yield _process(bench, "training", f"gristmill, {_workers(workers)}", "train gristmill", **more)
    for name in bench.peers:
        if name != "tiktoken":  # it trains nothing
            yield _process(bench, "training", name, f"train {name}", peer=True, out=bench.place / name)


def _packing(bench: Bench) -> Iterator[Row]:
    for workers in dict.fromkeys((1, bench.workers)):
        more: dict[str, Any] = {"out": bench.place / f"tokens-{workers}", "workers": workers}
        name = f"stage tokens, {_workers(workers)}"
        yield _process(bench, "packing", name, "pack", tokenizer=bench.place / "gristmill-1", **more)


def _process(bench: Bench, part: str, name: str, task: str, peer: bool = False, **more: Any) -> Row:
    """Measure a task as a whole process. A peer that fails has a row that says so."""
    bench.say(f"{part}: {name}")
    size = bench.train_megabytes if part == "training" else bench.megabytes
    try:
        cost = run([sys.executable, "-m", "gristmill.bench.tokenizer_tasks", task, json.dumps(bench.arguments(**more))])
    except GristmillError as error:
        if not peer:
            raise
        return Row(part, name, size, None, note=f"failed: {str(error).splitlines()[-1][:80]}")
    rate = size / cost.cpu_seconds
    return Row(part, name, size, rate, cost.seconds, cost.cpu_seconds, cost.peak_bytes / 1e6)


def _encoding(bench: Bench, untrained: set[str]) -> Iterator[Row]:
    """One thread each. The ids of gristmill are what the others' are compared with. A peer that could not be trained
    has no vocabulary of its own to encode with."""
    tokenizer = bench.place / "gristmill-1"
    found = _encode(bench, "gristmill", bench.place / "ours", tokenizer=tokenizer, megabytes=bench.encode_megabytes)
    size = found["megabytes"]
    yield Row("encoding", "gristmill, nothing remembered", size, found["mb_per_second"], note=_tokens(found))
    yield Row("encoding", "gristmill, the same text again", size, found["warm"])
    tasks = {"tokenizers": ("tokenizers", "tokenizers in batches"), "tiktoken": ("tiktoken",)}
    for name in (task for peer in bench.peers for task in tasks.get(peer, ())):
        ids = bench.place / "theirs"
        try:
            found = _encode(bench, name, ids, tokenizer=tokenizer, megabytes=bench.encode_megabytes)
        except GristmillError as error:
            yield Row("encoding", name, size, None, note=f"failed: {error}")
            continue
        note = compare(bench.place / "ours", ids)
        yield Row("encoding", name, found["megabytes"], found["mb_per_second"], note=f"{_tokens(found)}, {note}")
    for name in (name for name in bench.peers if name in ("rustbpe", "sentencepiece")):
        if name in untrained:
            yield Row("encoding", name, size, None, note="was not trained")
            continue
        try:
            found = _encode(bench, name, None, model=bench.place / name, megabytes=bench.encode_megabytes)
        except GristmillError as error:
            yield Row("encoding", name, size, None, note=f"failed: {error}")
            continue
        note = f"{_tokens(found)} of its own vocabulary"
        yield Row("encoding", name, found["megabytes"], found["mb_per_second"], note=note)


def _encode(bench: Bench, name: str, ids: Path | None, **more: Any) -> dict[str, Any]:
    """Run a task that encodes on one thread; what it prints."""
    bench.say(f"encoding: {name}")
    arguments = json.dumps(bench.arguments(ids=ids, scratch=bench.place, **more))
    done = subprocess.run(
        [sys.executable, "-m", "gristmill.bench.tokenizer_tasks", f"encode {name}", arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ONE_THREAD,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise GristmillError(last[-1][:200])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(ours: Path, theirs: Path) -> str:
    """Whether two files of ids, written by `tokenizer_tasks`, are equal, in words: "equal ids", or the first document
    that differs."""
    ids, starts = ([np.load(f"{path}{end}.npy", mmap_mode="r") for path in (ours, theirs)] for end in ("", ".offsets"))
    if np.array_equal(*ids) and np.array_equal(*starts):
        return "equal ids"
    documents = min(map(len, starts)) - 1
    for document in range(documents):
        pieces = [i[s[document] : s[document + 1]] for i, s in zip(ids, starts, strict=True)]
        if not np.array_equal(*pieces):
            return f"OTHER IDS from document {document} on"
    return f"OTHER IDS: {len(starts[0]) - 1} and {len(starts[1]) - 1} documents"


def _same_merges(place: Path) -> bool | None:
    """Whether gristmill has learned what tokenizers has; None where that was not measured."""
    found = [place / name / "merges.txt" for name in ("gristmill-1", "tokenizers")]
    if not all(path.exists() for path in found):
        return None
    ours, theirs = (
        [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#version")]
        for path in found
    )
    return ours == theirs


def _best_fit(tokens: Path) -> list[dict[str, Any]]:
    """What best-fit packing makes of the lengths of the documents, repeated up to `PLAN_DOCUMENTS` for its speed."""
    from time import process_time

    from gristmill.tokenizer.packing import best_fit, cut_by_stream
    from gristmill.tokenizer.store import TokenStore

    lengths = np.diff(TokenStore.open(tokens).offsets("train", DOMAIN))
    many = np.resize(lengths, PLAN_DOCUMENTS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found = []
    for length in PLAN_LENGTHS:
        packed = best_fit(lengths, length)
        started = process_time()
        best_fit(many, length)
        seconds = process_time() - started
        found.append(
            {
                "sequence_length": length,
                "padding": round(packed.padding, 6),
                "cut_documents": round(packed.cut_documents / len(lengths), 4),
                "cut_documents_stream": round(cut_by_stream(starts, length) / len(lengths), 4),
                "documents_per_second": round(PLAN_DOCUMENTS / seconds),
            }
        )
    return found


def _warm_up(place: Path) -> None:
    """Compile what is not compiled yet, on a few words."""
    place = place / "warm"
    (place / "source").mkdir(parents=True)
    words = " ".join(f"word{number % 97} turns {number % 13}" for number in range(400))
    (place / "source" / "words.txt").write_text(words * 3)
    write_corpus([place / "source"], 0.01, place / "corpus")
    bench = Bench(place, 0.02, 0.02, 270, 1, 1.0, (), lambda line: None)
    _process(bench, "training", "", "train gristmill", out=place / "gristmill-1", workers=1, sample_bytes=10**6)
    for row in _packing(bench):
        assert row.rate


def _tokens(found: dict[str, Any]) -> str:
    return f"{found['tokens']:,} tokens"


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _number(value: float | None, width: int, digits: int) -> str:
    return " " * width if value is None else f"{value:>{width},.{digits}f}"
