"""The items of a benchmark: read from JSON lines, checked, in one form for all kinds."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import GristmillError
from .config import Benchmark, Generation

FEWEST_ITEMS = 2  # a standard error needs two


@dataclass(frozen=True)
class Item:
    """One question. Multiple choice has one context and several answers, a schema several contexts and one answer,
    the others one of each; `gold` is the place of the right one among several. `shown` is the answer of an example."""

    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int
    shown: str

    @property
    def question(self) -> str:
        """The context that goes with the right answer."""
        return self.contexts[self.gold] if len(self.contexts) > 1 else self.contexts[0]


def read_items(path: Path, benchmark: Benchmark) -> list[Item]:
    """All items of a file; GristmillError names the file and line whose fields do not fit the kind of benchmark."""
    items = [_item(line, where, benchmark) for where, line in read_lines(path)]
    if len(items) < FEWEST_ITEMS:
        raise GristmillError(f"{path} holds {len(items)} items; a benchmark needs {FEWEST_ITEMS} at least")
    return items


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, plain or gzipped, each with where it stands. Empty lines are passed over."""
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _object(line, f"{path}, line {number}")
    except FileNotFoundError:
        raise GristmillError(f"there is no benchmark {path}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} cannot be read: {error}") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise GristmillError(f"{where} is no JSON object")
    return value


def _item(line: dict[str, Any], where: str, benchmark: Benchmark) -> Item:
    match benchmark.kind:
        case "multiple_choice":
            choices = _texts(line, "choices", where)
            gold = _gold(line, len(choices), where)
            return Item((_text(line, "query", where),), choices, gold, choices[gold])
        case "schema":
            contexts = _texts(line, "context_options", where)
            answer = _text(line, "continuation", where)
            return Item(contexts, (answer,), _gold(line, len(contexts), where), answer)
        case "last_word":
            answer = _text(line, "continuation", where)
            return Item((_text(line, "context", where),), (answer,), 0, answer)
    assert isinstance(benchmark, Generation)
    question = _text(line, benchmark.question_field, where)
    shown = _text(line, benchmark.example_field or benchmark.answer_field, where)
    return Item((question,), (_text(line, benchmark.answer_field, where),), 0, shown)


def _text(line: dict[str, Any], field: str, where: str) -> str:
    value = line.get(field)
    if not isinstance(value, str) or not value.strip():
        raise GristmillError(f"{where}: {field} must be a text that is not empty, not {value!r}")
    return value


def _texts(line: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = line.get(field)
    if not isinstance(value, list) or len(value) < 2:
        raise GristmillError(f"{where}: {field} must be a list of two texts or more, not {value!r}")
    return tuple(_text({field: text}, field, where) for text in value)


def _gold(line: dict[str, Any], count: int, where: str) -> int:
    value = line.get("gold")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise GristmillError(f"{where}: gold must be a whole number from 0 to {count - 1}, not {value!r}")
    return value
