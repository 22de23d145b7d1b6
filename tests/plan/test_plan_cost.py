"""Costs against sums done by hand, and their rules over random traffic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.plan import cost
from gristmill.plan.cost import Slice

shares = st.floats(0, 1)


def test_a_device_that_is_half_idle_makes_tokens_twice_as_dear():
    assert cost.usd_per_mtoken(3.6, 1000) == pytest.approx(1.0)
    assert cost.usd_per_mtoken(3.6, 1000, 0.5) == pytest.approx(2.0)


def test_break_even_by_hand():
    assert cost.breakeven_tokens_per_day(3650, 2, days_per_month=365 / 12) == pytest.approx(60e6)
    assert cost.breakeven_tokens_per_day(3650, 2, 365 / 12, own_usd_per_mtoken=1) == pytest.approx(120e6)
    assert cost.breakeven_tokens_per_day(1, 2, own_usd_per_mtoken=2) == math.inf


@given(shares, st.floats(0, 1), st.floats(0, 1))
def test_discounts_on_different_slices_are_never_multiplied(share, first, second):
    apart = cost.cost_stack_multiplier([Slice(share, (first,)), Slice(1 - share, (second,))])
    assert apart == pytest.approx(share * first + (1 - share) * second, abs=1e-12)
    assert apart >= first * second - 1e-12
    assert min(first, second) - 1e-12 <= apart <= max(first, second) + 1e-12


@pytest.mark.parametrize(
    ("slices", "says"),
    [
        ([Slice(0.5), Slice(0.4)], "come to 0.9, not to 1"),
        ([], "come to 0, not to 1"),
        ([Slice(1.2), Slice(-0.2, name="batch")], "slice batch"),
        ([Slice(1, (-0.5,))], "negative"),
        ([Slice(1, (math.nan,))], "no number"),
    ],
)
def test_slices_that_are_no_whole_are_refused(slices, says):
    with pytest.raises(GristmillError, match=says):
        cost.cost_stack_multiplier(slices)


def test_a_router_pays_for_each_share_its_price():
    assert cost.routing_cost_multiplier(0.7, 0.1) == pytest.approx(0.37)


def test_a_cache_whose_writes_cost_extra_may_lose():
    assert cost.prompt_cache_saving_fraction(0.5, 0.1) == pytest.approx(0.45)
    assert cost.prompt_cache_saving_fraction(0.1, 0.1, 1.25) < 0


def test_tokens_of_prompts_and_replies_bear_what_is_paid():
    prices = cost.own_token_prices(3.6, requests_per_s=2, prompt_tokens=300, output_tokens=100, prompt_share=0.25)
    assert prices.input == pytest.approx(0.25 * 3.6 / 3600 / 600 * 1e6)
    assert prices.output == pytest.approx(0.75 * 3.6 / 3600 / 200 * 1e6)
    assert prices.blended == pytest.approx(cost.blended_usd_per_mtoken(prices.input, prices.output, 300, 100))


@given(st.integers(1, 100), st.integers(1, 50), st.integers(1, 20))
def test_the_lasting_break_even_is_the_last_time_that_the_api_is_cheaper(fixed, tokens, price):
    """Against traffic tried step by step; tokens in millions."""
    found = cost.lasting_breakeven_tokens_per_day(fixed, tokens * 1e6, price) / 1e6
    gain = tokens * price - fixed
    if gain <= 0:
        assert found == math.inf
        return
    # A stair begins just behind a full number of replicas: there the API is at its cheapest beside them.
    stairs = math.ceil(fixed / gain) + 3
    if stairs > 2000:
        return
    dearer = [full for full in range(stairs) if (full + 1) * fixed > full * tokens * price * (1 + 1e-8)]
    assert found == pytest.approx((max(dearer) + 1) * fixed / price)
    assert found >= fixed / price * (1 - 1e-12)


def test_goodput_as_a_rate_and_as_a_share():
    """H8a: 40 % of 100 requests a second break the objective."""
    assert cost.goodput_requests_per_s(100, 0.4) == pytest.approx(60)
    assert cost.goodput_fraction(0.4) == pytest.approx(0.6)
