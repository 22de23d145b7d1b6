"""Intervals against published values, defining equations and known coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.evaluate.intervals import paired_difference, ratio_interval, student_t, wilson

Z95 = 1.959963984540054


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998 (Statistics in Medicine 17, 857-872), Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found[0] == pytest.approx(low, abs=6e-5)
    assert found[1] == pytest.approx(high, abs=6e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_limits_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    """|p - limit| = z * sqrt(limit * (1 - limit) / n): the limits are where the score test just rejects."""
    successes = data.draw(st.integers(0, n))
    p = successes / n
    low, high = wilson(successes, n)
    assert 0 <= low <= p <= high <= 1
    for limit in (low, high):
        assert abs(p - limit) == pytest.approx(Z95 * math.sqrt(limit * (1 - limit) / n), abs=1e-9)


def test_wilson_refuses_impossible_counts() -> None:
    for successes, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson(successes, n)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=1.0)


@pytest.mark.parametrize(
    ("table", "expected", "digits"),
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
        ((1, 1, 7, 12), (-0.286, -0.507, -0.026), 3),  # Bentur et al. 2009
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046), 4),  # Cavo et al. 2012
    ],
)
def test_paired_difference_matches_published_values(
    table: tuple[int, int, int, int], expected: tuple[float, float, float], digits: int
) -> None:
    assert tuple(round(value, digits) for value in paired_difference(*pairs(*table))) == expected


def test_paired_difference_turns_round_with_its_arguments() -> None:
    a, b = pairs(20, 9, 4, 30)
    difference, low, high = paired_difference(a, b)
    assert difference == pytest.approx(5 / 63)
    assert low < difference < high
    assert paired_difference(b, a) == pytest.approx((-difference, -high, -low))


def test_pairs_that_agree_give_a_narrower_interval_than_pairs_that_do_not() -> None:
    agree, differ = paired_difference(*pairs(40, 10, 0, 50)), paired_difference(*pairs(25, 25, 15, 35))
    assert agree[0] == pytest.approx(differ[0])
    assert agree[2] - agree[1] < differ[2] - differ[1]


def test_without_a_margin_the_pairs_count_as_uncorrelated() -> None:
    """No success in one list: phi is 0, and the interval is the two Wilson intervals squared and added."""
    difference, low, high = paired_difference(*pairs(0, 8, 0, 12))
    (low_a, high_a), (low_b, high_b) = wilson(8, 20), wilson(0, 20)
    assert difference == pytest.approx(0.4)
    assert difference - low == pytest.approx(math.hypot(0.4 - low_a, high_b - 0.0))
    assert high - difference == pytest.approx(math.hypot(high_a - 0.4, 0.0 - low_b))


def test_paired_difference_refuses_lists_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError):
        paired_difference([], [])


@pytest.mark.parametrize(
    ("freedom", "confidence", "expected"),
    [(4, 0.95, 2.776), (7, 0.95, 2.365), (10, 0.9, 1.812), (30, 0.95, 2.042), (60, 0.99, 2.660)],
)
def test_student_t_matches_the_printed_table(freedom: int, confidence: float, expected: float) -> None:
    assert student_t(freedom, confidence) == pytest.approx(expected, abs=1.1e-3)


def test_with_equal_denominators_the_ratio_interval_is_that_of_a_mean() -> None:
    """The textbook interval: mean +- t * s / sqrt(n); here n = 5, mean 3, s = sqrt(2.5), t = 2.776."""
    interval = ratio_interval([(np.array([1.0, 2.0, 3.0, 4.0, 5.0]) * 50, np.full(5, 50.0))])
    half = 2.776 * math.sqrt(2.5 / 5)
    assert interval == pytest.approx((3 - half, 3 + half), abs=2e-3)


def test_ratio_interval_holds_its_level() -> None:
    """Two domains of documents of unequal length: in 1000 draws the interval covers the truth about 95 times in 100."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        strata = []
        for rate in (2.0, 3.0):
            sizes = generator.uniform(50, 150, 8)
            strata.append((sizes * rate * generator.normal(1.0, 0.1, 8), sizes))
        # The truth given these sizes: what the rates would spend on these bytes.
        truth = sum(rate * sizes.sum() for rate, (_, sizes) in zip((2.0, 3.0), strata, strict=True))
        truth /= sum(sizes.sum() for _, sizes in strata)
        low, high = ratio_interval(strata) or (0.0, 0.0)
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.99


def test_ratio_interval_ignores_what_separates_the_strata_and_knows_when_it_knows_too_little() -> None:
    """Two domains whose documents are alike leave nothing to be uncertain of, however far apart the domains are."""
    strata = [(np.full(20, 100.0), np.full(20, 50.0)), (np.full(30, 10.0), np.full(30, 50.0))]
    assert ratio_interval(strata) == pytest.approx((2300 / 2500, 2300 / 2500))
    assert ratio_interval([(np.ones(4), np.ones(4))]) is None
    assert ratio_interval([*strata, (np.ones(1), np.ones(1))]) is None
    assert ratio_interval([]) is None
