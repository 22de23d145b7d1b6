"""Own devices against an API: months, break-even and savings against sums done apart, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.cost import DAYS_PER_MONTH, Slice
from gristmill.plan.device import device
from gristmill.plan.gpus import Wanted
from gristmill.plan.hosting import Api, Hosting, compare
from gristmill.plan.hosting_figures import comparison_plots, comparison_quantities, comparison_sentences
from gristmill.plan.serving import Traffic
from gristmill.plan.slices import slice_of, slices_of_file

LLAMA = preset("llama-3-8b")
H100 = replace(device("h100-sxm"), usd_per_hour=(2.0, 4.0), price_date="2026-11", price_source="a list")
HOSTING = Hosting(Wanted(Traffic(1024, 256)), requests_per_day=200_000)
API = Api(0.2, 0.6)


def values(found):
    return {row.id: row.value for row in comparison_quantities(found)}


def test_a_month_on_either_side():
    found = compare(LLAMA, H100, HOSTING, API)
    assert found.devices == 1
    assert found.low.usd_per_month == pytest.approx(2 * 730)
    assert found.high.usd_per_month == pytest.approx(4 * 730)
    assert found.api_usd_per_month == pytest.approx(200_000 * 365 / 12 * (1024 * 0.2 + 256 * 0.6) / 1e6)
    # Whatever prompts and replies are said to cost, a month of them costs what the devices do.
    month = 200_000 * DAYS_PER_MONTH / 1e6
    paid = month * (1024 * found.low.prices.input + 256 * found.low.prices.output)
    assert paid == pytest.approx(found.low.usd_per_month)
    assert month * 1280 * found.low.prices.blended == pytest.approx(found.low.usd_per_month)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(1e3, 1e8), st.floats(0.1, 1), st.floats(1, 24), st.floats(0, 0.9), st.floats(0, 0.05), st.floats(0.1, 9)
)
def test_the_sides_cost_the_same_at_the_break_even(requests, utilization, hours, other, marginal, api):
    hosting = replace(
        HOSTING, requests_per_day=requests, utilization=utilization, hours_per_day=hours, non_gpu_share=other,
        marginal_usd_per_mtoken=marginal,
    )  # fmt: skip
    found = compare(LLAMA, H100, hosting, Api(api, api))
    assert found.own_usd_per_month(found.low, found.tokens_per_day) == pytest.approx(found.low.usd_per_month)
    # No replica is asked for more than it may do, and one less would be.
    assert found.busy <= utilization * (1 + 1e-9)
    assert found.replicas == 1 or (found.replicas - 1) * found.replica_tokens_per_day < found.tokens_per_day
    even = found.low.breakeven_tokens_per_day
    if math.isinf(even):
        assert found.own_usd_per_month(found.low, found.replica_tokens_per_day) > (
            api * found.replica_tokens_per_day * DAYS_PER_MONTH / 1e6
        ) * (1 - 1e-9)
        return
    assert found.own_usd_per_month(found.low, even) == pytest.approx(api * even * DAYS_PER_MONTH / 1e6)
    lasting = found.low.lasting_breakeven_tokens_per_day
    assert lasting >= even * (1 - 1e-9)
    for more in (1.001, 1.5, 2.01, 7.77):
        assert found.own_usd_per_month(found.low, lasting * more) <= api * lasting * more * DAYS_PER_MONTH / 1e6


def test_what_makes_own_tokens_dearer():
    plain = compare(LLAMA, H100, HOSTING, API).low.usd_per_month
    assert compare(LLAMA, H100, replace(HOSTING, non_gpu_share=0.8), API).low.usd_per_month == pytest.approx(5 * plain)
    month = 200_000 * 1280 * DAYS_PER_MONTH / 1e6
    dearer = compare(LLAMA, H100, replace(HOSTING, marginal_usd_per_mtoken=0.01), API)
    assert dearer.low.usd_per_month == pytest.approx(plain + 0.01 * month)
    assert compare(LLAMA, H100, replace(HOSTING, hours_per_day=8), API).low.usd_per_month == pytest.approx(plain / 3)
    given_price = replace(HOSTING, usd_per_hour=(1.0, 1.0))
    assert compare(LLAMA, H100, given_price, API).low.usd_per_month == pytest.approx(plain / 2)


def test_slices_are_never_multiplied_with_each_other():
    slices = [Slice(0.5, (0.7,), "chat", ("cache",)), Slice(0.5, (0.7, 0.5), "bulk", ("cache", "batch"))]
    found = compare(LLAMA, H100, HOSTING, API, slices)
    rows = values(found)
    assert rows["savings.left"] == found.multiplier == pytest.approx(0.5 * 0.7 + 0.5 * 0.35)
    assert rows["savings.product"] == pytest.approx(0.35)
    assert rows["savings.chat"] + rows["savings.bulk"] == pytest.approx(rows["savings.left"])
    assert rows["savings.usd_per_month"] == pytest.approx(rows["api.usd_per_month"] * rows["savings.left"])
    assert rows["savings.break_even_low"] == pytest.approx(rows["break_even.tokens_per_day_low"] / rows["savings.left"])


def test_cached_prompts_are_cheaper_on_both_sides():
    cached = replace(HOSTING, wanted=Wanted(Traffic(1024, 256, cached_prompt_share=0.5)))
    api = Api(0.2, 0.6, cached_usd_per_mtoken=0.02)
    plain, found = compare(LLAMA, H100, HOSTING, api), compare(LLAMA, H100, cached, api)
    assert found.api_usd_per_mtoken == pytest.approx((1024 * 0.11 + 256 * 0.6) / 1280)
    assert found.low.full_prices.blended < plain.low.full_prices.blended
    assert values(found)["api.usd_per_prompt_mtoken"] == pytest.approx(0.11)


def test_figures_are_finite_and_say_where_prices_are_from():
    found = compare(LLAMA, H100, HOSTING, Api(0.001, 0.001))
    rows = comparison_quantities(found)
    json.dumps([row.as_json() for row in rows], allow_nan=False)
    json.dumps([plot.as_json() for plot in comparison_plots(found)], allow_nan=False)
    assert not any(row.id.startswith("break_even.tokens") for row in rows)
    assert any("never cost less than the API" in sentence for sentence in comparison_sentences(found))
    price = next(row for row in rows if row.id == "own.usd_per_hour_low")
    assert (price.label, price.formula) == ("cited", "of one device: a list, 2026-11")
    sensitivity = {row.id: row.value for row in rows if row.id.startswith("sensitivity.")}
    assert len(sensitivity) == 15
    assert sensitivity["sensitivity.low_at_20"] == pytest.approx(5 * sensitivity["sensitivity.low_at_100"])
    assert sensitivity["sensitivity.high_at_40"] == pytest.approx(2 * sensitivity["sensitivity.low_at_40"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: replace(HOSTING, requests_per_day=0), "--requests-per-day must be from 0.001"),
        (lambda: replace(HOSTING, requests_per_day=math.nan), "--requests-per-day must be from 0.001"),
        (lambda: replace(HOSTING, requests_per_day=math.inf), "--requests-per-day must be from 0.001"),
        (lambda: replace(HOSTING, utilization=1.5), "--utilization must be from 0.0001 to 1"),
        (lambda: replace(HOSTING, hours_per_day=25), "--hours-per-day must be from 0.001 to 24"),
        (lambda: replace(HOSTING, non_gpu_share=1), "--non-gpu-share must be from 0 to 0.999"),
        (lambda: replace(HOSTING, marginal_usd_per_mtoken=-1), "--marginal-usd must be from 0"),
        (lambda: replace(HOSTING, tensor=0), "--tensor must be at least 1"),
        (lambda: Api(-1, 1), "--api-input-usd must be from 0"),
        (lambda: Api(1, math.nan), "--api-output-usd must be from 0"),
        (lambda: Api(0, 0), "both 0"),
        (lambda: compare(LLAMA, replace(H100, usd_per_hour=None), HOSTING, API), "no price is known of h100-sxm"),
        (lambda: compare(LLAMA, H100, replace(HOSTING, tensor=3), API), "does not serve this .*3 does not divide 32"),
        (lambda: compare(preset("llama-3-70b"), H100, replace(HOSTING, tensor=1), API), "memory is short by"),
        (lambda: compare(LLAMA, H100, HOSTING, API, [Slice(0.5)]), "come to 0.5, not to 1"),
    ],
)
def test_what_is_refused(make, says):
    with pytest.raises(GristmillError, match=says):
        make()


def test_slices_as_people_write_them(tmp_path):
    assert slice_of("chat:60%:cache=-30%,batch=x0.5") == Slice(
        0.6, (pytest.approx(0.7), 0.5), "chat", ("cache", "batch")
    )
    assert slice_of("rest:0.4") == Slice(0.4, (), "rest", ())
    file = tmp_path / "slices.yaml"
    file.write_text("- {name: chat, share: 60%, savings: {cache: -30%}}\n- {name: rest, share: 0.4}\n")
    assert slices_of_file(file) == [Slice(0.6, (pytest.approx(0.7),), "chat", ("cache",)), Slice(0.4, (), "rest", ())]


@pytest.mark.parametrize("text", ["chat", "chat:", "chat:x", "chat:0.5:cache=0.7", "chat:0.5:cache=-30", "a:1:-x%"])
def test_slices_that_cannot_be_read(text):
    with pytest.raises(GristmillError, match=r"--slice .*: expected NAME:SHARE"):
        slice_of(text)


@pytest.mark.parametrize(
    "text", ["nothing", "[1, 2]", "- {name: a}", "- {share: 1, savings: [1]}", "[", "- {share: x}"]
)
def test_files_of_slices_that_cannot_be_read(tmp_path, text):
    file = tmp_path / "slices.yaml"
    file.write_text(text)
    with pytest.raises(GristmillError, match=r"--slices .*slices\.yaml"):
        slices_of_file(file)
    with pytest.raises(GristmillError, match="cannot be read"):
        slices_of_file(tmp_path / "none.yaml")
