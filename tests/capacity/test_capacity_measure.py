"""Steps of a real engine are timed with their loads; a trace served for real is noted as a simulated one is."""

import random
import re

import pytest
from engine_fixtures import make_model, make_tokenizer

from gristmill.capacity.fleet import simulate
from gristmill.capacity.measure import Sample, Shape, engine_fit, measured_steps, noted, shapes, timed
from gristmill.capacity.replay import replay
from gristmill.capacity.traffic import Arrival, Lengths, Traffic, drawn
from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler
from gristmill.plan.device import Device
from gristmill.plan.step_time import Efficiency, StepModel


@pytest.fixture
def engine_of(tmp_path):
    def make(**changes):
        limits = {"max_num_seqs": 4, "max_model_len": 64, "max_num_batched_tokens": 16, "num_blocks": 40}
        config = EngineConfig(**(limits | {"block_size": 8} | changes))
        return Engine(make_model().requires_grad_(False), make_tokenizer(tmp_path), config)

    return make


class Clock:
    """Every look at it costs a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_each_step_has_its_own_time(engine_of, run_ahead):
    engine = engine_of(run_ahead=run_ahead)
    samples = timed(engine, Shape(1, 20, 4), random.Random(0), Clock())
    assert [load.tokens for load, *_ in samples] == [16, 4, 1, 1, 1]
    assert [load.logits for load, *_ in samples] == [0, 1, 1, 1, 1]
    assert all(taken >= 1 for _, taken, _ in samples)
    looks = 2 * len(samples) + 1 + 2 * run_ahead  # one a schedule (also the empty ones), one a read
    assert sum(taken for _, taken, _ in samples) <= looks + len(samples)
    assert engine.scheduler.schedule.__func__ is Scheduler.schedule


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_steps_know_whether_the_device_waited_for_them_and_read_prompts(engine_of, run_ahead):
    samples = timed(engine_of(run_ahead=run_ahead), Shape(1, 20, 4), random.Random(0))
    assert [load.alone for load, *_ in samples] == [True, *[run_ahead == 0] * 4]
    assert [load.prompts for load, *_ in samples] == [1, 1, 0, 0, 0]


def test_on_a_gpu_a_step_ends_when_the_device_is_done_with_it(engine_of, monkeypatch):
    """A made-up device takes a hundred seconds a step; the host, a second at each look at the clock, is far ahead."""
    free = 0.0

    def marks(device, clock):
        def mark():
            nonlocal free
            ended = free = max(clock.now, free) + 100
            return lambda: ended

        return mark

    monkeypatch.setattr("gristmill.capacity.measure.device_marks", marks)
    engine, clock = engine_of(run_ahead=1), Clock()
    first, *others = timed(engine, Shape(1, 20, 4), random.Random(0), clock)
    assert first.load.alone
    assert first.load.busy == 0
    assert 101 <= first.seconds <= 103  # from when the request came
    assert [sample.seconds for sample in others] == [100] * 4
    assert all(90 < sample.load.busy < 400 for sample in others)
    assert all(sample.read == 0 for sample in others)  # this host does not wait for the device


@pytest.mark.parametrize(("run_ahead", "missing"), [(0, [2]), (1, [1, 2])])
def test_a_step_that_was_recorded_is_no_sample_nor_is_the_one_it_delayed(engine_of, run_ahead, missing):
    engine = engine_of(run_ahead=run_ahead)
    launch, launched = engine.runner.launch, []

    def recording(step, *drafts):
        launched.append(launch(step, *drafts))
        launched[-1].recorded = len(launched) == 3
        return launched[-1]

    engine.runner.launch = recording
    samples = timed(engine, Shape(1, 20, 5), random.Random(0))
    cached = [16, 20, 21, 22, 23, 24]
    assert [load.cached for load, *_ in samples] == [at for number, at in enumerate(cached) if number not in missing]


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_the_simulator_counts_steps_as_the_engine_does(engine_of, run_ahead):
    together, simulated = [Arrival(0.0, prompt, 5) for prompt in (8, 20, 30, 9, 17)], []
    engine = engine_of(run_ahead=run_ahead)
    simulate(together, engine.config, lambda load: simulated.append(load) or 1.0)
    with noted(engine, Clock()) as steps:
        for number, one in enumerate(together):
            ids = [number + 1] * one.prompt_tokens
            engine.add_request(ids, SamplingParams(max_tokens=one.output_tokens, ignore_eos=True, temperature=0))
        while engine.has_work:
            engine.step()
            steps.read()
    planned = [load for load, *_ in steps.samples]
    assert planned == simulated
    assert {load.alone for load in planned} == ({True} if run_ahead == 0 else {True, False})
    assert any(load.prompts > 1 for load in planned)


def test_others_follow_and_their_prompts_share_a_step_with_replies(engine_of):
    samples = timed(engine_of(), Shape(3, 8, 8, more=5), random.Random(0))
    mixed = [load for load, *_ in samples if load.sequences > 1 and load.tokens > load.sequences]
    assert len(mixed) >= 3
    assert sum(load.logits for load, *_ in samples) >= 8 * 4  # eight requests, each at least half of eight tokens
    contexts = {load.cached / load.sequences for load, *_ in samples if load.tokens == load.sequences > 1}
    assert len(contexts) > 5


def test_shapes_span_the_limits_and_fit_them(engine_of):
    found = shapes(64, 4, 280)
    assert {shape.count for shape in found if shape.output > 1} >= {1, 2, 4}
    assert max(shape.prompt for shape in found) == 63
    assert all(shape.prompt + shape.output <= 64 for shape in found)
    assert all(shape.count * (shape.prompt + shape.output) <= 280 for shape in found)
    assert [shape.tokens for shape in found] == sorted(shape.tokens for shape in found)
    engine = engine_of(num_blocks=20)
    assert len(measured_steps(engine, seconds=30.0)) > 40
    assert not engine.has_work


def test_an_engine_that_keeps_to_a_model_is_found_to_do_so(engine_of):
    config = make_model().config
    here = Device("cpu", "a processor", 8e9, 1e10, {"fp32": 1e11}, label="measured")
    truth = StepModel(config, here, weight_bits=32, kv_bits=32, head_bits=32, efficiency=Efficiency(compute=0.4))
    samples = [Sample(load, truth.seconds(load)) for load, *_ in measured_steps(engine_of(), seconds=30.0)]
    found = engine_fit(samples, config, here, "small", "float32", 32)
    assert found.error < 0.02
    assert found.samples == len(samples)
    assert Efficiency(**found.efficiency).step_seconds >= 0


def test_slow_steps_count_in_what_an_engine_takes_in_all(engine_of):
    """One step in five takes three times as long, which a fit alone would leave out; one that something held up for
    longer says nothing."""
    config = make_model().config
    here = Device("cpu", "a processor", 8e9, 1e10, {"fp32": 1e11}, label="measured")
    truth = StepModel(config, here, weight_bits=32, kv_bits=32, head_bits=32, efficiency=Efficiency(compute=0.4))
    loads = [load for load, *_ in measured_steps(engine_of(), seconds=30.0)]
    samples = [Sample(load, truth.seconds(load) * (3 if number % 5 == 0 else 1)) for number, load in enumerate(loads)]
    stalled = [*samples, *(Sample(load, 40 * truth.seconds(load)) for load in loads[:3])]
    found = Efficiency(**engine_fit(stalled, config, here, "small", "float32", 32).efficiency)
    model = StepModel(config, here, weight_bits=32, kv_bits=32, head_bits=32, efficiency=found)
    assert sum(model.seconds(load) for load in loads) == pytest.approx(sum(taken for _, taken, _ in samples), rel=1e-3)


def test_when_time_is_over_the_rest_is_said_to_be_left_out(engine_of):
    said = []
    assert measured_steps(engine_of(), seconds=0.0, say=said.append) == []
    assert re.fullmatch(r"0 s are over: (\d+) of \1 shapes are left out", said[0])


def test_in_little_time_small_and_large_shapes_are_timed_in_turns(engine_of, monkeypatch):
    clock, asked = Clock(), []

    def serve(engine, shape, *_):
        asked.append(shape.tokens)
        clock.now += shape.tokens
        return []

    monkeypatch.setattr("gristmill.capacity.measure.perf_counter", clock)
    monkeypatch.setattr("gristmill.capacity.measure.timed", serve)
    planned = [shape.tokens for shape in shapes(64, 4, 320)]
    measured_steps(engine_of(), seconds=10 * max(planned), say=lambda line: None)
    assert asked[1] == planned[0]  # behind the first, which is thrown away
    assert asked[2] == max(planned)
    assert asked[3] == planned[1]
    asked.clear()
    measured_steps(engine_of(), seconds=5 * planned[0], say=lambda line: None)
    assert asked[1:] == sorted(asked[1:])  # nothing large: it would take all the time


def test_a_trace_is_served_whole_and_as_the_simulator_orders_it(engine_of):
    traffic = Traffic(200.0, 12, Lengths(10, 0.5, 30), Lengths(4, 0.5, 12), prefix_share=0.5, prefix_tokens=16)
    arrivals = drawn(traffic)
    served = replay(engine_of(), arrivals)
    assert [one.arrival for one in served] == arrivals
    for one in served:
        assert one.arrival.seconds <= one.queued <= one.started <= one.first <= one.last
    assert any(one.cached_tokens == 16 for one in served)
    together = [Arrival(0.0, 8, 5) for _ in range(3)]
    real = replay(engine_of(), together)
    simulated = simulate(together, engine_of().config, lambda load: 1.0).served
    assert [(one.first == real[0].first) for one in real] == [one.first == simulated[0].first for one in simulated]
    assert len({one.last for one in real}) == len({one.last for one in simulated})
