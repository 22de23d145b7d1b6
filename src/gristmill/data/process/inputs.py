"""The files that a configuration names: models, evaluation sets, lists of words, other corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.artifact import MANIFEST, read_manifest

from ..config import CorpusConfig
from ..dedup.evaluations import find_sets

DOMAINS = ("books", "web", "docs", "code", "other")


def identity(config: CorpusConfig) -> dict[str, Any]:
    """What the corpus depends on beside its configuration and its parents. Part of the stage's fingerprint."""
    near = config.near_duplicates
    weights = config.mixture.weights
    return {
        "annotating": annotating_files(config),
        "against": [_corpus(Path(name)) for name in (near.against if near is not None else ())],
        "weights": _stamps([weights]) if isinstance(weights, str) else None,
    }


def annotating_files(config: CorpusConfig) -> list[list[Any]]:
    """Name, size and time of change of every file that the steps, or the training of their models, read."""
    named: list[str | None] = []
    for section in (config.perplexity, config.classifier, config.toxicity):
        named.append(section.model if section is not None else None)
    if config.classifier is not None:
        named += [*config.classifier.good_files, *config.classifier.bad_files]
    if config.names is not None:
        named.append(config.names.model)
    for domain in DOMAINS:
        c4 = config.rules.of(domain).c4
        named.append(c4.bad_words if c4 is not None else None)
    if config.contamination is not None:
        named += [str(path) for path in find_sets(config.contamination.sets).values()]
    return _stamps(named)


def _stamps(names: list[str | None]) -> list[list[Any]]:
    """Of every file that is named, or stands below a directory that is."""
    found = []
    for path in (Path(name).expanduser() for name in names if name is not None):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    return found


def _corpus(directory: Path) -> str | None:
    return read_manifest(directory).hash if (directory / MANIFEST).exists() else None
