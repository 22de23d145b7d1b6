"""The third phase: every part of the corpus is written by itself, from its annotated files and the decisions.

A part is a fixed run of row groups of the input, so which rows stand in which file depends on nothing else. Each makes
up to three files of the same number: `documents/` and `removed/`, where there are rows for them, and `signatures/`,
which says of every document, in the input's order, whether it was kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.artifact import write_text

from ..config import CorpusConfig
from ..dedup.against import signature_schema
from ..pool import Result, Task
from ..report import count, merge
from ..schema import TableWriter, corpus_schema, removed_schema
from .decide import TABLES, Verdict, decision_columns
from .judge import rules_of
from .work import Annotated, Place, Work


def write_all(work: Work, annotated: Annotated, verdict: Verdict) -> dict[str, Any]:
    """Write every part that no earlier, killed run has put in place, and merge the counts of all for the report."""
    markers = [work.path("written", f"{part.number:05d}.json") for part in annotated.parts]
    done = [number for number, marker in enumerate(markers) if marker.exists()]
    _remove_others(work.run.out, {number: verdict.tables[number] for number in done})

    def task(number: int) -> Task:
        part = annotated.parts[number]
        return work.task(
            files=annotated.paths(part),
            number=number,
            start=annotated.rows(part).start,
            tables=verdict.tables[number],
            input=part.input,
            done=markers[number],
            decided=verdict.path,
            reasons=verdict.reasons,
            clusters=verdict.clusters,
            cuts=verdict.cuts,
            out=work.run.out,
        )

    missing = [number for number, marker in enumerate(markers) if not marker.exists()]
    for finished, _ in enumerate(work.each("write:write_part", missing, task), len(done) + 1):
        work.run.log.progress(finished, len(markers), "parts written")
    return merge(json.loads(marker.read_text()) for marker in markers)


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _remove_others(out: Path, parts: dict[int, list[str]]) -> None:
    """Leave nothing in the tables but what belongs to the given parts."""
    known = {out / table / part_name(number) for number, tables in parts.items() for table in tables}
    for table in TABLES:
        (out / table).mkdir(exist_ok=True)
        for path in sorted((out / table).iterdir()):
            if path not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_part(task: Task) -> Result:
    """Write one part and put its counts for the report into the marker `done`.

    The task gives `files` (annotated), `number`, `start` (number of its first document), `tables` (those to write),
    `decided`, `reasons`, `input` (counts of what was read, kept with the signatures), `clusters` (ids of documents
    whose clusters are shown), `config`, `cuts`, `out`, `done`, and its place."""
    decided = np.load(task["decided"], mmap_mode="r")
    reasons = pa.array(task["reasons"], pa.string())
    rules = rules_of(task["config"], task["cuts"])
    annotated = pq.read_schema(task["files"][0]).remove_metadata()
    signatures = signature_schema(CorpusConfig.model_validate_json(task["config"]).near_duplicates)
    schemas = (corpus_schema(annotated), removed_schema(annotated), signatures)
    parts: list[dict[str, Any]] = []
    place, out, row = Place.of(task), Path(task["out"]), task["start"]
    with ExitStack() as stack:
        writers = {
            table: stack.enter_context(
                TableWriter(stack.enter_context(place.writing(out / table / part_name(task["number"]))), schema)
            )
            for table, schema in zip(TABLES, schemas, strict=True)
            if table in task["tables"]
        }
        writers["signatures"].note({"input": json.dumps(task["input"], sort_keys=True)})
        for batch in _batches(task["files"]):
            batch = _decided(batch, decided[row : row + batch.num_rows], reasons)
            row += batch.num_rows
            parts.append(count(batch, rules, clusters=task["clusters"]))
            for table, writer in writers.items():
                writer.add(_of_table(batch, table))
    pa.default_memory_pool().release_unused()
    write_text(Path(task["done"]), json.dumps(merge([{"read": task["input"]["read"]}, *parts])))
    return {}


def _batches(files: list[str]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pq.ParquetFile(file) as annotated:
            for group in range(annotated.num_row_groups):
                yield from annotated.read_row_group(group, use_threads=False).to_batches()


def _decided(batch: pa.RecordBatch, decided: NDArray[Any], reasons: pa.Array) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return pa.RecordBatch.from_pydict(columns | decision_columns(decided, reasons))


def _of_table(batch: pa.RecordBatch, table: str) -> pa.RecordBatch:
    if table == "signatures":
        return batch
    return batch.filter(batch["kept"] if table == "documents" else pa.compute.invert(batch["kept"]))
