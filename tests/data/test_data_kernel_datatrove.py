"""The rules that datatrove has too, against what datatrove 0.10.1 measures and decides (on words between blanks).

`benchmarks/datatrove_vectors.py` made the vectors.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from document_tables import first_reasons
from gristmill.data import kernel
from gristmill.data.clean.lines import drop_lines
from gristmill.data.clean.text import clean
from gristmill.data.config import C4Rules, DomainRules, FineWebRules, QualityRules, RepetitionRules, RuleSet
from gristmill.data.rules import rules_for

VECTORS = Path(__file__).parent / "vectors" / "datatrove.jsonl.gz"
REASONS = {
    "gopher_short_doc": "gopher_quality:min_words",
    "gopher_long_doc": "gopher_quality:max_words",
    "gopher_below_avg_threshold": "gopher_quality:min_mean_word_length",
    "gopher_above_avg_threshold": "gopher_quality:max_mean_word_length",
    "gopher_too_many_hashes": "gopher_quality:max_symbol_ratio",
    "gopher_too_many_ellipsis": "gopher_quality:max_symbol_ratio",
    "gopher_too_many_bullets": "gopher_quality:max_bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher_quality:max_ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher_quality:min_alphabetic_words",
    "gopher_enough_stop_words": "gopher_quality:min_stop_words",
    "line_punct_ratio": "fineweb:min_terminal_punctuation",
    "short_line_ratio": "fineweb:max_short_lines",
    "char_dup_ratio": "fineweb:max_char_duplicates",
    "list_ratio": "fineweb:max_newlines_per_word",
    "too_few_sentences": "c4:min_sentences",
    "lorem_ipsum": "c4:forbidden_phrases",
    "curly_bracket": "c4:curly_bracket",
}


@pytest.fixture(scope="module")
def vectors() -> list[dict[str, Any]]:
    with gzip.open(VECTORS) as file:
        return [json.loads(line) for line in file]


def measured(texts: list[str], rules: DomainRules) -> pa.RecordBatch:
    same = {"domain": "all", "language": "en", "flags": ""}
    columns = {"text": texts, **{name: [value] * len(texts) for name, value in same.items()}}
    return kernel.measure_step(rules, None).apply(pa.RecordBatch.from_pydict(columns))


def reasons(texts: list[str], **sets: Any) -> list[str | None]:
    rules = DomainRules(other=RuleSet(**({"quality": None, "repetition": None} | sets)))
    return first_reasons(measured(texts, rules), rules_for(rules))


def test_the_vectors_are_clean_texts_of_every_kind(vectors: list[dict[str, Any]]) -> None:
    assert len(vectors) >= 150
    assert {row["kind"] for row in vectors} == {"reference", "code", "book", "crafted"}
    assert all(clean(row["text"]) == row["text"] for row in vectors)


def test_statistics_are_equal(vectors: list[dict[str, Any]]) -> None:
    batch = measured([row["text"] for row in vectors], DomainRules())
    for row, ours in zip(vectors, batch.to_pylist(), strict=True):
        ours["symbol_ratio"] = max(ours["hash_ratio"], ours["ellipsis_ratio"])
        expected = row["statistics"]
        # datatrove's mean over no plain word at all is no number, which no threshold drops.
        names = [name for name in expected if name != "mean_word_length" or ours["plain_words"]]
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: np.float32(expected[name]) for name in names}, rel=3e-7, abs=1e-9
        ), row["text"]


@pytest.mark.parametrize(
    ("filter_name", "sets"),
    [
        ("gopher_quality", {"quality": QualityRules()}),
        ("fineweb", {"fineweb": FineWebRules(max_char_duplicates=0.01)}),
    ],
)
def test_decisions_and_reasons_are_equal(vectors: list[dict[str, Any]], filter_name: str, sets: dict[str, Any]) -> None:
    found = reasons([row["text"] for row in vectors], **sets)
    assert found == [None if row[filter_name] is None else REASONS[row[filter_name]] for row in vectors]
    assert len(set(found)) >= 5


def test_repetition_decisions_are_equal(vectors: list[dict[str, Any]]) -> None:
    """datatrove asks for paragraphs before lines, so that only the decisions are equal."""
    found = reasons([row["text"] for row in vectors], repetition=RepetitionRules())
    assert [reason is None for reason in found] == [row["gopher_repetition"] is None for row in vectors]
    assert len(set(found)) >= 8


@pytest.mark.parametrize(("name", "terminal"), [("c4", False), ("c4_terminal", True)])
def test_c4_is_equal(vectors: list[dict[str, Any]], name: str, terminal: bool) -> None:
    """Lines taken out, sentences and pages dropped. (datatrove takes blank lines and indentation out as well.)"""
    rules = C4Rules(terminal_punctuation=terminal)
    texts = [drop_lines(row["text"], rules) for row in vectors]
    found = reasons(texts, c4=rules)
    assert [reason is None for reason in found] == [row[name] is None for row in vectors]
    for text, reason, row in zip(texts, found, vectors, strict=True):
        if reason is None:
            lines = [line.strip() for line in text.split("\n") if line]
            assert lines == [line.strip() for line in row[f"{name}_text"].split("\n") if line.strip()]
    assert len(set(found)) == 4


def test_known_differences() -> None:
    """datatrove joins the words of an n-gram that it looks for again without a blank: `a bc` is `ab c` to it. And it
    takes a full-width digit one for a symbol."""
    row = measured(["x a bc d e f y ab c d e f", "１"], DomainRules()).to_pylist()
    assert row[0]["duplicate_5gram"] == 0
    assert row[1]["plain_words"] == 1
