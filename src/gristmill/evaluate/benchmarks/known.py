"""Benchmarks that are known by their file's name, and what a file's fields say of one that is not.

The formats are the published ones: for ARC, OpenBookQA, LAMBADA and Winogrande the prompts of EleutherAI's harness
(and of lighteval, with which SmolLM2's card was measured), so that figures can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import GristmillError
from .config import Benchmark, Generation, LastWord, MultipleChoice, Schema

SUFFIXES = (".jsonl", ".jsonl.gz")

# fmt: off
KNOWN: dict[str, dict[str, Any]] = {
    # their queries begin with "Question: " already
    "arc_easy": {"kind": "multiple_choice", "delimiter": "\nAnswer: ", "average": "arc"},
    "arc_challenge": {"kind": "multiple_choice", "delimiter": "\nAnswer: ", "average": "arc"},
    # choices are the letters, asked for after "Answer:"
    "commonsense_qa": {"kind": "multiple_choice", "metric": "raw"},
    "enterprise_pii_classification": {"kind": "multiple_choice", "metric": "raw"},
    "copa": {"kind": "multiple_choice", "metric": "raw"},
    "winogrande": {"kind": "schema"},
    "lambada_openai": {"kind": "last_word"},
    # the answer brings its own space
    "simple_arithmetic_withspaces": {
        "kind": "generation", "answer_field": "continuation", "delimiter": "", "example_delimiter": "\n",
        "extract": "number", "max_tokens": 16, "stop": ("\n",),
    },
    "svamp": {
        "kind": "generation", "prefix": "Question: ", "delimiter": "\nAnswer: ", "extract": "last_number",
        "max_tokens": 32, "stop": ("\n", "Question:"),
    },
    "gsm8k_test": {
        "kind": "generation", "question_field": "question", "prefix": "Question: ", "delimiter": "\nAnswer: ",
        "extract": "marked", "max_tokens": 256, "stop": ("Question:",),
    },
}
# fmt: on


def stem(path: Path) -> str:
    """A data file's name without `.jsonl` or `.jsonl.gz`; GristmillError where it is neither."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    raise GristmillError(f"{path} is no benchmark: give JSON lines ({' or '.join(SUFFIXES)}) or a YAML description")


def describe(path: Path, first: Mapping[str, Any]) -> Benchmark:
    """The description of a data file: by its name where it is known, else by the fields of its first item."""
    name = stem(path)
    where: dict[str, Any] = {"name": name, "file": str(path)}
    fields = {**KNOWN.get(name, {})}
    match fields.pop("kind", None) or _kind_of(path, first):
        case "multiple_choice":
            return MultipleChoice(**where, **fields)
        case "schema":
            return Schema(**where, **fields)
        case "last_word":
            return LastWord(**where, **fields)
        case _:
            return Generation(**where, **fields)


def _kind_of(path: Path, item: Mapping[str, Any]) -> str:
    if {"query", "choices", "gold"} <= item.keys():
        return "multiple_choice"
    if {"context_options", "continuation", "gold"} <= item.keys():
        return "schema"
    if {"context", "continuation"} <= item.keys():
        return "last_word"
    if {"context", "answer"} <= item.keys():
        return "generation"
    raise GristmillError(
        f"{path}: its items have the fields {', '.join(sorted(item))}, and no kind of benchmark has these; multiple "
        "choice has query, choices and gold, a schema context_options, continuation and gold, a last word context and "
        "continuation, generation context and answer. Other names need a YAML description"
    )
