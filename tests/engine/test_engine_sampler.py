"""The sampler against transformers' filters and against counting draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gristmill.engine import sampler
from gristmill.engine.sampler import sample
from gristmill.engine.sampling import SamplingParams


def drawn_distribution(logits, params, draws=20_000):
    """How often each token comes when the numbers go evenly through [0, 1)."""
    uniforms = [(i + 0.5) / draws for i in range(draws)]
    tokens = sample(logits.expand(draws, -1), [params] * draws, uniforms).token_ids
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]) / draws


def warped(logits, params):
    """transformers' distribution for the same parameters."""
    scores = logits[None] / params.temperature
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=1),
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=1e-6),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.8),
        SamplingParams(top_k=10_000),
    ],
)
@pytest.mark.parametrize("candidates", [256, 8], ids=["few tokens", "beyond the candidates"])
def test_distribution_is_that_of_transformers(monkeypatch, params, candidates):
    monkeypatch.setattr(sampler, "CANDIDATES", candidates)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(4)) * 2
    assert (drawn_distribution(logits, params) - warped(logits, params)).abs().max() < 2e-4


def test_candidates_cover_or_not_row_by_row(monkeypatch):
    """Rows that need the full sort and rows that do not, in one batch, each as if alone."""
    monkeypatch.setattr(sampler, "CANDIDATES", 8)
    logits = torch.randn(6, 60, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[0.1], [9], [1], [1], [1], [3]]
    )
    params = [
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=3),
        SamplingParams(top_k=30, top_p=0.5),
        SamplingParams(temperature=0),
        SamplingParams(),
    ]
    for uniform in torch.linspace(0, 0.999, 40).tolist():
        together = sample(logits, params, [uniform] * 6).token_ids
        alone = [sample(logits[i : i + 1], params[i : i + 1], [uniform]).token_ids[0] for i in range(6)]
        assert together == alone


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=12),
    st.floats(0, 5),
    st.floats(0.01, 1),
    st.integers(0, 14),
    st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1, exclude_max=True)),
)
def test_a_drawn_token_has_a_probability(logits, temperature, top_p, top_k, uniform):
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
    token = sample(torch.tensor([logits]), [params], [uniform]).token_ids[0]
    order = sorted(logits, reverse=True)
    assert logits[token] >= order[min(top_k or len(order), len(order)) - 1]
    if temperature == 0:
        assert logits[token] == order[0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-9])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.9]])
    for params in (SamplingParams(temperature=temperature), SamplingParams(temperature=temperature, top_p=0.9)):
        assert sample(logits, [params], [0.999]).token_ids == [1]


def test_impossible_tokens_are_never_drawn():
    """Probability 0 at both ends of the vocabulary, and the largest number below 1."""
    logits = torch.full((2, 40), float("-inf"))
    logits[:, 17] = 0.0
    logits[:, 21] = 1.0
    for uniform in (0.0, 0.5, 1 - 2**-53):
        tokens = sample(logits, [SamplingParams(), SamplingParams(top_p=0.99)], [uniform] * 2).token_ids
        assert set(tokens) <= {17, 21}


def test_not_finite_rows_are_told_apart():
    logits = torch.zeros(4, 9)
    logits[1, 3] = float("nan")
    logits[2] = float("-inf")
    logits[3, 2] = float("inf")
    assert sample(logits, [SamplingParams()] * 4, [0.5] * 4).finite == [True, False, False, False]


def test_logprobs_only_of_rows_that_asked():
    logits = torch.randn(3, 30)
    params = [
        SamplingParams(),
        SamplingParams(logprobs=True),
        SamplingParams(logprobs=True, top_logprobs=5, temperature=0),
    ]
    found = sample(logits, params, [0.1, 0.2, 0.3])
    expected = logits.log_softmax(-1)
    assert set(found.logprobs) == {1, 2}
    assert found.logprobs[1] == (expected[1, found.token_ids[1]].item(), [])
    value, top = found.logprobs[2]
    assert value == top[0][1] == expected[2].max().item()
    assert [i for i, _ in top] == expected[2].topk(5).indices.tolist()
