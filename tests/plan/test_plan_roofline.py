"""The roofline: formulas in closed form, where decoding crosses the ridge, and what no batch can reach."""

import math

import pytest

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.capacity_limits import (
    kv_budget_bytes,
    kv_memory_fraction,
    max_concurrent_sequences,
    min_devices,
    min_nodes,
    model_load_seconds,
)
from gristmill.plan.device import device
from gristmill.plan.parameters import matrix_params
from gristmill.plan.roofline import (
    attainable_flops,
    compute_idle_fraction,
    decode_ceiling_tokens_per_s,
    min_compute_bound_tokens,
    ridge_flop_per_byte,
    roofline_gap_factor,
)
from gristmill.plan.roofline_model import ModelRoofline, plan_roofline, roofline_plots, roofline_sentences
from gristmill.plan.speculation import expected_tokens, slowdown_compute_bound, speedup

H100 = device("h100-sxm")
LLAMA = preset("llama-3-8b")


def figures(*args):
    return {quantity.id: quantity.value for quantity in plan_roofline(*args)}


def test_the_roof_has_its_corner_at_the_ridge():
    ridge = ridge_flop_per_byte(989.4e12, 3.35e12)
    assert ridge == pytest.approx(295.34, rel=1e-4)
    assert attainable_flops(ridge, 989.4e12, 3.35e12) == attainable_flops(10 * ridge, 989.4e12, 3.35e12) == 989.4e12
    assert attainable_flops(ridge / 4, 989.4e12, 3.35e12) == pytest.approx(989.4e12 / 4)
    assert roofline_gap_factor(1, 989.4e12, 3.35e12) == pytest.approx(ridge)
    assert compute_idle_fraction(ridge / 4, 989.4e12, 3.35e12) == pytest.approx(0.75)
    assert min_compute_bound_tokens(989.4e12, 3.35e12, 0.5) == pytest.approx(ridge / 4)


def test_what_fits():
    assert kv_budget_bytes(80e9, 0.9, 35e9, 1.5e9) == pytest.approx(35.5e9)
    assert kv_budget_bytes(80e9, 0.9, 100e9) == 0
    assert max_concurrent_sequences(40e9, 1_342_177_280) == 29
    assert max_concurrent_sequences(-1, 1) == 0
    assert min_devices(141.1e9, 141e9, 0.9) == 2
    assert min_devices(1, 141e9) == 1
    assert min_nodes(141.1e9, 16e9, 8) == 2
    assert model_load_seconds(141_107_412_992, 5e9) == pytest.approx(28.22, rel=1e-3)
    assert kv_memory_fraction(20, 80) == 0.25


def test_guessing_ahead():
    assert expected_tokens(0.8, 4) == pytest.approx(3.3616)
    assert expected_tokens(1, 4) == 5
    assert expected_tokens(0, 4) == 1
    assert speedup(0.9, 5, 0.1138) == pytest.approx(2.986, rel=1e-3)
    assert slowdown_compute_bound(0.8, 4, 0.1138) == pytest.approx(1.6228, rel=1e-4)


def test_long_context_never_reaches_the_ridge():
    found = figures(ModelRoofline(LLAMA, H100), 32, 8192)
    keys, pairs = 8192 * 131072, 4 * 32 * 128 * 32 * 8192
    weights = 2 * matrix_params(LLAMA)
    assert found["decode.intensity"] == pytest.approx(32 * (weights + pairs) / (weights + 32 * keys))
    assert found["decode.intensity_limit"] == pytest.approx((weights + pairs) / keys)
    assert found["decode.intensity_limit"] < 20 < found["ridge.bf16"]
    assert "crossover.batch" not in found
    # (2 N + a s) / (k s) = ridge
    ridge = found["ridge.bf16"]
    crossing = weights / (ridge * 131072 - 4 * 32 * 128 * 32)
    assert found["crossover.context"] == math.floor(crossing)
    assert found["decode.tpot_floor"] == pytest.approx((weights + 32 * keys) / 3.35e12)
    assert found["decode.tokens_per_s_ceiling"] == pytest.approx(
        decode_ceiling_tokens_per_s(weights, keys, 32, 3.35e12)
    )
    assert found["decode.intensity_limit_mha"] < found["decode.intensity_limit"] / 3


def test_a_short_context_crosses_at_a_batch_and_not_before():
    roofline = ModelRoofline(LLAMA, H100)
    batch = roofline.crossing_batch(128)
    assert roofline.decode(batch, 128) >= roofline.ridge > roofline.decode(batch - 1, 128)
    context = roofline.crossing_context()
    assert roofline.decode_limit(context) >= roofline.ridge > roofline.decode_limit(context + 1)
    assert roofline.crossing_batch(context + 1) is None
    assert f"fewer than {batch:,} sequences" in " ".join(roofline_sentences(roofline, 128))
    assert "never reaches the ridge" in " ".join(roofline_sentences(roofline, 8192))


def test_latent_attention_and_windows_keep_the_intensity_up():
    latent = ModelRoofline(preset("deepseek-v3"), H100)
    # Absorbed: 2 H (2 R + P) FLOPs on (R + P) numbers of 2 bytes a token.
    assert latent.decode_limit(2**30) == pytest.approx(128 * (2 * 512 + 64) / 576, rel=1e-3)
    h200 = ModelRoofline(preset("deepseek-v3"), device("h200"))
    assert h200.crossing_context() is None
    assert h200.crossing_batch(100_000) is not None
    assert "crossover.context" not in figures(h200, 1, 1000)
    full = preset("gemma-2-2b").model_copy(update={"attention_pattern": ("full",), "sliding_window": None})
    windowed = ModelRoofline(preset("gemma-2-2b"), H100)
    assert windowed.decode_limit(8192) > ModelRoofline(full, H100).decode_limit(8192)


def test_of_experts_those_are_read_that_are_met():
    config = preset("deepseek-v3")
    roofline = ModelRoofline(config, H100)
    assert roofline.weight_bytes(1) == pytest.approx(2 * matrix_params(config))
    assert roofline.weight_bytes(1e6) == pytest.approx(2 * matrix_params(config, active=False))


def test_prefill_is_limited_by_arithmetic_from_the_ridge_on():
    roofline = ModelRoofline(LLAMA, H100)
    short, long = figures(roofline, 1, 100), figures(roofline, 1, 2000)
    assert short["prefill.share_of_peak"] < 0.5
    assert long["prefill.share_of_peak"] == 1
    assert short["prefill.ttft_floor"] == pytest.approx((2 * matrix_params(LLAMA) + 2 * 100 * 131072) / 3.35e12)
    flops = 2000 * 2 * (matrix_params(LLAMA) - 128256 * 4096) + 2 * 128256 * 4096 + 4 * 4096 * 32 * 2000 * 2001 / 2
    assert long["prefill.ttft_floor"] == pytest.approx(flops / 989.4e12)


def test_plots_hold_the_roof_and_the_points():
    plots = roofline_plots(ModelRoofline(LLAMA, H100), 32, 2048)
    roof, *marks = plots[0].curves
    assert list(roof.x) == sorted(roof.x)
    assert max(roof.y) == H100.peak_flops["bf16"]
    assert [len(mark.x) for mark in marks] == [1, 1, 1]
    for curve in plots[1].curves[:-1]:
        assert all(one < other for one, other in zip(curve.y, curve.y[1:], strict=False))


def test_sizes_below_one_are_refused():
    for batch, length in ((0, 5), (-1, 5), (3, 0), (math.nan, 4), (3, math.inf)):
        with pytest.raises(GristmillError, match="--batch" if batch != 3 else "--seq-len"):
            plan_roofline(ModelRoofline(LLAMA, H100), batch, length)
