"""The files that a configuration names: models, evaluation sets, lists of words, other corpora."""

from __future__ import annotations

import os.path
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gristmill.artifact import MANIFEST, read_manifest

from ..config import CorpusConfig
from ..dedup.against import OtherCorpora
from ..dedup.evaluations import find_sets
from ..mixture import read_weights

PATHS = (
    "classifier.bad_files",
    "classifier.good_files",
    "classifier.model",
    "contamination.sets",
    "mixture.weights",
    "names.model",
    "near_duplicates.against",
    "perplexity.model",
    "rules.*.c4.bad_words",
    "toxicity.model",
)


def identity(config: CorpusConfig) -> dict[str, Any]:
    """What the corpus depends on beside its configuration and its parents. Part of the stage's fingerprint."""
    config = expand_paths(config)
    near = config.near_duplicates
    weights = config.mixture.weights
    return {
        "annotating": annotating_files(config),
        "against": [_corpus(Path(name)) for name in (near.against if near is not None else ())],
        "weights": _stamps([weights]) if isinstance(weights, str) else None,
    }


def expand_paths(config: CorpusConfig) -> CorpusConfig:
    """The configuration with the home directory in the place of `~` in all its paths. What is written down of a
    configuration is the other one, which is the same on every machine."""
    return CorpusConfig.model_validate(_expanded("", config.model_dump(mode="json")))


def _expanded(name: str, value: Any) -> Any:
    """A setting of this dotted name, or what is below it."""
    if isinstance(value, dict):
        return {key: _expanded(f"{name}.{key}" if name else key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(name, inner) for inner in value]
    named = isinstance(value, str) and any(fnmatchcase(name, pattern) for pattern in PATHS)
    return os.path.expanduser(value) if named else value


def check_files(config: CorpusConfig) -> None:
    """Look at the files that are needed only when everything is annotated. GristmillError names one that is missing or
    of no use."""
    if config.near_duplicates is not None:
        OtherCorpora.open(config.near_duplicates)
    if isinstance(config.mixture.weights, str):
        read_weights(config.mixture.weights)


def annotating_files(config: CorpusConfig) -> list[list[Any]]:
    """Name, size and time of change of every file that the steps, or the training of their models, read."""
    named: list[str | None] = []
    for section in (config.perplexity, config.classifier, config.toxicity):
        named.append(section.model if section is not None else None)
    if config.classifier is not None:
        named += [*config.classifier.good_files, *config.classifier.bad_files]
    if config.names is not None:
        named.append(config.names.model)
    for rules in config.rules.sets().values():
        named.append(rules.c4.bad_words if rules.c4 is not None else None)
    if config.contamination is not None:
        named += [str(path) for path in find_sets(config.contamination.sets).values()]
    return _stamps(named)


def _stamps(names: list[str | None]) -> list[list[Any]]:
    """Of every file that is named, or stands below a directory that is."""
    found = []
    for path in (Path(name) for name in names if name is not None):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    return found


def _corpus(directory: Path) -> str | None:
    return read_manifest(directory).hash if (directory / MANIFEST).exists() else None
