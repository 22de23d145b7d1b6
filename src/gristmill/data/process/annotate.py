"""The first phase: every row group of the input goes through the chain of steps, each by itself.

A task is one row group; its result is one Parquet file in scratch with the text and all columns. Nothing is decided
here, so thresholds can change without this being done again. Where repeated lines or paragraphs are to go, two passes
come before: one that notes them, and one that finds which are repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.artifact import write_text

from ..config import CorpusConfig
from ..dedup.repeated import drop_repeated_step, find_repeated, write_units
from ..dedup.tables import DocumentFiles
from ..kernel import warm_up
from ..pool import Result, Task
from ..rules import check_limits
from ..schema import DOCUMENTS, Document, annotated_schema, parquet_writer
from ..step import Step, check_chain
from .chain import model_steps, score_steps, text_steps, text_to_keep
from .models import make_models
from .rows import Counts, Group, Problem, read_rows
from .work import Annotated, Part, Place, Work

CHECK = "gristmill.data.process.annotate:check"
COMPRESSION_LEVEL = 1  # of files that are read a few times and then removed


def annotate_all(work: Work, groups: Sequence[Group]) -> Annotated:
    """Annotate every row group; what an earlier, killed run has finished is taken as it is."""
    outputs = [work.path("annotated", f"{number:07d}.parquet") for number in range(len(groups))]
    missing = [number for number, out in enumerate(outputs) if notes_of(out) is None]
    shared = {"models": work.path("models"), "repeated": work.path("repeated")}
    if missing:
        scored = work.config.perplexity is not None or work.config.classifier is not None
        work.mapper.prepare(CHECK, work.task(**shared | ({"models": None} if scored else {})))
        make_models(work, groups)
        if scored:
            work.mapper.renew()  # what was trained on is let go
            work.mapper.prepare(CHECK, work.task(**shared))
        _find_repeated(work, groups)
    total = sum(group.rows for group in groups)
    done = total - sum(groups[number].rows for number in missing)

    def task(number: int) -> Task:
        return work.task(group=groups[number], number=number, out=outputs[number], **shared)

    for number, _ in work.each("annotate:annotate", missing, task):
        done += groups[number].rows
        work.run.log.progress(done, total, "documents annotated")
    return _annotated(outputs, work.config.part_row_groups)


def load_kernel(task: Task) -> Result:
    """Load what is compiled, or compile it."""
    warm_up()
    return {}


def check(task: Task) -> Result:
    """Build the chain, which workers have then, and check that its steps fit together. The task gives `config`,
    `repeated` and `models`, which is null as long as there are none. GristmillError where a step lacks a model or an
    extra, or a limit is set on what is no column of numbers."""
    schema = _schema(_steps(task, 0))
    config, steps = _text_steps(task["config"])
    check_limits(config.rules, schema, to_come=() if task["models"] is not None else ("perplexity", "quality_score"))
    # What a step loads at its first document, workers that are forked after it have in common.
    document = Document("The mill stands by the river.", "source", "other", "en", "license", "origin")
    batch = pa.RecordBatch.from_pylist([document._asdict() | {"id": document.id}], DOCUMENTS)
    list(_through([*steps, *_by_document(task)], iter([batch]), {}))
    return {}


def note_units(task: Task) -> Result:
    """Note the lines or paragraphs of one row group. The task gives `group`, `out` and `config`."""
    config, steps = _text_steps(task["config"])
    assert config.repeated_units is not None
    batches = _through(steps, read_rows(Group(*task["group"]), Counts()), {})
    write_units(batches, config.repeated_units, Path(task["out"]))
    return {}


def annotate(task: Task) -> Result:
    """Annotate one row group. The task gives `group`, its `number`, `out`, `config`, `models` (the directory of the
    trained ones), `repeated` (that of what to drop) and its place."""
    steps = _steps(task, task["number"])
    schema = _schema(steps)
    counts = Counts()
    seconds: dict[str, float] = {}
    with (
        Place.of(task).writing(Path(task["out"])) as temporary,
        parquet_writer(temporary, schema, COMPRESSION_LEVEL) as writer,
    ):
        for batch in _through(steps, read_rows(Group(*task["group"]), counts), seconds):
            writer.write_batch(batch.select(schema.names).cast(schema))
        writer.add_key_value_metadata({"counts": json.dumps(asdict(counts)), "seconds": json.dumps(seconds)})
    pa.default_memory_pool().release_unused()
    return {}


class Notes(NamedTuple):
    """What is noted of an annotated file: its rows, what was read for it, CPU seconds by step."""

    rows: int
    counts: Counts
    seconds: dict[str, float]


def notes_of(path: Path) -> Notes | None:
    """The notes of an annotated file, or None where it is not there or not whole."""
    try:
        found = pq.read_metadata(path)
        counts, seconds = (json.loads(found.metadata[name]) for name in (b"counts", b"seconds"))
    except (pa.ArrowException, OSError, KeyError):
        return None
    return Notes(found.num_rows, Counts(counts["read"], [Problem(*problem) for problem in counts["problems"]]), seconds)


def _annotated(files: list[Path], part_row_groups: int) -> Annotated:
    parts: list[Part] = []
    rows: list[int] = []
    seconds: dict[str, float] = {}
    for number, file in enumerate(files):
        notes = notes_of(file)
        assert notes is not None, file
        rows.append(notes.rows)
        if number % part_row_groups == 0:
            parts.append(Part(len(parts), number, number, {"read": {}, "problems": []}))
        part = parts[-1] = parts[-1]._replace(last=number + 1)
        part.input["problems"] += notes.counts.problems
        for domain, counts in notes.counts.read.items():
            known = part.input["read"].setdefault(domain, [0, 0])
            part.input["read"][domain] = [a + b for a, b in zip(known, counts, strict=True)]
        for name, spent in notes.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
    return Annotated(DocumentFiles(tuple(files), tuple(rows)), parts, seconds)


def _find_repeated(work: Work, groups: Sequence[Group]) -> None:
    config = work.config.repeated_units
    if config is None or work.path("repeated", "found").exists():
        return
    outputs = [work.path("units", f"{number:07d}.npy") for number in range(len(groups))]
    missing = [number for number, out in enumerate(outputs) if not out.exists()]
    found = work.each("annotate:note_units", missing, lambda n: work.task(group=groups[n], out=outputs[n]))
    for done, _ in enumerate(found, len(groups) - len(missing) + 1):
        work.run.log.progress(done, len(groups), f"row groups searched for repeated {config.unit}s")
    find_repeated(outputs, work.path("repeated"), config)
    write_text(work.path("repeated", "found"), "")


def _through(
    steps: Sequence[Step], batches: Iterator[pa.RecordBatch], seconds: dict[str, float]
) -> Iterator[pa.RecordBatch]:
    """The batches after all steps; CPU seconds are added by step's name."""
    for batch in batches:
        for step in steps:
            started = time.process_time()
            batch = step.apply(batch)
            seconds[step.name] = seconds.get(step.name, 0.0) + time.process_time() - started
        yield batch


def _steps(task: Task, number: int) -> list[Step]:
    """The whole chain for row group `number`."""
    config, steps = _text_steps(task["config"])
    repeated = []
    if config.repeated_units is not None:
        repeated = [drop_repeated_step(Path(task["repeated"]), number, config.repeated_units)]
    return [*steps, *repeated, *_by_document(task)]


def _by_document(task: Task) -> list[Step]:
    """The steps after those that clean the text."""
    models = task["models"]
    return [*_document_steps(task["config"]), *([] if models is None else _model_steps(task["config"], models))]


def _schema(steps: Sequence[Step]) -> pa.Schema:
    return annotated_schema(check_chain(steps, DOCUMENTS))


@lru_cache(maxsize=1)
def _text_steps(config: str) -> tuple[CorpusConfig, list[Step]]:
    checked = CorpusConfig.model_validate_json(config)
    return checked, text_steps(checked)


@lru_cache(maxsize=1)
def _document_steps(config: str) -> list[Step]:
    """Built once in a worker: here evaluation sets and packaged models are loaded."""
    checked = CorpusConfig.model_validate_json(config)
    return [*text_to_keep(checked), *score_steps(checked)]


@lru_cache(maxsize=1)
def _model_steps(config: str, models: str) -> list[Step]:
    return model_steps(CorpusConfig.model_validate_json(config), Path(models))
