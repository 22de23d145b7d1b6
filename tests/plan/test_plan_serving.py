"""Serving estimates against simulations that the equations do not know of: lengths met at a random moment, a cache that
runs over, requests that come and go step by step."""

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_shapes import model_configs

from gristmill.capacity.answer import Fleet, plan_fleet
from gristmill.capacity.fleet import simulate as simulate_fleet
from gristmill.capacity.traffic import Arrival, Lengths
from gristmill.capacity.traffic import Traffic as Arriving
from gristmill.capacity.traffic import drawn as drawn_arrivals
from gristmill.engine.config import EngineConfig
from gristmill.errors import GristmillError
from gristmill.model.config import RopeScaling
from gristmill.model.presets import preset
from gristmill.plan.device import device
from gristmill.plan.layouts import Layout
from gristmill.plan.roofline_model import ModelRoofline, plan_roofline
from gristmill.plan.serve import (
    Serving,
    Speculation,
    first_loss,
    plan_serve,
    serving_plots,
    serving_sentences,
    speculation_gain,
)
from gristmill.plan.serve_memory import (
    KV_TYPES,
    WEIGHT_BITS,
    held_tokens,
    kv_bits,
    lognormal_quantile,
    preemption_probability,
    sequences_at_risk,
    served_weight_bytes,
    serving_memory,
    weight_bits,
)
from gristmill.plan.serving import Server, Traffic, ladder, serving_estimate
from gristmill.plan.speculation import speedup
from gristmill.plan.step_time import Efficiency, Load, StepModel

H100 = device("h100-sxm")
LLAMA = preset("llama-3-8b")
FIXED = {"length_spread": 0.0}


def drawn(draw, mean, spread):
    sigma = math.sqrt(math.log1p(spread**2))
    return mean * math.exp(draw.gauss(0, 1) * sigma - sigma**2 / 2)


def met(draw, spread, count):
    """Tokens of sequences that are running at some moment: longer replies are met more often."""
    outputs = [drawn(draw, 300, spread) for _ in range(count)]
    return [drawn(draw, 400, spread) + draw.random() * output for output in draw.choices(outputs, outputs, k=count)]


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_held_tokens_are_those_met_at_a_random_moment(spread):
    draw = random.Random(3)
    seen = met(draw, spread, 40_000)
    mean = sum(seen) / len(seen)
    variance = sum((one - mean) ** 2 for one in seen) / len(seen)
    expected, around = held_tokens(400, 300, spread)
    assert mean == pytest.approx(expected, rel=0.02)
    assert variance == pytest.approx(around, rel=0.1)


def test_preemption_risk_is_how_often_the_cache_runs_over():
    draw = random.Random(5)
    mean, variance = held_tokens(400, 300, 0.5)
    pool = met(draw, 0.5, 40_000)
    for room in (1.0, 1.1):
        tokens = room * 50 * mean
        over = sum(sum(draw.choices(pool, k=50)) > tokens for _ in range(3000)) / 3000
        assert preemption_probability(50, tokens, mean, variance) == pytest.approx(over, abs=0.03)
    safe = sequences_at_risk(tokens, mean, variance, 0.01)
    assert preemption_probability(safe, tokens, mean, variance) <= 0.01
    assert preemption_probability(safe + 1, tokens, mean, variance) > 0.01
    assert preemption_probability(3, 3 * mean, mean, 0.0) == 0
    assert preemption_probability(3, 2 * mean, mean, 0.0) == 1


def test_a_lognormal_quantile_leaves_its_share_above():
    draw = random.Random(7)
    limit = lognormal_quantile(400, 0.7, 2.326)
    assert sum(drawn(draw, 400, 0.7) > limit for _ in range(40_000)) / 40_000 == pytest.approx(0.01, abs=0.002)


def simulate(model, concurrency, prompt, output, step_tokens, seconds):
    """Requests of one length, each followed by another while the next step runs: replies first, then prompts in parts,
    in the order of their arrival. Means of first tokens and of tokens, and tokens a second."""
    draw = random.Random(1)
    # Tokens seen, arrival, first token; at first in all places of their lives.
    running = [[prompt + draw.randrange(output), -1.0, 0.0] for _ in range(concurrency)]
    now, firsts, gaps, done, coming = 0.0, [], [], 0, 0
    while now < seconds:
        load, room, moved = Load(0, 0, 0, 0, 0), step_tokens, []
        for one in running:
            if one[0] >= prompt:
                load = load + Load(1, 1, 1, one[0] + 1, one[0] + 1)
                room -= 1
                moved.append((one, 1))
        for one in running:
            count = min(prompt - one[0], room)
            if one[0] < prompt and count > 0:
                load = load + Load.prefill(count, one[0], last=one[0] + count == prompt)
                room -= count
                moved.append((one, count))
        taken = model.seconds(replace(load, alone=True))  # nothing is launched ahead
        running += [[0, now + draw.random() * taken, 0.0] for _ in range(coming)]
        now, coming = now + taken, 0
        for one, count in moved:
            one[0] += count
            if one[0] == prompt:
                one[2] = now
            if one[0] >= prompt + output - 1:
                if one[1] > seconds / 5:
                    firsts.append(one[2] - one[1])
                    gaps.append((now - one[2]) / (output - 1))
                running.remove(one)
                coming += 1
                done += now > seconds / 5
    return sum(firsts) / len(firsts), sum(gaps) / len(gaps), done * output / (now - seconds / 5)


@pytest.mark.parametrize(
    ("concurrency", "prompt", "output", "step_tokens"),
    [(1, 500, 100, 8192), (16, 500, 100, 8192), (64, 1000, 200, 8192), (32, 3000, 60, 512), (48, 100, 20, 2048)],
)
def test_means_are_those_of_a_simulation(concurrency, prompt, output, step_tokens):
    traffic = Traffic(prompt, output, step_tokens=step_tokens, run_ahead=0, **FIXED)
    server = Server(LLAMA, H100, Layout(), traffic)
    ttft, tpot, written = simulate(server.model, concurrency, prompt, output, step_tokens, seconds=25.0)
    estimate = server.at(concurrency)
    assert estimate.tokens_per_s == pytest.approx(written, rel=0.1)
    assert estimate.tpot_seconds == pytest.approx(tpot, rel=0.1)
    assert estimate.ttft_seconds == pytest.approx(ttft, rel=0.25)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_slow_host_is_waited_for_as_in_a_simulation(concurrency):
    traffic = Traffic(500, 20, run_ahead=0, **FIXED)
    slow = replace(Efficiency.default, prompt_seconds=8e-3, alone_seconds=5e-3)
    server = Server(LLAMA, H100, Layout(), traffic, efficiency=slow)
    _ttft, tpot, written = simulate(server.model, concurrency, 500, 20, 8192, seconds=25.0)
    estimate = server.at(concurrency)
    assert estimate.tokens_per_s == pytest.approx(written, rel=0.1)
    assert estimate.tpot_seconds == pytest.approx(tpot, rel=0.1)


def test_only_a_lone_requests_first_step_waits_where_steps_are_launched_ahead():
    for output in (1, 100):
        prompt = 300
        server = Server(LLAMA, H100, Layout(), Traffic(prompt, output, **FIXED))
        far = [Arrival(10.0 * number, prompt, output) for number in range(3)]
        engine = EngineConfig(num_blocks=400, max_num_seqs=4, max_model_len=1024, run_ahead=1)
        served = simulate_fleet(far, engine, server.model.seconds).served
        assert server.at(1).ttft_seconds == pytest.approx(served[-1].ttft, rel=1e-3)


@pytest.mark.parametrize(("concurrency", "prompt", "output"), [(4, 512, 256), (64, 512, 256), (6, 2000, 200)])
def test_means_are_near_those_of_the_engines_scheduler(concurrency, prompt, output):
    """Requests that come at random at the estimated rate, served by the fleet simulator's replica."""
    spread = 0.5
    estimate = Server(LLAMA, H100, Layout(), Traffic(prompt, output, length_spread=spread)).at(concurrency)
    lengths = Lengths(prompt, spread, 7000), Lengths(output, spread, 1100)
    arrivals = drawn_arrivals(Arriving(estimate.requests_per_s, 700, *lengths), seed=2)
    served = plan_fleet(LLAMA, H100, arrivals, Fleet(replicas=1)).result.served[150:550]
    replies = [(one.tpot, one.arrival.output_tokens - 1) for one in served if one.tpot is not None]
    tpot = sum(seconds * count for seconds, count in replies) / sum(count for _, count in replies)
    assert estimate.tpot_seconds == pytest.approx(tpot, rel=0.15)
    assert estimate.ttft_seconds == pytest.approx(sum(one.ttft for one in served) / len(served), rel=0.25)


@pytest.mark.parametrize(("name", "written", "read"), [("qwen3-0.6b", 19_050, 336_600), ("llama-3-8b", 8_658, 42_500)])
def test_estimates_are_near_a_measured_server(name, written, read):
    """vLLM 0.23 on one H100 SXM: output tokens/s of 256 requests with 100 to 1,024 tokens in and out; prompt tokens/s
    of 64 prompts of 2,048. Nothing was fitted to these."""
    config = preset(name)
    uniform = Traffic(562, 562, length_spread=924 / 12**0.5 / 562)
    assert Server(config, H100, Layout(), uniform).at(256).tokens_per_s == pytest.approx(written, rel=0.15)
    prompts = Server(config, H100, Layout(), Traffic(2048, 1, **FIXED)).at(64)
    assert prompts.requests_per_s * 2048 == pytest.approx(read, rel=0.15)


def test_one_request_waits_for_nobody():
    server = Server(LLAMA, H100, Layout(), Traffic(500, 100, **FIXED))
    estimate = server.at(1)
    assert estimate.ttft_seconds == pytest.approx(server.model.seconds(replace(Load.prefill(500), alone=True)))
    assert estimate.tpot_seconds == pytest.approx(server.model.seconds(Load.decode(1, 550)), rel=1e-3)
    assert estimate.tokens_per_s == pytest.approx(100 / (estimate.ttft_seconds + 99 * estimate.tpot_seconds))


def test_more_requests_write_more_and_wait_longer():
    server = Server(LLAMA, H100, Layout(), Traffic(700, 300))
    estimates = [server.at(count) for count in ladder(server.most)]
    for one, other in itertools.pairwise(estimates):
        assert other.tokens_per_s > one.tokens_per_s * 0.999
        assert other.ttft_seconds > one.ttft_seconds
        assert other.tpot_seconds > one.tpot_seconds
    full, crowded = server.at(server.most), server.at(2 * server.most)
    assert crowded.tokens_per_s == pytest.approx(full.tokens_per_s)
    assert crowded.running == full.running == server.most
    took = [one.concurrency / one.requests_per_s for one in (full, crowded)]
    assert took[1] == pytest.approx(2 * took[0], rel=0.01)
    assert crowded.tpot_seconds == full.tpot_seconds


def test_replies_of_one_token_are_prompts_alone():
    server = Server(LLAMA, H100, Layout(), Traffic(2048, 1, **FIXED))
    many = server.at(64)
    four = server.model.seconds(Load.prefill(2048, sequences=4))
    assert many.requests_per_s == pytest.approx(4 / four)
    assert many.ttft_seconds == pytest.approx(64 / many.requests_per_s)


def test_the_best_concurrency_keeps_the_targets_and_one_more_does_not():
    server = Server(LLAMA, H100, Layout(), Traffic(700, 300, length_spread=0.3))
    best = server.best(ttft_seconds=0.1, tpot_seconds=0.012)
    assert best.ttft_seconds <= 0.1
    assert best.tpot_seconds <= 0.012
    after = server.at(best.concurrency + 1)
    assert after.ttft_seconds > 0.1 or after.tpot_seconds > 0.012
    assert server.best(tpot_seconds=0.001) is None
    free = server.best()
    assert free.tokens_per_s >= 0.95 * server.at(server.most_safe).tokens_per_s
    assert free.preemption_probability <= 0.01


def test_replicas_serve_side_by_side():
    one, two = (serving_estimate(LLAMA, H100, Layout(data=n), Traffic(500, 200), 32 * n) for n in (1, 2))
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)
    assert two.ttft_seconds == pytest.approx(one.ttft_seconds)
    assert two.max_sequences == 2 * one.max_sequences


def test_served_bytes():
    assert served_weight_bytes(preset("llama-3-70b"), weight_bits("int4")) == pytest.approx(39_767_785_472, rel=1e-5)
    assert served_weight_bytes(LLAMA, 16) == 2 * LLAMA.num_parameters
    assert served_weight_bytes(LLAMA, 32) == 4 * LLAMA.num_parameters
    assert kv_bits("fp8", LLAMA) == 8 + 64 / 256
    assert kv_bits("bf16", LLAMA) == 16
    for wrong, ask in (("int3", weight_bits), ("fp4", lambda name: kv_bits(name, LLAMA))):
        with pytest.raises(GristmillError, match="use one of"):
            ask(wrong)


def test_the_cache_is_what_the_engine_takes():
    """The planner's bytes of a block are those of the engine."""
    torch = pytest.importorskip("torch")
    from gristmill.engine.cache import PagedCache

    for name in ("llama-3-8b", "deepseek-v3", "gemma-2-2b", "qwen3-0.6b"):
        config = preset(name)
        for kind, stored in (("auto", "bf16"), ("fp8", "fp8")):
            block = PagedCache.bytes_per_block(config, 32, torch.bfloat16, kind)
            memory = serving_memory(config, H100, Layout(), 4, kv_bits(stored, config))
            assert memory.kv_bytes_per_token * 32 == pytest.approx(block), (name, kind)


def test_tensor_parallelism_shares_weights_and_cache():
    one, two = (serving_memory(LLAMA, H100, Layout(tensor=n), 16, 16) for n in (1, 2))
    assert two.weight_bytes == one.weight_bytes / 2
    assert two.kv_bytes_per_token == one.kv_bytes_per_token / 2
    assert two.kv_tokens > 2 * one.kv_tokens
    with pytest.raises(GristmillError, match=r"--tensor 2, or fewer bits"):
        Server(preset("llama-3-70b"), H100, Layout(), Traffic(500, 500))


def test_a_cached_beginning_is_neither_computed_nor_held_twice():
    plain, cached = (Server(LLAMA, H100, Layout(), Traffic(2000, 200, share)) for share in (0.0, 0.9))
    assert cached.at(8).ttft_seconds < plain.at(8).ttft_seconds / 2
    assert cached.most > plain.most
    assert cached.at(8).prefill_seconds == pytest.approx(cached.model.seconds(Load.prefill(200, 1800)))


def test_guessing_ahead_gains_while_memory_is_the_limit_and_loses_later():
    ideal = StepModel(LLAMA, H100, efficiency=Efficiency.ideal)
    asked = Speculation(4, 0.8, 0.1)
    assert speculation_gain(ideal, asked, 1, 0) == pytest.approx(speedup(0.8, 4, 0.1), rel=0.01)
    model = StepModel(LLAMA, H100)

    def gain(sequences):
        return speculation_gain(model, asked, sequences, 50)

    loss = first_loss(gain, 4096)
    assert gain(loss) < 1 <= gain(loss - 1)
    assert first_loss(lambda sequences: 2.0, 4096) is None
    assert first_loss(lambda sequences: 0.5, 4096) == 1


def test_a_plan_has_every_part_and_says_what_it_stands_on():
    serving = Serving(Traffic(512, 256, 0.25), concurrency=64, weights="int4", kv="fp8")
    found = {quantity.id: quantity for quantity in plan_serve(LLAMA, H100, serving)}
    groups = {name.partition(".")[0] for name in found}
    assert groups == {
        "memory", "kv", "sequences", "at", "best", "prefix_cache", "chunked_prefill", "quantization", "speculation",
        "start",
    }  # fmt: skip
    assert all(math.isfinite(quantity.value) and quantity.formula for quantity in found.values())
    assert found["kv.per_token"].value == 32 * 2 * 8 * 128 * (8 + 64 / 256) / 8
    assert found["prefix_cache.ttft_90"].value < found["prefix_cache.ttft_25"].value == found["at.ttft"].value
    assert found["quantization.tpot_int4_kv_fp8"].value == found["at.tpot"].value
    assert found["speculation.gain_1"].value > found["speculation.gain"].value
    assert found["start.read"].value == pytest.approx(served_weight_bytes(LLAMA, weight_bits("int4")) / 5e9)
    assert any("lognormal" in words for words in serving_sentences(LLAMA, H100, serving))
    assert [plot.id for plot in serving_plots(LLAMA, H100, serving)] == ["serving.throughput", "serving.times"]


def test_parts_of_prompts_shorten_the_gap_and_lengthen_the_wait():
    serving = Serving(Traffic(6000, 200), concurrency=16)
    found = {quantity.id: quantity.value for quantity in plan_serve(LLAMA, H100, serving)}
    assert found["chunked_prefill.gap_512"] < found["chunked_prefill.gap_2048"] < found["chunked_prefill.gap_8192"]
    assert found["chunked_prefill.ttft_512"] > found["chunked_prefill.ttft_8192"]


def test_no_more_run_than_a_step_has_tokens_for():
    for most in (1, 2, 30):
        estimate = Server(LLAMA, H100, Layout(), Traffic(300, 20, step_tokens=most, **FIXED)).at(100)
        assert estimate.running == min(most, 100)
        steps_per_s = 1 / estimate.decode_step_seconds
        assert estimate.requests_per_s * (300 + 20 - 1) <= most * steps_per_s * 1.08  # prompts need no head


def test_a_prompt_of_many_parts_is_reckoned_by_some_of_them():
    long = LLAMA.model_copy(update={"max_seq_len": 200_000})
    server = Server(long, H100, Layout(), Traffic(120_000, 10, step_tokens=500, **FIXED))
    steps = sum(
        server.model.seconds(Load.prefill(500, start, last=start == 119_500)) for start in range(0, 120_000, 500)
    )
    assert server.at(1).ttft_seconds == pytest.approx(steps, rel=1e-3)


def test_windows_and_latent_attention_make_the_cache_smaller():
    windowed = {q.id: q.value for q in plan_serve(preset("gemma-2-2b"), H100, Serving(Traffic(6000, 500)))}
    assert windowed["kv.request_windowed"] < windowed["kv.request"]
    latent = Serving(Traffic(600, 500), 8, "fp8", layout=Layout(tensor=8))
    found = {q.id: q.value for q in plan_serve(preset("deepseek-v3"), device("mi300x"), latent)}
    assert found["kv.per_token"] == 61 * 576 * 2


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Traffic(0, 5), "--prompt-tokens"),
        (lambda: Traffic(5, -1), "--output-tokens"),
        (lambda: Traffic(math.inf, 1), "--prompt-tokens"),
        (lambda: Traffic(5, 5, 1.5), "--cached-prompt-share"),
        (lambda: Traffic(5, 5, 0, math.nan), "--length-spread"),
        (lambda: Speculation(0), "--draft-tokens"),
        (lambda: Speculation(2, 1.2), "--acceptance"),
        (lambda: Speculation(2, 0.5, math.inf), "--draft-cost"),
        (lambda: Serving(Traffic(5, 5), ttft_seconds=0), "--ttft"),
        (lambda: Serving(Traffic(5, 5), read_bytes_per_s=math.nan), "--read"),
        (lambda: plan_serve(LLAMA, H100, Serving(Traffic(5, 5), concurrency=0)), "--concurrency"),
        (lambda: plan_serve(LLAMA, H100, Serving(Traffic(5, 5), utilization=0)), "--memory-utilization"),
        (lambda: plan_serve(LLAMA, H100, Serving(Traffic(5, 9000))), "this model takes 8192"),
        (lambda: plan_serve(LLAMA, H100, Serving(Traffic(5, 5), weights="int3")), "int3"),
        (lambda: plan_serve(LLAMA, H100, Serving(Traffic(5, 5), layout=Layout(tensor=3))), "does not divide"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, word):
    with pytest.raises(GristmillError, match=word):
        make()


@settings(max_examples=60, deadline=None)
@given(
    model_configs(),
    st.integers(1, 4096),
    st.integers(1, 3000),
    st.sampled_from(sorted(WEIGHT_BITS)),
    st.sampled_from(sorted(KV_TYPES)),
)
def test_every_architecture_has_finite_answers(config, count, length, weights, kv):
    """Or a sentence that says why not."""
    on = device("a100-80gb-sxm")
    bits = weight_bits(weights), kv_bits(kv, config)
    rows = plan_roofline(ModelRoofline(config, on, *bits), count, length)
    if config.causal and config.max_seq_len > 1:
        half = config.max_seq_len // 2
        serving = Serving(Traffic(half, half, 0.3, 0.7), count, weights, kv)
        rows += plan_serve(config, on, serving)
    else:
        with pytest.raises(GristmillError, match=r"both directions|this model takes 1"):
            plan_serve(config, on, Serving(Traffic(1, 1), count, weights, kv))
    assert all(math.isfinite(row.value) and row.value >= 0 for row in rows), [row for row in rows if row.value < 0]
    assert len({row.id for row in rows}) == len(rows)


def test_the_planner_knows_the_engines_limits_and_what_it_records():
    """They stand a floor above the planner, which keeps its own."""
    pytest.importorskip("torch")
    from gristmill.engine import limits
    from gristmill.engine.fused import unfused
    from gristmill.engine.graphs import unrecorded
    from gristmill.model.presets import preset_names
    from gristmill.plan import serve_memory
    from gristmill.plan.recorded_steps import is_recorded

    assert (serve_memory.STEP_TOKENS, serve_memory.SLOTS) == (limits.GPU_TOKENS, limits.GPU_SEQS)
    assert (serve_memory.CPU_STEP_TOKENS, serve_memory.CPU_SLOTS) == (limits.CPU_TOKENS, limits.CPU_SEQS)
    assert (serve_memory.UTILIZATION, serve_memory.CPU_UTILIZATION) == (limits.GPU_SHARE, limits.CPU_SHARE)
    assert serve_memory.BLOCK_TOKENS == limits.GPU_BLOCK
    dynamic = preset("llama-3-8b").model_copy(
        update={"rope_scaling": RopeScaling(kind="dynamic", factor=2.0, original_max_seq_len=8192)}
    )
    for config in (*map(preset, preset_names()), dynamic):
        assert is_recorded(config) == (unrecorded(config) is None and unfused(config) is None)
