"""Stage `corpus`: what was collected, cleaned, without duplicates and junk, redacted, split and weighed.

Three passes. First each row group is prepared by itself, in parallel (`prepare.py`). Then the whole is looked at once,
with only digests and signatures in memory: exact duplicates, near-duplicates, the split. Last the rows are written in
the order in which they were collected, to `documents/` or, with the reason, to `removed/`.

A document's reason is the first of: exact duplicate, rules, personal data, near-duplicate.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill import hardware
from gristmill.artifact import Figures, StageRun, write_json
from gristmill.errors import GristmillError

from .config import CorpusConfig, NearDuplicateConfig
from .minhash import Matches, band_hashes, find_duplicates, shares_a_band, shingles
from .mixture import choose_validation, mixture
from .pool import map_tasks
from .privacy import KINDS
from .report import make_report
from .schema import CORPUS, REMOVED, DocumentWriter, row_groups, work_of
from .textbatch import U64, TextBatch

EXACT, NEAR = "exact_duplicate", "near_duplicate"


@dataclass
class Ledger:
    """All that is known of every document but its text, as columns in file order."""

    prepared: list[Path]
    columns: dict[str, list[Any]]
    read: dict[str, list[int]]  # domain -> [documents, bytes] as collected
    duplicate_of: list[str | None] = field(default_factory=list)
    validation: list[bool] = field(default_factory=list)
    matches: Matches = field(default_factory=lambda: Matches([], 0, 0))

    def __len__(self) -> int:
        return len(self.columns["id"])

    @property
    def kept(self) -> list[int]:
        """The numbers of the documents that stay."""
        return [i for i, reason in enumerate(self.columns["reason"]) if reason is None]

    def remove(self, document: int, reason: str, duplicate_of: int | None = None) -> None:
        self.columns["reason"][document] = reason
        self.duplicate_of[document] = None if duplicate_of is None else self.columns["id"][duplicate_of]


def process(config: CorpusConfig, run: StageRun, workers: int | None = None) -> Figures:
    """Make the corpus. `workers` (None: one per core) changes how long it takes and nothing else."""
    clock = _Clock()
    prepared = _prepare(config, run, workers or hardware.available_cores())
    clock.lap("prepare")
    before = time.process_time()
    ledger, cpu_seconds = _open_ledger(prepared)
    _remove_exact_duplicates(ledger)
    if config.near_duplicates is not None:
        _remove_near_duplicates(ledger, config.near_duplicates, run)
    clock.lap("deduplicate")
    _split(ledger, config)
    sizes = _train_bytes(ledger)
    weights = mixture(sizes, config.mixture.weights, config.mixture.temperature)
    _write(ledger, run)
    report = make_report(ledger.columns, ledger.read, ledger.validation, ledger.matches, weights, config)
    write_json(run.out / "report.json", report)
    clock.lap("write")
    return _figures(ledger, clock, cpu_seconds + time.process_time() - before)


def _prepare(config: CorpusConfig, run: StageRun, workers: int) -> list[Path]:
    """Prepare every row group of the input; what an earlier, cut run has finished is taken as it is."""
    directory = run.scratch / "prepared"
    directory.mkdir(exist_ok=True)
    plain = config.model_dump(mode="json")
    groups = list(row_groups(run.inputs["collected"] / "documents"))
    outputs = [directory / f"{number:06d}.parquet" for number in range(len(groups))]
    total = sum(rows for _, _, rows in groups)
    tasks = [
        {"file": str(file), "group": group, "out": str(out), "config": plain}
        for (file, group, _), out in zip(groups, outputs, strict=True)
        if not out.exists()
    ]
    done = total - sum(rows for (_, _, rows), out in zip(groups, outputs, strict=True) if not out.exists())
    for result in map_tasks("gristmill.data.prepare:prepare", tasks, workers):
        done += result["documents"]
        run.log.progress(done, total, "documents prepared")
    return outputs


def _open_ledger(prepared: list[Path]) -> tuple[Ledger, float]:
    """What was prepared, and the processor seconds that it took."""
    names = ("id", "domain", "source", "origin", "bytes", "digest", "reason", "signature", *KINDS)
    ledger = Ledger(prepared, {name: [] for name in names}, {})
    cpu_seconds = 0.0
    for path in prepared:
        table = pq.read_table(path, columns=list(names))
        for name in names:
            ledger.columns[name] += table[name].to_pylist()
        notes = table.schema.metadata
        cpu_seconds += float(json.loads(notes[b"cpu_seconds"]))
        for domain, (documents, size) in json.loads(notes[b"read"]).items():
            known = ledger.read.setdefault(domain, [0, 0])
            known[0] += documents
            known[1] += size
    ledger.duplicate_of = [None] * len(ledger)
    return ledger, cpu_seconds


def _remove_exact_duplicates(ledger: Ledger) -> None:
    """The first of equal texts stays."""
    first: dict[bytes, int] = {}
    for i, digest in enumerate(ledger.columns["digest"]):
        original = first.setdefault(digest, i)
        if original != i:
            ledger.remove(i, EXACT, original)


def _remove_near_duplicates(ledger: Ledger, config: NearDuplicateConfig, run: StageRun) -> None:
    """Of similar documents the longest stays, of those the first."""
    signatures = ledger.columns["signature"]
    signed = [i for i in ledger.kept if signatures[i] is not None]
    if not signed:
        return
    matrix = np.frombuffer(b"".join(signatures[i] for i in signed), np.uint32).reshape(len(signed), -1)
    bands = band_hashes(matrix, config.bands)
    candidates = np.flatnonzero(shares_a_band(bands))
    sets = dict(_shingle_sets(ledger, [signed[i] for i in candidates], config.ngram))
    sizes = np.array([ledger.columns["bytes"][i] for i in signed])
    order = candidates[np.lexsort((candidates, -sizes[candidates]))]
    ledger.matches = find_duplicates(
        bands,
        order,
        config.threshold,
        lambda document: sets[signed[document]],
        lambda done, total: run.log.progress(done, total, "candidates compared"),
    )
    for duplicate in ledger.matches.duplicates:
        ledger.remove(signed[duplicate.removed], NEAR, signed[duplicate.kept])


def _shingle_sets(ledger: Ledger, documents: list[int], n: int) -> Iterator[tuple[int, U64]]:
    """(document, its set of n-grams) for the given ascending documents, read from what was prepared."""
    wanted = iter([*documents, -1])
    next_wanted = next(wanted)
    start = 0
    for path in ledger.prepared:
        end = start + pq.read_metadata(path).num_rows
        here: list[int] = []
        while start <= next_wanted < end:
            here.append(next_wanted)
            next_wanted = next(wanted)
        if here:
            texts = pq.read_table(path, columns=["text"])["text"].take(pa.array(i - start for i in here)).to_pylist()
            found = shingles(TextBatch(texts), n)
            yield from ((document, found.of(place)) for place, document in enumerate(here))
        start = end


def _split(ledger: Ledger, config: CorpusConfig) -> None:
    kept = ledger.kept
    if not kept:
        reasons = sorted(set(ledger.columns["reason"]), key=ledger.columns["reason"].count, reverse=True)
        raise GristmillError(f"no document is left in the corpus; most were removed as {reasons[0]}: see corpus.rules")
    columns = {name: [ledger.columns[name][i] for i in kept] for name in ("domain", "source", "origin", "id")}
    works = [f"{s}\0{work_of(o)}" for s, o in zip(columns["source"], columns["origin"], strict=True)]
    chosen = choose_validation(
        columns["domain"], works, columns["id"], config.validation_fraction, config.min_validation_works
    )
    ledger.validation = [False] * len(ledger)
    for i, validation in zip(kept, chosen, strict=True):
        ledger.validation[i] = validation


def _train_bytes(ledger: Ledger) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for i in ledger.kept:
        if not ledger.validation[i]:
            domain = ledger.columns["domain"][i]
            sizes[domain] = sizes.get(domain, 0) + ledger.columns["bytes"][i]
    return sizes


def _write(ledger: Ledger, run: StageRun) -> None:
    reasons = ledger.columns["reason"]
    number = 0
    with (
        DocumentWriter(run.out / "documents", CORPUS) as documents,
        DocumentWriter(run.out / "removed", REMOVED) as removed,
    ):
        for path in ledger.prepared:
            for row in pq.read_table(path).to_pylist():
                size = row["bytes"]
                if reasons[number] is None:
                    documents.add(size, **row, split="validation" if ledger.validation[number] else "train")
                else:
                    removed.add(size, **row | {"reason": reasons[number], "duplicate_of": ledger.duplicate_of[number]})
                number += 1
            run.log.progress(number, len(ledger), "documents written")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _figures(ledger: Ledger, clock: _Clock, cpu_seconds: float) -> Figures:
    reasons: dict[str, int] = {}
    for reason in ledger.columns["reason"]:
        if reason is not None:
            family = reason.partition(":")[0]
            reasons[family] = reasons.get(family, 0) + 1
    kept = ledger.kept
    bytes_in = sum(size for _, size in ledger.read.values())
    return {
        "documents_in": sum(documents for documents, _ in ledger.read.values()),
        "bytes_in": bytes_in,
        "pieces": len(ledger),
        "documents": len(kept),
        "bytes": sum(ledger.columns["bytes"][i] for i in kept),
        "validation_documents": sum(ledger.validation),
        "removed": dict(sorted(reasons.items())),
        "compared_pairs": ledger.matches.compared,
        "near_duplicate_pairs": ledger.matches.similar,
        "personal_data": {kind: sum(ledger.columns[kind]) for kind in KINDS},
        "seconds": clock.seconds,
        "mb_per_cpu_second": round(bytes_in / 1e6 / max(cpu_seconds, 1e-9), 2),
    }
