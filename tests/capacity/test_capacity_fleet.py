"""The simulator against queueing theory, against the real engine step by step, and its own rules."""

import math
import random

import pytest
from engine_fixtures import make_model, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.capacity.fleet import Autoscaling, FleetSettings, simulate
from gristmill.capacity.replica import Replica, Served, load_of
from gristmill.capacity.report import Objective, percentile, summary
from gristmill.capacity.traffic import Arrival, Lengths, Traffic, drawn
from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler
from gristmill.errors import GristmillError


def config_of(**changes):
    limits = {"max_num_seqs": 4, "max_model_len": 64, "max_num_batched_tokens": 16, "block_size": 4, "num_blocks": 40}
    return EngineConfig(**(limits | changes))


def one_second(load):
    return 1.0


def test_one_sequence_at_a_time_waits_as_an_m_d_1_queue_does():
    busy = 0.7
    arrivals = drawn(Traffic(rate=busy, requests=20_000, prompt=Lengths(4), output=Lengths(1)), seed=1)
    result = simulate(arrivals, config_of(max_num_seqs=1, max_num_batched_tokens=4), one_second)
    waits = [served.ttft - 1 for served in result.served]
    expected = busy / (2 * (1 - busy))  # Pollaczek-Khinchine, service of one second
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.08)
    assert summary(result).device_utilization == pytest.approx(busy, rel=0.03)


def test_requests_that_come_together_share_every_step():
    arrivals = [Arrival(0.0, 4, 5) for _ in range(4)]
    result = simulate(arrivals, config_of(), one_second)
    assert result.steps == 5
    assert [(served.first, served.last) for served in result.served] == [(1.0, 5.0)] * 4
    assert {served.tpot for served in result.served} == {1.0}


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_tokens_are_handed_out_some_time_after_their_step(run_ahead):
    arrivals, late = [Arrival(0.0, 4, 5), Arrival(20.0, 4, 3)], FleetSettings(read_seconds=0.25)
    waits = 1 if run_ahead else 1.25  # where nothing is launched ahead the device waits until the last one is read
    for served in simulate(arrivals, config_of(run_ahead=run_ahead), one_second, late).served:
        assert served.first == served.arrival.seconds + 1.25
        assert served.last == served.first + (served.arrival.output_tokens - 1) * waits


def test_a_step_knows_how_long_the_device_is_busy_when_it_is_planned():
    loads = []
    arrivals = [Arrival(0.0, 4, 6)]
    simulate(arrivals, config_of(run_ahead=1), lambda load: loads.append(load) or 1.0, FleetSettings(read_seconds=0.25))
    # The second is planned with the first, each later one when the one before the last has been read.
    assert [load.busy for load in loads] == [0, 1, *[0.75] * 4]
    assert [load.alone for load in loads] == [True, *[False] * 5]


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_steps_are_those_of_the_real_engine(run_ahead, seed, tmp_path, monkeypatch):
    """Both are given the same requests before the same steps; a simulated step takes a second."""
    draw = random.Random(seed)
    config = config_of(run_ahead=run_ahead, num_blocks=20, max_model_len=40, prefix_caching=False)
    arrivals = [
        Arrival(draw.choice([0, 0, 0, 1, 3, 6]) + 0.5 * (number > 3), draw.randrange(1, 25), draw.randrange(1, 14))
        for number in range(9)
    ]
    arrivals.sort(key=lambda arrival: arrival.seconds)
    log = []
    schedule = Scheduler.schedule

    def noted(self):
        step = schedule(self)
        log.append(step and [(c.request.id, c.start, c.num_tokens, c.samples) for c in step.chunks])
        return step

    monkeypatch.setattr(Scheduler, "schedule", noted)
    replica, now, left = Replica(0, config, one_second), 0.0, [Served(arrival) for arrival in arrivals]
    turns = []  # how many requests were there before each
    while now is not None or left:
        now = left[0].arrival.seconds if now is None else now
        while left and left[0].arrival.seconds <= now:
            replica.inbox.append(left.pop(0))
        turns.append(len(arrivals) - len(left))
        now, _ = replica.turn(now)
    simulated, log[:] = list(log), []
    engine = Engine(make_model().requires_grad_(False), make_tokenizer(tmp_path), config)
    added = 0
    for there in turns:
        for arrival in arrivals[added:there]:
            params = SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True, temperature=0)
            engine.add_request([5] * arrival.prompt_tokens, params)
        added = there
        engine.step()
    while engine.has_work:
        engine.step()
    assert [step for step in simulated if step] == [step for step in log if step]
    assert simulated != [None] * len(simulated)


traffics = st.builds(
    Traffic,
    rate=st.floats(0.05, 5),
    requests=st.integers(1, 60),
    prompt=st.builds(Lengths, st.floats(1, 20), st.sampled_from([0, 1]), st.just(30)),
    output=st.builds(Lengths, st.floats(1, 12), st.sampled_from([0, 1]), st.just(20)),
    process=st.sampled_from(["poisson", "constant", "bursts", "diurnal"]),
    day_seconds=st.just(60.0),
    prefix_share=st.sampled_from([0.0, 0.5]),
    prefix_tokens=st.just(12),
    prefix_groups=st.integers(1, 3),
)
scalings = st.builds(
    Autoscaling,
    target=st.floats(0.5, 4),
    least=st.integers(0, 2),
    most=st.integers(2, 4),
    look_seconds=st.floats(0.5, 9),
    start_seconds=st.floats(0, 20),
    cooldown_seconds=st.floats(0, 30),
)


@settings(max_examples=40, deadline=None)
@given(traffics, st.none() | scalings, st.sampled_from(["least-loaded", "round-robin", "prefix"]), st.integers(0, 1))
def test_every_request_is_served_once_and_in_an_order_that_can_be(traffic, scaling, router, run_ahead):
    fleet = FleetSettings(replicas=2, router=router, overhead_seconds=0.1, autoscaling=scaling)
    config = config_of(run_ahead=run_ahead, num_blocks=18)
    results = [simulate(drawn(traffic, seed=3), config, one_second, fleet) for _ in range(2)]
    assert [vars_of(served) for served in results[0].served] == [vars_of(served) for served in results[1].served]
    result = results[0]
    for served in result.served:
        assert served.arrival.seconds + 0.1 <= served.queued + 1e-9
        assert served.queued <= served.started + 1e-9
        assert served.started + 1 <= served.first + 1e-9
        assert served.last - served.first >= served.arrival.output_tokens - 1 - 1e-6
        assert result.seconds >= served.last
    counts = [count for _, count in result.replicas_over_time[:-1]]
    if scaling is None:
        assert set(counts) == {2}
    assert result.replica_seconds <= max(counts) * result.seconds + 1e-6
    assert result.busy_seconds <= result.replica_seconds + 1e-6
    found = summary(result, Objective(5, 2))
    assert 0 <= found.kept_share <= 1
    assert found.goodput_requests_per_s == pytest.approx(found.kept_share * found.requests_per_s)


def vars_of(served):
    return [getattr(served, name) for name in Served.__slots__]


def test_an_idle_fleet_scales_to_zero_and_holds_the_request_that_wakes_it():
    scaling = Autoscaling(target=4, least=0, most=3, look_seconds=1, start_seconds=10, cooldown_seconds=5)
    arrivals = [Arrival(0.0, 4, 2), Arrival(100.0, 4, 2)]
    result = simulate(arrivals, config_of(), one_second, FleetSettings(replicas=0, autoscaling=scaling))
    assert [served.ttft for served in result.served] == [11.0, 11.0]  # ten to wake, one for the step
    assert min(count for _, count in result.replicas_over_time) == 0
    assert result.replica_seconds < 40


def test_more_come_when_load_grows_and_go_when_it_has_gone():
    scaling = Autoscaling(target=2, least=1, most=4, look_seconds=1, start_seconds=2, cooldown_seconds=8)
    arrivals = [Arrival(0.1 * n, 4, 30) for n in range(40)] + [Arrival(400.0, 4, 1)]
    result = simulate(arrivals, config_of(), one_second, FleetSettings(autoscaling=scaling))
    counts = [count for _, count in result.replicas_over_time]
    assert max(counts) == 4
    assert counts[-2] == 1  # the last is the end
    alone = simulate(arrivals, config_of(), one_second)
    assert summary(result).ttft[99] < summary(alone).ttft[99]


def test_a_router_that_knows_prefixes_hits_the_caches_more_often():
    traffic = Traffic(1.2, 400, Lengths(4), Lengths(3), prefix_share=1.0, prefix_tokens=36, prefix_groups=8)
    hits = {}
    for router in ("round-robin", "prefix"):
        fleet = FleetSettings(replicas=4, router=router)
        result = simulate(drawn(traffic), config_of(num_blocks=30), one_second, fleet)
        hits[router] = summary(result).cache_hit_share
    assert hits["prefix"] > hits["round-robin"] + 0.2


def test_what_a_step_computes_is_added_up():
    replica = Replica(0, config_of(), one_second)
    seen = []
    replica.seconds = lambda load: seen.append(load) or 1.0
    for prompt, output in ((10, 3), (9, 2)):
        replica.inbox.append(Served(Arrival(0.0, prompt, output)))
    now = 0.0
    while now is not None:
        now, _ = replica.turn(now)
    first, second, third = seen
    assert (first.tokens, first.sequences, first.logits) == (16, 2, 1)  # ten, and six of nine
    assert (first.pairs, first.cached) == (55 + 21, 16)
    assert (second.tokens, second.sequences, second.logits) == (4, 2, 2)
    assert (second.pairs, second.cached) == (11 + 3 * 6 + 6, 11 + 9)
    assert (third.tokens, third.pairs, third.cached) == (2, 12 + 10, 12 + 10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": FleetSettings(replicas=0)}, "replicas must be at least 1, not 0"),
        ({"settings": FleetSettings(router="random")}, "router 'random' is not known"),
        ({"settings": FleetSettings(overhead_seconds=math.nan)}, "overhead_seconds"),
        ({"settings": FleetSettings(read_seconds=-1)}, "read_seconds must be 0 or more, not -1"),
        ({"settings": FleetSettings(autoscaling=Autoscaling(target=0))}, "target"),
        ({"settings": FleetSettings(autoscaling=Autoscaling(target=1, least=3, most=2))}, "from 3 to 2"),
        ({"settings": FleetSettings(autoscaling=Autoscaling(target=1, look_seconds=0))}, "look_seconds"),
        ({"arrivals": [Arrival(0, 60, 5)]}, "60 [+] 5 tokens is longer than the context of 64"),
        ({"arrivals": []}, "no request"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    given = {"arrivals": [Arrival(0, 4, 1)], "config": config_of(), "seconds": one_second} | change
    with pytest.raises(GristmillError, match=says):
        simulate(**given)


def test_percentiles_lie_on_straight_lines():
    assert [percentile([4, 1, 2, 3], percent) for percent in (0, 50, 100)] == [1, 2.5, 4]
    assert math.isnan(percentile([], 50))


def test_load_of_a_real_step(tmp_path):
    engine = Engine(make_model().requires_grad_(False), make_tokenizer(tmp_path), config_of(run_ahead=0))
    loads = []
    schedule = engine.scheduler.schedule

    def noted():
        step = schedule()
        if step is not None:
            loads.append(load_of(step))
        return step

    engine.scheduler.schedule = noted
    engine.add_request([5] * 7, SamplingParams(max_tokens=3, ignore_eos=True, temperature=0))
    while engine.has_work:
        engine.step()
    assert [(load.tokens, load.logits, load.pairs, load.cached) for load in loads] == [
        (7, 1, 28, 7), (1, 1, 8, 8), (1, 1, 9, 9)
    ]  # fmt: skip
