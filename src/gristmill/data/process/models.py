"""Models that score documents: made before anything is annotated, and kept with the corpus as `models/`.

A model is trained on documents of some domains, cleaned and redacted as all are, or read from the file that
the configuration names and kept in a form that workers load at once. It is made by one task, so that the process that
hands out the work stays small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gristmill.artifact import read_manifest, write_text

from ..config import CorpusConfig
from ..pool import Result, Task
from ..schema import read_columns
from .chain import CLASSIFIER_MODEL, PERPLEXITY_MODEL, text_steps, text_to_keep
from .rows import Counts, Group, read_rows
from .work import Annotated, Work

MODELS = "models"


def make_models(work: Work, groups: Sequence[Group]) -> None:
    """Make the models that the configuration asks for; one that is there already is kept."""
    wanted = {PERPLEXITY_MODEL: work.config.perplexity, CLASSIFIER_MODEL: work.config.classifier}
    for name, config in wanted.items():
        figures = work.path(f"{name}.json")  # written last
        if config is not None and not figures.exists():
            work.run.log.note(f"making {MODELS}/{name}")
            task = work.task(name=name, out=work.path(MODELS, name), figures=figures, groups=list(groups))
            list(work.mapper("gristmill.data.process.models:make", [task]))


def make(task: Task) -> Result:
    """Make one model. The task gives `name`, `out`, `figures` (where its figures go), `groups` and `config`."""
    config = CorpusConfig.model_validate_json(task["config"])
    # What is redacted in the corpus must not stand in a model's list of words either.
    steps = [*text_steps(config), *text_to_keep(config)]

    def documents(domains: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = pa.array(domains, pa.string())
        for group in task["groups"]:
            for batch in read_rows(Group(*group), Counts()):
                batch = batch.filter(pc.is_in(batch["domain"], value_set=wanted))
                for step in steps if batch.num_rows else ():
                    batch = step.apply(batch)
                yield batch

    out = Path(task["out"])
    if task["name"] == PERPLEXITY_MODEL:
        from ..ngram import train_reference

        assert config.perplexity is not None
        figures = train_reference(config.perplexity, documents, out)
    else:
        from ..classifier import train_for_stage

        assert config.classifier is not None
        figures = train_for_stage(config.classifier, documents, out)
    write_text(Path(task["figures"]), json.dumps(figures))
    return {}


def model_figures(work: Work, previous: Path | None) -> dict[str, Any]:
    """model -> the figures of its making."""
    if previous is not None:
        found: dict[str, Any] = read_manifest(previous).figures["models"]
        return found
    paths = {name: work.path(f"{name}.json") for name in (PERPLEXITY_MODEL, CLASSIFIER_MODEL)}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def keep_models(work: Work, previous: Path | None) -> None:
    """Put the models into the artifact; they are those of `previous` where its annotations were taken."""
    source = work.path(MODELS) if previous is None else previous / MODELS
    target = work.run.out / MODELS
    shutil.rmtree(target, ignore_errors=True)
    if source.exists() and any(source.iterdir()):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))


def perplexity_cuts(work: Work, annotated: Annotated) -> str:
    """The perplexities between head, middle and tail of every language, as JSON: of all documents, a float each."""
    if work.config.perplexity is None:
        return "{}"
    from ..ngram import perplexity_cuts as cuts_of

    columns = ["perplexity", "rule_language"]
    found = pa.concat_tables(read_columns(path, columns) for path in annotated.files.paths)
    return json.dumps(cuts_of(found["perplexity"], found["rule_language"], work.config.perplexity.quantiles))
