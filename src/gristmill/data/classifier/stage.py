"""The quality classifier in stage `corpus`, and the work behind `gristmill data train-classifier`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.data.config import ClassifierConfig
from gristmill.data.step import Mask, Rule, Step, set_columns
from gristmill.data.training_text import prepare_out, read_paths
from gristmill.errors import GristmillError

from .evaluation import evaluate
from .examples import LABELS, gather
from .fasttext_file import write_fasttext
from .predict import GOOD, Classifier
from .train import fit

Figures = dict[str, Any]
_FIELD = pa.field("quality_score", pa.float32())


def train_classifier(
    good: Iterable[pa.RecordBatch], bad: Iterable[pa.RecordBatch], config: ClassifierConfig, out: Path
) -> Figures:
    """Train a classifier on batches with `text` and `source` and write it to `out` as fastText's `.bin`, with labels
    `__label__good` and `__label__bad`. The figures hold its AUC on held-out sources (`evaluation.evaluate`); the
    classifier itself is then trained on all examples. The same examples give the same bytes."""
    started = time.process_time()
    examples = gather(good, bad, config.max_examples, config.example_bytes)
    figures = evaluate(examples, config.training) if config.evaluate else {}
    model = fit(examples.texts, examples.labels, LABELS, config.training)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_fasttext(out, model)
    counts = np.bincount(examples.labels, minlength=2).tolist()
    return {
        "examples": {label: counts[number] for number, label in enumerate(LABELS)},
        "bytes": pc.sum(pc.binary_length(examples.texts)).as_py(),
        "vocabulary": len(model.words),
        **figures,
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def train_classifier_files(
    good: Sequence[Path | str], bad: Sequence[Path | str], out: Path, config: ClassifierConfig | None = None
) -> Figures:
    """The work of `gristmill data train-classifier`: train on the files and directories that `read_paths` reads."""
    prepare_out(out)
    figures = train_classifier(read_paths(good), read_paths(bad), config or ClassifierConfig(), out)
    if figures.get("auc", 1) is None:
        figures["note"] = "no AUC, for which each side needs two sources of its own (paths, or a field `source`)"
    return figures


def train_for_stage(
    config: ClassifierConfig, documents: Callable[[Sequence[str]], Iterable[pa.RecordBatch]], out: Path
) -> Figures:
    """Make the classifier that the workers will load, in `out`: a copy of `config.model`, or one trained on the domains
    and files that the configuration names. `documents(domains)` gives batches with `text` and `source` of these
    domains, each time the same. The file appears only when whole. GristmillError when there is nothing to train on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    torn = out.with_name(f".{out.name}.writing")
    figures: Figures = {}
    if config.model is not None:
        Classifier.load(config.model, label=GOOD)
        shutil.copyfile(config.model, torn)
    else:
        for field in ("good", "bad"):
            if not getattr(config, field) and not getattr(config, f"{field}_files"):
                raise GristmillError(
                    f"corpus.classifier: name a model, or domains under {field}, or files under {field}_files"
                )
        good = _examples(documents, config.good, config.good_files)
        bad = _examples(documents, config.bad, config.bad_files)
        figures = train_classifier(good, bad, config, torn)
    os.replace(torn, out)
    return figures


def classifier_step(model: Classifier | Path | str) -> Step:
    """Writes `quality_score`, the probability that a document is good."""
    classifier = model if isinstance(model, Classifier) else Classifier.load(model, label=GOOD)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        return set_columns(batch, {"quality_score": pa.array(classifier.scores(batch.column("text")))}, [_FIELD])

    return Step("classifier", ("text",), (_FIELD,), apply)


def classifier_rules(config: ClassifierConfig) -> list[Rule]:
    """Documents whose score is below `min_score`."""
    if config.min_score == 0:
        return []

    def low(batch: pa.RecordBatch) -> Mask:
        scores = batch.column("quality_score").to_numpy(zero_copy_only=False)
        return np.less(scores, np.float32(config.min_score))

    return [Rule("classifier:min_score", ("quality_score",), low)]


def _examples(
    documents: Callable[[Sequence[str]], Iterable[pa.RecordBatch]], domains: tuple[str, ...], files: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    if domains:
        for batch in documents(domains):
            yield batch.select(["text", "source"])
    yield from read_paths(files)
