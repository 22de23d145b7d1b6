"""Schemas: one continuation after several contexts, partial scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_models import long_way, random_decoder

from gristmill.evaluate.benchmarks.config import Schema
from gristmill.evaluate.benchmarks.items import Item
from gristmill.evaluate.benchmarks.judging import judge_choices
from gristmill.evaluate.benchmarks.likelihood import Likelihood, log_likelihoods
from gristmill.evaluate.benchmarks.prompts import pairs
from gristmill.evaluate.benchmarks.rows import make_rows
from gristmill.evaluate.benchmarks.sequences import encode_pairs
from gristmill.tokenizer.tokenizer import Tokenizer

BENCHMARK = Schema(name="s", file="s")
ITEM = Item(
    ("The miller ground the corn and the miller", "The miller ground the corn and the wheel"),
    ("turned.",),
    1,
    "turned.",
)


def test_only_the_continuation_is_scored_after_each_context(small_run: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(small_run["base"])
    model = random_decoder()
    group = encode_pairs(tokenizer, pairs(BENCHMARK, ITEM, [], chat=False), 64)
    for scored, context in zip(group, ITEM.contexts, strict=True):
        assert tokenizer.decode(scored.ids[scored.start :], continues=True) == " turned."
        assert tokenizer.decode(scored.ids[: scored.start]) == context
    (row,) = make_rows([group], share=True)
    assert row.shared > len(tokenizer.encode("The miller ground the corn"))
    (found,) = log_likelihoods(model, [group])
    for scored, likelihood in zip(group, found, strict=True):
        assert likelihood.log_likelihood == pytest.approx(long_way(model, scored.ids, scored.start)[0], abs=1e-4)


def test_the_context_that_makes_the_continuation_likelier_counts() -> None:
    likelihoods = [[Likelihood(-9.0, False, 2), Likelihood(-8.0, False, 2)], [Likelihood(-3.0, False, 2)] * 2]
    judged = judge_choices(BENCHMARK, [ITEM, ITEM], likelihoods, 0.95)
    assert [record["taken"] for record in judged.records] == [{"raw": 1}, {"raw": 0}]
    assert list(judged.figures) == ["accuracy"]
    assert judged.figures["accuracy"].value == 0.5
    assert judged.chance == 0.5


def test_examples_show_the_right_context() -> None:
    first, _ = pairs(BENCHMARK, ITEM, [ITEM], chat=False)
    assert first.context == f"{ITEM.contexts[1]} turned.\n\n{ITEM.contexts[0]} "
