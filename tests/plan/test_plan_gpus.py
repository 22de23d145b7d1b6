"""The ranking of devices: its prices against closed forms, its order against rules that no model of speed may break."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.device import Device, device, devices
from gristmill.plan.gpu_figures import left_out_sentences, ranking_plots, ranking_quantities, ranking_sentences
from gristmill.plan.gpus import (
    Choice,
    LeftOut,
    Wanted,
    choice_on,
    highest_concurrency,
    memory_short_bytes,
    prompt_time_share,
    rank_gpus,
)
from gristmill.plan.layouts import Layout
from gristmill.plan.serving import Server, Traffic, serving_estimate
from gristmill.plan.step_time import Load

LLAMA = preset("llama-3-8b")
TRAFFIC = Traffic(1024, 256)
WANTED = Wanted(TRAFFIC)
H100 = replace(device("h100-sxm"), usd_per_hour=(2.0, 4.0))
few = settings(max_examples=25, deadline=None)


def chosen(card: Device, wanted: Wanted = WANTED, **more) -> Choice:
    found = choice_on(LLAMA, card, wanted, wanted.weights[0], wanted.kv[0], **more)
    assert isinstance(found, Choice), found
    return found


def middle(choice: Choice) -> float:
    assert choice.prices is not None
    return sum(price.blended for price in choice.prices) / 2


def test_a_price_is_that_of_an_hour_over_its_tokens():
    choice = chosen(H100)
    low, high = choice.prices
    hourly = choice.estimate.requests_per_s * 3600
    assert low.blended == pytest.approx(choice.tensor * 2 / hourly / 1280 * 1e6)
    assert high.blended == pytest.approx(2 * low.blended)
    # What prompts and replies bear is together what an hour costs.
    for hour, price in zip((2, 4), choice.prices, strict=True):
        assert hourly * (1024 * price.input + 256 * price.output) / 1e6 == pytest.approx(choice.tensor * hour)
    half = chosen(H100, replace(WANTED, busy=0.5))
    assert half.prices[0].output == pytest.approx(2 * low.output)


def test_the_highest_concurrency_is_the_last_that_keeps_the_targets():
    for tpot in (0.012, 0.02, 0.05):
        server = Server(LLAMA, H100, Layout(), TRAFFIC)
        found = highest_concurrency(server, 0.5, tpot)
        assert found.tpot_seconds <= tpot
        assert found.ttft_seconds <= 0.5
        most = found.concurrency
        assert most == server.most_safe or server.at(most + 1).tpot_seconds > tpot
    unlimited = highest_concurrency(server, math.inf, math.inf)
    assert unlimited.concurrency == server.most_safe
    assert highest_concurrency(server, 1e-6, math.inf) is None


@few
@given(st.floats(0.008, 0.2), st.floats(0.05, 3), st.floats(1, 4), st.floats(1, 4))
def test_a_tighter_target_never_lowers_the_price(tpot, ttft, wider_tpot, wider_ttft):
    tight = choice_on(LLAMA, H100, Wanted(TRAFFIC, ttft, tpot), "bf16", "bf16")
    loose = choice_on(LLAMA, H100, Wanted(TRAFFIC, ttft * wider_ttft, tpot * wider_tpot), "bf16", "bf16")
    if isinstance(tight, Choice):
        assert isinstance(loose, Choice)
        assert middle(loose) <= middle(tight) * (1 + 1e-9)


@few
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(1, 3)), min_size=2, max_size=5))
def test_of_equal_devices_the_cheaper_never_ranks_lower(prices):
    cards = [replace(H100, id=f"card-{place}", usd_per_hour=(low, low * wide))
             for place, (low, wide) in enumerate(prices)]  # fmt: skip
    ranking = rank_gpus(LLAMA, WANTED, cards)
    middles = [sum(choice.device.usd_per_hour) for choice in ranking.choices]
    assert middles == sorted(middles)


def test_a_faster_device_of_the_same_price_is_never_dearer():
    faster = replace(H100, memory_bandwidth=2 * H100.memory_bandwidth)
    assert middle(chosen(faster)) < middle(chosen(H100))
    larger = replace(H100, memory_bytes=2 * H100.memory_bytes)
    assert middle(chosen(larger)) <= middle(chosen(H100))


@few
@given(
    st.floats(0.05, 2),
    st.floats(0.004, 0.1),
    st.floats(17e9, 180e9),
    st.sampled_from([(1024, 256), (100, 20), (6, 900)]),
)
def test_the_number_of_devices_is_the_one_with_the_most_tokens_for_each(ttft, tpot, memory, tokens):
    """Against all numbers tried alone."""
    wanted, card = Wanted(Traffic(*tokens), ttft, tpot), replace(H100, memory_bytes=memory)
    alone = {}
    for tensor in (1, 2, 4, 8):
        found = choice_on(LLAMA, card, wanted, "bf16", "bf16", degrees=(tensor,))
        if isinstance(found, Choice):
            alone[tensor] = found.tokens_per_s_per_device
    choice = choice_on(LLAMA, card, wanted, "bf16", "bf16")
    assert isinstance(choice, Choice) == bool(alone)
    if isinstance(choice, Choice):
        assert choice.tensor == max(alone, key=lambda number: alone[number])
        assert choice.least_tensor == min(alone)


def test_no_more_devices_than_allowed():
    large = preset("llama-3-70b")
    assert choice_on(large, H100, WANTED, "bf16", "bf16").tensor > 2
    found = choice_on(large, H100, replace(WANTED, max_devices=1), "bf16", "bf16")
    assert isinstance(found, LeftOut)
    assert found.reason.startswith("memory is short by 6")
    assert found.reason.endswith("GiB on h100-sxm")


def test_cards_without_a_link_exchange_over_pcie():
    large, l40s = preset("llama-3-70b"), device("l40s")
    ranking = rank_gpus(large, replace(WANTED, weights=("int4",)), [l40s])
    assert ranking.choices[0].tensor > 1
    assert any("over PCIe" in sentence and "l40s" in sentence for sentence in ranking_sentences(ranking, large))
    alone = rank_gpus(large, replace(WANTED, weights=("int4",)), [replace(l40s, host_link_bandwidth=None)])
    assert "no known link" in alone.left_out[0].reason


def test_devices_without_a_price_come_last_and_fastest_first():
    bare = [replace(card, usd_per_hour=None) for card in devices().values()]
    ranking = rank_gpus(LLAMA, WANTED, bare, {"l40s": (0.9, 1.1)})
    assert ranking.choices[0].device.id == "l40s"
    assert all(choice.prices is None for choice in ranking.choices[1:])
    speeds = [choice.tokens_per_s_per_device for choice in ranking.choices[1:]]
    assert speeds == sorted(speeds, reverse=True)
    assert any("No price is known" in sentence for sentence in ranking_sentences(ranking, LLAMA))


def test_every_device_is_chosen_or_left_out_with_a_reason():
    wanted = Wanted(TRAFFIC, weights=("bf16", "fp8"))
    ranking = rank_gpus(preset("llama-3-70b"), replace(wanted, max_devices=2), devices().values())
    names = [each.name for each in ranking.choices] + [f"{each.device.id}:{each.weights}:{each.kv}"
                                                       for each in ranking.left_out]  # fmt: skip
    assert sorted(names) == sorted(f"{id}:{weights}:bf16" for id in devices() for weights in ("bf16", "fp8"))
    assert all(each.reason for each in ranking.left_out)
    reasons = {(each.device.id, each.weights): each.reason for each in ranking.left_out}
    assert "no fp8" in reasons["a100-80gb-sxm", "fp8"]
    assert "memory is short by" in reasons["rtx-4090", "bf16"]
    assert len(left_out_sentences(ranking.left_out)) <= len(ranking.left_out)


def test_a_target_below_what_memory_allows_is_said_with_its_floor():
    found = choice_on(LLAMA, device("h100-sxm"), Wanted(TRAFFIC, tpot_seconds=0.001), "bf16", "bf16")
    assert isinstance(found, LeftOut)
    assert "a token on each of 8 (floor of its memory" in found.reason
    assert "over 1 ms" in found.reason
    slow = choice_on(LLAMA, device("h100-sxm"), Wanted(TRAFFIC, ttft_seconds=0.001), "bf16", "bf16")
    assert isinstance(slow, LeftOut)
    assert "first token" in slow.reason


@few
@given(st.floats(17e9, 40e9), st.sampled_from([1, 2, 4]), st.sampled_from([16, 4.15625]))
def test_as_many_bytes_more_as_are_said_to_be_short_are_enough(memory, tensor, bits):
    card = replace(H100, memory_bytes=memory)
    layout = Layout(tensor=tensor)
    short = memory_short_bytes(LLAMA, card, layout, WANTED, bits, 16)
    enough = replace(card, memory_bytes=memory + short + 1)
    serving_estimate(LLAMA, enough, layout, TRAFFIC, 1, bits, 16)
    if short > 0:
        with pytest.raises(GristmillError):
            serving_estimate(LLAMA, replace(card, memory_bytes=memory + short - 1e6), layout, TRAFFIC, 1, bits, 16)


def test_a_processor_has_no_context_to_leave_room_for():
    here = Device("cpu", "a processor", 8e9, 4e10, {"fp32": 4e11, "bf16": 8e11}, devices_per_node=1, label="measured")
    short = memory_short_bytes(LLAMA, here, Layout(), WANTED, 16, 16)
    enough = replace(here, memory_bytes=here.memory_bytes + short + 1)
    held = serving_estimate(LLAMA, enough, Layout(), TRAFFIC, 1, 16, 16, utilization=WANTED.utilization)
    assert held.concurrency == 1
    with pytest.raises(GristmillError, match="do not hold"):
        fewer = replace(here, memory_bytes=here.memory_bytes + short - 1e6)
        serving_estimate(LLAMA, fewer, Layout(), TRAFFIC, 1, 16, 16, utilization=WANTED.utilization)


def test_the_share_of_prompts_in_time():
    server = Server(LLAMA, H100, Layout(), TRAFFIC)
    alone = server.at(1)
    known = server.model.efficiency
    host = known.alone_seconds + known.host_seconds(Load.prefill(TRAFFIC.prompt_tokens))  # the device idles meanwhile
    reading = alone.ttft_seconds - host
    assert prompt_time_share(alone, TRAFFIC) == pytest.approx(reading * alone.requests_per_s, rel=0.02)
    shares = [prompt_time_share(server.at(number), TRAFFIC) for number in (1, 16, 128, 256)]
    assert shares == sorted(shares)
    assert all(0 < share < 1 for share in shares)
    only_prompts = Traffic(1024, 1)
    assert prompt_time_share(Server(LLAMA, H100, Layout(), only_prompts).at(4), only_prompts) == 1


def test_figures_name_their_formulas_and_what_is_cited():
    ranking = rank_gpus(LLAMA, WANTED, [H100, replace(device("l4"), usd_per_hour=None)])
    rows = {row.id: row for row in ranking_quantities(ranking)}
    low = rows["h100-sxm:bf16:bf16.usd_per_hour_low"]
    assert low.label == "cited"
    assert low.value == 2 * ranking.choices[0].tensor
    assert rows["h100-sxm:bf16:bf16.concurrency"].value == ranking.choices[0].estimate.concurrency
    (plot,) = ranking_plots(ranking, LLAMA)
    priced, target = plot.curves
    assert target.x == (0.05, 0.05)
    assert list(priced.x) == sorted(priced.x)
    assert all(math.isfinite(value) for curve in plot.curves for value in (*curve.x, *curve.y))


def test_fewer_bits_are_proposed_where_nothing_fits():
    large = preset("llama-3-70b")
    ranking = rank_gpus(large, Wanted(TRAFFIC, max_devices=1), [H100, device("l4")])
    assert not ranking.choices
    first = ranking_sentences(ranking, large)[0]
    assert first == "No device keeps the targets. With --weights int4 --kv bf16 these would: 1 x h100-sxm."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ttft_seconds": 0}, "--ttft must be above 0"),
        ({"tpot_seconds": math.nan}, "--tpot must be above 0"),
        ({"max_devices": 0}, "--max-devices must be at least 1"),
        ({"busy": 0}, "--busy must be from 0.0001 to 1"),
        ({"busy": math.nan}, "--busy must be from 0.0001 to 1"),
        ({"weights": ()}, "at least one format"),
        ({"weights": ("int3",)}, "'int3' are not known"),
        ({"kv": ("int4",)}, "'int4' is not known"),
        ({"traffic": Traffic(8000, 1000)}, "9000 together; this model takes 8192"),
    ],
)
def test_what_is_refused(change, says):
    with pytest.raises(GristmillError, match=says):
        rank_gpus(LLAMA, replace(WANTED, **change), [H100])


@pytest.mark.parametrize("pair", [(0, 1), (-1, 2), (2, 1), (1, math.inf), (math.nan, 1), (1, math.nan)])
def test_prices_that_are_none_are_refused(pair):
    with pytest.raises(GristmillError, match="--price of h100-sxm: LOW,HIGH must be from 1e-09 to"):
        rank_gpus(LLAMA, WANTED, [H100], {"h100-sxm": pair})
