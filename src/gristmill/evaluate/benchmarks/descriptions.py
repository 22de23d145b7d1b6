"""From what a user names with `--tasks` to descriptions of benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from ...errors import GristmillError
from .config import Benchmark, BenchmarkFile
from .items import read_lines
from .known import SUFFIXES, describe, stem

YAML_SUFFIXES = (".yaml", ".yml")


def find_benchmarks(paths: Sequence[Path]) -> list[Benchmark]:
    """The benchmarks of data files, of directories with such files, and of YAML descriptions, in that order and by
    name inside a directory. Their `file`s are paths from here. GristmillError where a name comes twice."""
    found = [benchmark for path in paths for benchmark in _at(path)]
    for name, count in Counter(benchmark.name for benchmark in found).items():
        if count > 1:
            raise GristmillError(f"{count} benchmarks are named {name!r}; give each a name of its own in a description")
    return found


def _at(path: Path) -> list[Benchmark]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise GristmillError(f"{path} holds no benchmark: no file ends with {' or '.join(SUFFIXES)}")
        return [_of_data(file) for file in files]
    if not path.is_file():
        raise GristmillError(f"there is no benchmark {path}: give a file of items, a directory of such, or a YAML file")
    return _of_yaml(path) if path.suffix in YAML_SUFFIXES else [_of_data(path)]


def _of_data(path: Path) -> Benchmark:
    stem(path)  # before the file is read: what it is must show in its name
    _, first = next(read_lines(path), ("", None))
    if first is None:
        raise GristmillError(f"{path} holds no items")
    return describe(path, first)


def _of_yaml(path: Path) -> list[Benchmark]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise GristmillError(f"{path} is not valid YAML: {error}") from None
    try:
        described = BenchmarkFile.model_validate(data).benchmarks
    except ValidationError as error:
        first = error.errors()[0]
        keys = ".".join(str(part) for part in first["loc"]) or "benchmarks"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise GristmillError(f"{path}: {keys}: {first['msg']}{more}") from None
    return [_beside(benchmark, path.parent) for benchmark in described]


def _beside(benchmark: Benchmark, directory: Path) -> Benchmark:
    """The description with the paths of its files as they are from here."""
    files = {"file": str(directory / benchmark.file)}
    if benchmark.fewshot_file is not None:
        files["fewshot_file"] = str(directory / benchmark.fewshot_file)
    return benchmark.model_copy(update=files)
