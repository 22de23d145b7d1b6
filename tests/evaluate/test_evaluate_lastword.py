"""Last words: greedy or not, and perplexity with its resampled interval."""

from __future__ import annotations

import math
import random

import pytest
import torch
from benchmark_models import random_decoder

from gristmill.evaluate.benchmarks.config import LastWord
from gristmill.evaluate.benchmarks.estimates import Estimate, average, perplexity
from gristmill.evaluate.benchmarks.items import Item
from gristmill.evaluate.benchmarks.judging import judge_last_words
from gristmill.evaluate.benchmarks.likelihood import Likelihood, log_likelihoods
from gristmill.evaluate.benchmarks.sequences import Scored


def test_greedy_means_every_token_is_the_likeliest() -> None:
    model = random_decoder(seed=3)
    ids = [5, 9, 200]
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    right = Scored(tuple(ids), 3)
    last_differs = Scored((*ids[:-1], (ids[-1] + 1) % 320), 3)
    first_differs = Scored((*ids[:3], (ids[3] + 1) % 320, *ids[4:]), 3)
    found = log_likelihoods(model, [[right], [last_differs], [first_differs]])
    assert [group[0].greedy for group in found] == [True, False, False]
    assert all(group[0].tokens == 3 for group in found)


def test_accuracy_and_perplexity_of_words_not_tokens() -> None:
    items = [Item(("...",), (word,), 0, word) for word in ("signs", "Shane")]
    likelihoods = [[Likelihood(-1.0, True, 1)], [Likelihood(-3.0, False, 3)]]
    judged = judge_last_words(LastWord(name="l", file="l"), items, likelihoods, 0.95)
    assert judged.figures["accuracy"].value == 0.5
    assert judged.figures["perplexity"].value == pytest.approx(math.exp(2.0))
    assert judged.records[1] == {"item": 1, "word": "Shane", "log_likelihood": -3.0, "tokens": 3, "right": False}


def test_the_resampled_error_is_the_delta_methods_where_that_holds() -> None:
    """perplexity * standard error of the mean log-likelihood; the interval is exp of the mean's."""
    rng = random.Random(0)
    values = [rng.gauss(-4.0, 1.0) for _ in range(2000)]
    figure = perplexity(values, 0.95)
    mean, error = -sum(values) / 2000, torch.tensor(values).std().item() / math.sqrt(2000)
    assert figure.value == pytest.approx(math.exp(mean))
    assert figure.stderr == pytest.approx(figure.value * error, rel=0.05)
    assert math.log(figure.low) == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert math.log(figure.high) == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert perplexity(values, 0.95) == figure


def test_an_absurd_likelihood_stays_a_number() -> None:
    figure = perplexity([-1e6, -2e6])
    assert all(math.isfinite(value) for value in (figure.value, figure.stderr, figure.low, figure.high))


def test_the_mean_of_benchmarks_adds_variances() -> None:
    mean = average([Estimate(0.3, 0.03, 0, 1), Estimate(0.5, 0.04, 0, 1)], 0.95)
    assert mean.value == pytest.approx(0.4)
    assert mean.stderr == pytest.approx(0.025)
    assert (mean.low, mean.high) == (
        pytest.approx(0.4 - 1.96 * 0.025, abs=1e-5),
        pytest.approx(0.4 + 1.96 * 0.025, abs=1e-5),
    )
