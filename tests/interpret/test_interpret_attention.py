"""Recorded attention: it is a causal distribution, and recording it changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from interpret_models import tiny_model

from gristmill.interpret.attention import (
    HeadFacts,
    RecordedAttention,
    attention_patterns,
    head_facts,
    induction,
    strongest,
)

IDS = [0, 7, 9, 30, 7, 9, 31, 12]


def test_rows_are_causal_distributions() -> None:
    patterns = attention_patterns(tiny_model(40), IDS)
    assert patterns.shape == (3, 4, 8, 8)
    assert patterns.min() >= 0
    torch.testing.assert_close(patterns.sum(-1), torch.ones(3, 4, 8))
    assert patterns.triu(1).abs().max() == 0
    assert patterns[..., 1:, :].amax(-1).min() < 0.95  # not merely one-hot: there is something to record


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_recording_reproduces_the_models_output(tie_embeddings: bool) -> None:
    model = tiny_model(40, tie_embeddings)
    ids = torch.tensor([IDS, list(reversed(IDS))])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, attend=RecordedAttention()), model(ids), rtol=1e-4, atol=1e-4)


def test_each_layer_is_recorded_with_all_query_heads() -> None:
    model, attend = tiny_model(40), RecordedAttention()
    with torch.no_grad():
        model(torch.tensor([IDS, IDS]), attend=attend)
    assert {layer: tuple(pattern.shape) for layer, pattern in attend.patterns.items()} == dict.fromkeys(
        range(3), (2, 4, 8, 8)
    )


def facts_of(pattern: torch.Tensor) -> HeadFacts:
    return head_facts(pattern[None, None], torch.eye(9)[None, None], period=4)[0]


def test_facts_of_patterns_that_are_known() -> None:
    time = 6
    first = torch.zeros(time, time)
    first[:, 0] = 1
    previous = torch.diag(torch.ones(time - 1), -1)
    previous[0, 0] = 1
    uniform = torch.ones(time, time).tril() / torch.arange(1, time + 1)[:, None]

    assert facts_of(first).first_token == 1
    assert facts_of(first).mean_distance == pytest.approx(3.0)  # mean of 1..5
    assert facts_of(first).entropy == 0
    assert facts_of(previous).previous_token == 1
    assert facts_of(previous).mean_distance == 1
    assert facts_of(previous).first_token == pytest.approx(1 / 5)
    assert facts_of(torch.eye(time)).own_token == 1
    assert facts_of(uniform).entropy == pytest.approx(sum(math.log2(t) for t in range(2, 7)) / 5)
    assert facts_of(uniform).own_token == pytest.approx(sum(1 / t for t in range(2, 7)) / 5)


def test_induction_finds_the_head_that_looks_after_the_last_occurrence() -> None:
    """<bos> a b c a b c: the second a (4) looks at the first b (2), b at c, and c at the second a."""
    pattern = torch.zeros(7, 7)
    pattern[4, 2] = pattern[5, 3] = pattern[6, 4] = 1
    assert induction(pattern, period=3) == 1
    assert induction(torch.roll(pattern, 1, dims=-1), period=3) == 0
    pattern[5, 3] = 0
    assert induction(pattern, period=3) == pytest.approx(2 / 3)


def test_strongest_names_the_head() -> None:
    patterns = torch.eye(5).repeat(2, 3, 1, 1)
    patterns[1, 2] = torch.diag(torch.ones(4), -1)
    assert strongest(head_facts(patterns, patterns, 2), "previous_token") == {"layer": 1, "head": 2, "value": 1.0}
