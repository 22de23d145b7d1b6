"""Best sizes by published laws; checkpoints against failures, against a simulation of failing machines."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan import failures, sizing
from gristmill.plan.activations import Arithmetic
from gristmill.plan.parameters import total_params
from gristmill.plan.scaling import Law
from gristmill.plan.sizing import BESIROGLU, HOFFMANN, Size


def optimum_of(params, law):
    """The compute-optimal training of a model of `params`."""
    low, high = 1e15, 1e30
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if law.optimal(middle)[0] < params else (low, middle)
    return Size(*law.optimal(low))


def test_chinchillas_budget():
    """Hoffmann et al. 2022: 5.76e23 FLOPs are best spent on 70B parameters and 1.4T tokens."""
    assert sizing.rule_of_thumb(5.76e23).params == pytest.approx(70e9, rel=0.02)
    best = sizing.compute_optimal(5.76e23)
    assert (best.params, best.tokens) == pytest.approx((70e9, 1.4e12), rel=0.06)
    assert best.train_flops == pytest.approx(5.76e23)


def test_sardanas_example():
    """Sardana et al. 2024, figure 1: as good as a 13B model, with 2T tokens of use: 7B, 1.7e22 FLOPs (17 %) less."""
    chinchilla = optimum_of(13e9, HOFFMANN)
    planned = Size(chinchilla.params, chinchilla.tokens, 2e12)
    best = sizing.inference_aware(HOFFMANN.loss(planned.params, planned.tokens), 2e12)
    assert best.params == pytest.approx(7e9, rel=0.02)
    assert planned.flops - best.flops == pytest.approx(1.7e22, rel=0.02)
    assert 1 - best.flops / planned.flops == pytest.approx(0.17, abs=0.006)


@settings(max_examples=40, deadline=None)
@given(st.floats(8.5, 11.5), st.floats(0, 14), st.sampled_from([HOFFMANN, BESIROGLU]))
def test_no_neighbour_is_cheaper(log_params, log_use, law):
    """The optimum on the curve of equal loss, and without use it is Chinchilla's."""
    planned = optimum_of(10**log_params, law)
    loss, use = law.loss(planned.params, planned.tokens), 10**log_use
    best = sizing.inference_aware(loss, use, law)
    assert law.loss(best.params, best.tokens) == pytest.approx(loss)
    for factor in (0.97, 1.03):
        params = best.params * factor
        assert Size(params, law.tokens_for(params, loss), use).flops >= best.flops * (1 - 1e-9)
    assert best.params <= planned.params * 1.001
    assert sizing.inference_aware(loss, 0, law).params == pytest.approx(planned.params, rel=1e-3)


def test_repeats_are_worth_less_and_less():
    assert sizing.epochs(3e9, 1e9) == 3
    assert sizing.worth_of_repeats(5e8, 1e9) == 5e8
    assert sizing.worth_of_repeats(4e9, 1e9) > 3.6e9
    assert sizing.worth_of_repeats(1e15, 1e9) == pytest.approx(16.39e9)
    with pytest.raises(GristmillError, match="corpus's number of tokens must be above 0 and finite, not 0"):
        sizing.epochs(1e9, 0)


@pytest.mark.parametrize("flops", [0, -1, float("nan"), float("inf")])
def test_budgets_that_cannot_be(flops):
    for function in (sizing.rule_of_thumb, sizing.compute_optimal):
        with pytest.raises(GristmillError, match="the budget of FLOPs must be above 0 and finite"):
            function(flops)


def test_a_law_that_does_not_fall_has_no_best_size():
    with pytest.raises(GristmillError, match="does not fall with size"):
        sizing.compute_optimal(1e20, Law(1.7, 0.0, 0.3, 400, 0.3))


def test_checkpoints_hold_weights_and_states():
    config = preset("llama-3-8b")
    assert failures.checkpoint_bytes(config, Arithmetic()) == 12 * total_params(config)
    assert failures.checkpoint_bytes(config, Arithmetic(weights="bf16")) == 6 * total_params(config)


def test_llama_3s_failures():
    """419 in 54 days on 16,384 devices: one in 3.1 hours."""
    assert failures.machine_mtbf_seconds(failures.DEVICE_MTBF_HOURS, 16_384) / 3600 == pytest.approx(54 * 24 / 419)


def test_youngs_interval():
    assert failures.best_interval_seconds(60, 12_000) == 1200


def simulated_share(interval, pause, mtbf, restart, late, seed):
    """Time lost over useful time, of a machine that fails at random."""
    draw = random.Random(seed)
    useful, lost = 0.0, 0.0
    for _ in range(20_000):
        left = draw.expovariate(1 / mtbf)
        rounds = int(left // (interval + pause))
        useful += rounds * interval
        lost += rounds * pause + left - rounds * (interval + pause) + restart + late
    return lost / useful


def test_the_lost_share_is_that_of_a_simulated_machine():
    saving = failures.plan_saving(6e12, 2e11, 40_000, restart_seconds=300)
    assert saving.pause_seconds == 30
    assert saving.interval_seconds == pytest.approx((2 * 30 * 40_000) ** 0.5)
    found = simulated_share(saving.interval_seconds, 30, 40_000, 300, 0, seed=1)
    assert saving.lost_share == pytest.approx(found, rel=0.1)
    for factor in (0.4, 2.5):  # saving more often, or less, loses more
        other = simulated_share(saving.interval_seconds * factor, 30, 40_000, 300, 0, seed=1)
        assert other > found


def test_asynchronous_saves_stop_for_less_and_lose_less():
    whole = failures.plan_saving(6e12, 2e11, 40_000)
    beside = failures.plan_saving(6e12, 2e11, 40_000, pause_bytes_per_s=2e12)
    assert (beside.pause_seconds, beside.write_seconds) == (3, 30)
    assert beside.lost_share < whole.lost_share
    assert failures.plan_saving(6e12, 2e9, 100, pause_bytes_per_s=2e12).interval_seconds == 3000
    with pytest.raises(GristmillError, match="the speed of saving must be above 0 and finite, not 0"):
        failures.plan_saving(1e9, 0, 100)
    with pytest.raises(GristmillError, match="mean time between failures must be above 0"):
        failures.machine_mtbf_seconds(-1, 8)
