"""The fit of a scaling law, and what follows from it."""

import math

import numpy as np
import pytest

from gristmill.errors import GristmillError
from gristmill.plan.scaling import (
    PUBLISHED,
    Law,
    Point,
    chinchilla_multiple,
    chinchilla_tokens,
    fit,
    interval,
    resampled,
)

CHINCHILLA = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10


def ladder(law, noise=0.0, seed=0, sizes=(1e7, 3e7, 1e8, 3e8, 1e9), ratios=(5, 10, 20, 40)):
    rng = np.random.default_rng(seed)
    return [
        Point(n, n * r, law.loss(n, n * r) * math.exp(noise * rng.standard_normal())) for n in sizes for r in ratios
    ]


@pytest.mark.parametrize("law", [CHINCHILLA, Law(0.9, 30.0, 0.5, 80.0, 0.4), Law(0.5, 20.0, 0.2, 900.0, 0.5)])
def test_a_law_is_found_again_from_its_own_losses(law):
    found = fit(ladder(law))
    for key in ("floor", "alpha", "beta"):
        assert getattr(found, key) == pytest.approx(getattr(law, key), rel=0.03)
    for n, d in ((1e8, 2e9), (5e9, 1e11)):
        assert found.loss(n, d) == pytest.approx(law.loss(n, d), rel=2e-3)


def test_one_run_gone_wrong_hardly_moves_the_law():
    points = ladder(CHINCHILLA)
    points[7] = Point(points[7].params, points[7].tokens, points[7].loss * 1.3)
    assert fit(points).loss(1e9, 2e10) == pytest.approx(CHINCHILLA.loss(1e9, 2e10), rel=5e-3)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(12):
        points = ladder(CHINCHILLA, noise=0.003, seed=seed)
        law = fit(points)
        predicted = [again.loss(1e9, 2e10) for again in resampled(points, law, 40, seed)]
        low, high = interval(predicted, 0.9)
        covered += low <= CHINCHILLA.loss(1e9, 2e10) <= high
    assert covered >= 8  # of 12 at 90 %; fewer happens once in a thousand times


def test_the_optimum_is_where_the_loss_is_lowest():
    flops = 1e21
    params, tokens = CHINCHILLA.optimal(flops)
    assert 6 * params * tokens == pytest.approx(flops)
    best = CHINCHILLA.loss(params, tokens)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert CHINCHILLA.loss(params * factor, tokens / factor) > best


def test_without_inference_the_cheapest_way_is_the_optimum():
    params, tokens = CHINCHILLA.optimal(1e21)
    n, d = CHINCHILLA.cheapest(CHINCHILLA.loss(params, tokens), 0.0)
    assert (n, d) == (pytest.approx(params, rel=1e-3), pytest.approx(tokens, rel=1e-3))


def test_inference_makes_smaller_models_trained_longer_cheapest():
    loss = CHINCHILLA.loss(*CHINCHILLA.optimal(1e21))
    seen = [CHINCHILLA.cheapest(loss, served) for served in (0.0, 1e11, 1e13)]
    assert seen[0][0] > seen[1][0] > seen[2][0]
    assert seen[0][1] < seen[1][1] < seen[2][1]
    for n, d in seen:
        assert CHINCHILLA.loss(n, d) == pytest.approx(loss, rel=1e-9)
    served = 1e13
    n, d = seen[2]
    for factor in (0.8, 1.25):
        assert (6 * CHINCHILLA.tokens_for(n * factor, loss) + 2 * served) * n * factor > (6 * d + 2 * served) * n


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (ladder(CHINCHILLA)[:5], "5 models are too few"),
        (ladder(CHINCHILLA, sizes=(1e7, 2e7)), "fewer than three values of size"),
    ],
)
def test_what_cannot_be_fitted_is_refused(points, said):
    with pytest.raises(GristmillError, match=said):
        fit(points)


def test_a_loss_below_the_floor_is_refused():
    with pytest.raises(GristmillError, match=r"no model reaches a loss of 1: by this law the floor is 1\.69"):
        CHINCHILLA.cheapest(1.0, 0.0)


def test_the_rule_of_thumb():
    assert chinchilla_tokens(70e9) == 1.4e12
    assert chinchilla_multiple(*PUBLISHED["Llama 3 8B"]) == pytest.approx(93.75)
    assert chinchilla_multiple(*PUBLISHED["Llama 2 70B"]) == pytest.approx(1.43, abs=0.005)
    assert chinchilla_multiple(*PUBLISHED["Qwen3 0.6B"]) == pytest.approx(3000)
