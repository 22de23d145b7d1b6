"""Decoding steps recorded once and replayed: the code around CUDA graphs, with a recording that runs again on a CPU."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from engine_fixtures import Knowing, Recording, check_tables, params_of

from gristmill.engine import graphs as graphs_module
from gristmill.engine.config import EngineConfig
from gristmill.engine.draft_steps import Planned, idle_draft
from gristmill.engine.engine import Engine
from gristmill.engine.fused import FusedDecoder
from gristmill.engine.graphs import DecodeGraphs, bucket
from gristmill.engine.prompt_steps import Reading, Size
from gristmill.engine.request import Request
from gristmill.engine.sampler import Asked, Sampler
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.sending import Copied
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.kernels.decode_tables import decode_inputs, keep_drawn
from gristmill.kernels.sampling import Need
from gristmill.plan.recorded_steps import recorded_size


@pytest.fixture(autouse=True)
def copied_at_once(monkeypatch):
    """A CPU reads drawn tokens where they lie; of a GPU's they are copied in the order of its work, before the next
    replay writes them again."""

    real = Copied.of

    def of(parts):
        return real(parts) if parts[0].is_cuda else Copied([part.clone() for part in parts])

    monkeypatch.setattr(Copied, "of", of)


def engine_of(model, tokenizer, replayed, **changes):
    config = EngineConfig(
        **{"max_num_seqs": 6, "max_model_len": 48, "max_num_batched_tokens": 32, "block_size": 4, "num_blocks": 40}
        | changes
    )
    engine = Engine(model, tokenizer, config)
    runner = engine.runner
    runner.fused = FusedDecoder(model)  # on both sides, so that rounding is the same
    if replayed:
        with torch.inference_mode():
            runner.graphs = DecodeGraphs(config.max_num_seqs, config.max_num_seqs, Recording())
    return engine


def play(engine, seed):
    """Requests that come, go and are aborted at random; what each gave."""
    rng = random.Random(seed)
    shared = [rng.randrange(269) for _ in range(9)]
    requests = []
    for step in range(200):
        if step < 40 and rng.random() < 0.4:
            ids = shared[: rng.randint(1, 9)] + [rng.randrange(269) for _ in range(rng.randint(1, 12))]
            requests.append(engine.add_request(ids, params_of(rng)))
        if requests and rng.random() < 0.03:
            engine.abort(rng.choice(requests))
        engine.step()
    while engine.has_work:
        engine.step()
    return [
        # An aborted one stops where the host was, which depends on how far steps run ahead.
        (r.output_ids, r.logprobs, r.top_logprobs, r.finish_reason)
        for r in requests
        if r.finish_reason != "abort"
    ]


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("blocks", [40, 20])  # few: requests are preempted
@pytest.mark.parametrize("seed", range(4))
def test_replayed_steps_give_what_launched_ones_give(model, tokenizer, seed, blocks, run_ahead):
    plain = play(engine_of(model, tokenizer, False, num_blocks=blocks, run_ahead=run_ahead), seed)
    engine = engine_of(model, tokenizer, True, num_blocks=blocks, run_ahead=run_ahead)
    played = play(engine, seed)
    recording = engine.runner.graphs._capture
    assert recording.replays > 20
    assert len(recording.recorded) == len(set(recording.recorded)), "a kind of step was recorded twice"
    sizes = {size for kind in recording.recorded for size in kind if isinstance(size, Size)}
    assert {bool(size.decoding) for size in sizes} == {False, True}, "prompts alone, and beside what decodes"
    for mine, expected in zip(played, plain, strict=True):
        assert mine[0] == expected[0]
        assert mine[1] == pytest.approx(expected[1], abs=1e-4)
        assert mine[3] == expected[3]


@pytest.mark.parametrize("seed", range(3))
def test_steps_ahead_give_the_same(model, tokenizer, seed):
    """Without aborts, whose moment differs."""
    found = []
    for replayed, ahead in ((False, 0), (True, 1)):
        engine = engine_of(model, tokenizer, replayed, run_ahead=ahead)
        rng = random.Random(seed)
        requests = [
            engine.add_request([rng.randrange(269) for _ in range(rng.randint(1, 14))], params_of(rng))
            for _ in range(15)
        ]
        while engine.has_work:
            engine.step()
        found.append([(r.output_ids, r.finish_reason) for r in requests])
    assert found[0] == found[1]


def test_an_engine_that_is_no_more_leaves_no_cache_behind(model, tokenizer):
    """Training runs without the garbage collector, and a cache is nearly all of a GPU."""
    engine = engine_of(model, tokenizer, False)
    engine.runner.graphs = DecodeGraphs(6, 6, model=model)
    cache = weakref.ref(engine.runner.cache)
    gc.disable()
    try:
        del engine
        assert cache() is None
    finally:
        gc.enable()


def test_a_full_context_is_filled_to_its_end(model, tokenizer):
    engine = engine_of(model, tokenizer, True, run_ahead=1)
    request = engine.add_request([5, 6, 7], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert request.num_tokens == 48
    assert request.finish_reason == "length"


def test_buckets_hold_their_rows_and_few_more():
    for most in (1, 6, 48, 300):
        for rows in range(1, most + 1):
            size = bucket(rows, most)
            assert rows <= size <= most
            assert size - rows < max(8, rows / 3), (rows, size)
            assert bucket(size, most) == size


def test_the_idle_row_reads_and_writes_nothing():
    tokens = torch.arange(20).view(4, 5)
    places = torch.tensor([2, 4, -1, -1])
    slots = torch.tensor([1, 3, 0, 3], dtype=torch.int32)
    found = decode_inputs(tokens, places, slots)
    assert found.positions_B.tolist() == [4, -1, 2, -1]
    assert found.lengths_B.tolist() == [5, 0, 3, 0]
    assert found.ids_B.tolist()[::2] == [9, 2]
    before = tokens.clone()
    keep_drawn(tokens, places, slots, torch.tensor([100, 101, 102, 103]))
    assert places.tolist() == [3, 5, -1, -1]
    before[0, 3] = 102  # the drawn one of slot 1 has no place: its row is full
    assert torch.equal(tokens, before)


def test_the_tables_kernels_are_their_reference():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("test_engine_graphs_gpu.py runs them on the GPU")
    check_tables("cpu")


@pytest.mark.parametrize("blocks", [40, 20])  # few: requests are preempted
@pytest.mark.parametrize("seed", range(4))
def test_drafts_between_replayed_steps(model, tokenizer, seed, blocks):
    """Steps that check drafts are recorded too, others replayed between them; where a draft was wrong, or a step went
    kernel by kernel, the next one goes on behind it. Some rows have no draft, some come to the end of the context."""
    found, replies = [], {}
    for replayed, speculation in ((False, None), (True, SpeculationConfig(num_tokens=5))):
        engine = engine_of(
            model, tokenizer, replayed, run_ahead=int(replayed), speculation=speculation, num_blocks=blocks
        )
        if speculation is not None:  # by turns, and not by what pays
            engine.speculator.control.allows = lambda batch, engine=engine: engine.num_steps % 6 < 4
            engine.speculator.proposer = Knowing(replies, random.Random(seed))
        rng = random.Random(seed)
        requests = []
        for number in range(10):
            params = {"temperature": 0} if number % 2 else {"temperature": 0.2, "top_k": 5, "seed": number}
            if number == 7:
                params |= {"logprobs": True, "top_logprobs": 1}  # steps with it go kernel by kernel
            text = [rng.randrange(269) for _ in range(rng.randint(3, 30))]
            tokens = 60 if number % 3 else rng.randint(1, 20)
            requests.append(engine.add_request(text, SamplingParams(max_tokens=tokens, ignore_eos=True, **params)))
        while engine.has_work:
            engine.step()
        found.append([(request.output_ids, request.finish_reason, request.logprobs) for request in requests])
        replies = {tuple(request.prompt_ids): request.output_ids for request in requests}
    kinds = {kind[:-1] for kind in engine.runner.graphs._capture.recorded}
    assert {len(kind) for kind in kinds} == {1, 2, 3}, "steps of all kinds were recorded, of prompts too"
    assert {kind[1] for kind in kinds if len(kind) == 2} <= {3 + 2, 3 + 5}
    figures = engine.speculation
    assert figures.drafts > 20
    assert figures.draft_tokens / 3 < figures.accepted_tokens < figures.draft_tokens, "none was wrong, or too many"
    assert max(request.num_tokens for request in requests) == 48
    for plain, drafted in zip(*found, strict=True):
        assert plain[:2] == drafted[:2]
        assert plain[2] == pytest.approx(drafted[2], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_forms_are_part_of_replayed_steps(model, tokenizer, seed):
    pytest.importorskip("llguidance")
    found = []
    for replayed in (False, True):
        engine = engine_of(model, tokenizer, replayed, run_ahead=int(replayed))
        rng = random.Random(seed)
        requests = []
        for number in range(9):
            form = [{"regex": "[abc]{2,9}"}, {"choice": ["river", "ripple", "stone"]}, {}][number % 3]
            tokens = rng.randint(3, 14) if form else 30 + number  # the last ones are alone, however late the forms come
            params = SamplingParams(max_tokens=tokens, seed=number, temperature=0.9, ignore_eos=not form, **form)
            requests.append(engine.add_request([rng.randrange(269) for _ in range(rng.randint(1, 9))], params))
        while engine.has_work:
            engine.step()
        found.append([(request.output_ids, "".join(request.text), request.finish_reason) for request in requests])
    kinds = {kind[:-1] for kind in engine.runner.graphs._capture.recorded}
    assert any(len(kind) == 2 and kind[1] == 1 + -(-269 // 32) for kind in kinds)
    assert any(len(kind) == 1 for kind in kinds), "steps without a form carry no masks"
    assert found[0] == found[1]
    assert all(set(text) <= set("abc") and 0 < len(text) < 10 for _, text, _ in found[1][::3])


def test_a_plan_says_where_each_token_of_a_step_stands():
    """Three sequences and an idle row: one token and two guessed ones, one token alone, one and three guessed ones."""
    tokens = torch.arange(40).view(4, 10)
    plan = torch.tensor([[2, 4, 2, 91, 92, 0], [0, 7, 0, 0, 0, 0], [1, 2, 3, 81, 82, 83], idle_draft(3, 3)])
    planned = Planned.of(plan, tokens)
    assert planned.ids_N.tolist()[:8] == [24, 91, 92, 7, 12, 81, 82, 83]
    assert planned.positions_N.tolist() == [4, 5, 6, 7, 2, 3, 4, 5] + [-1] * 8
    assert planned.slots_N.tolist()[:8] == [2, 2, 2, 0, 1, 1, 1, 1]
    assert planned.offsets.tolist() == [0, 3, 4, 8, 8]
    assert planned.lengths_B.tolist() == [7, 8, 6, 0]
    assert planned.rows_BJ.tolist()[:3] == [[0, 1, 2, 2], [3, 3, 3, 3], [4, 5, 6, 7]]
    places = torch.tensor([7, 2, 4, -1])
    kept = tokens.clone()
    planned.keep(tokens, places, torch.tensor([1, 0, 3, 0]), torch.tensor([50, 51, 52, 53]))
    assert places.tolist() == [8, 6, 6, -1]
    kept[2, 6], kept[0, 8], kept[1, 6] = 50, 51, 52
    assert torch.equal(tokens, kept)
    full = Planned.of(torch.tensor([[1, 8, 1, 5, 0, 0]]), tokens)
    full.keep(tokens, places, torch.tensor([1]), torch.tensor([99]))  # its row ends there
    assert torch.equal(tokens, kept)


def test_a_plan_says_whose_the_tokens_of_prompts_are():
    """One that decodes, room for another, a prompt's last three tokens, the first two of another, and two too many."""
    plan = torch.tensor([[2, 5, 1, 1], [4, 0, 0, 0], [0, 4, 3, 1], [1, 0, 2, 0], [4, 0, 0, 0]])
    reading = Reading.of(plan, 8)
    assert reading.slots_N.tolist()[:6] == [2, 0, 0, 0, 1, 1]
    assert reading.positions_N.tolist() == [5, 4, 5, 6, 0, 1, -1, -1]
    assert reading.offsets.tolist() == [0, 1, 1, 4, 6, 6]
    assert reading.lengths_R.tolist() == [6, 0, 7, 2, 0]
    assert reading.last_R.tolist() == [0, 0, 3, 5, 5]
    assert reading.draws_R.tolist() == [True, False, True, False, False]
    assert reading.there_R.tolist() == [True, False, True, True, False]


def test_sizes_of_steps_hold_their_tokens_and_half_as_many_more():
    sizes = [recorded_size(tokens) for tokens in range(1, 9000)]
    assert all(tokens <= size < max(2 * tokens, 17) for tokens, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * tokens for tokens, size in enumerate(sizes, 1) if tokens > 128)
    assert sorted(set(sizes))[:9] == [16, 32, 64, 128, 192, 256, 384, 512, 768]


def test_there_are_at_most_so_many_kinds_of_steps_that_read_prompts(monkeypatch):
    monkeypatch.setattr(graphs_module, "MOST_KINDS", 2)
    recording, asked = Recording(), Asked(Need(), False, 0, None, False)
    graphs = DecodeGraphs(4, 4, recording)
    idle = torch.zeros(2, 4, dtype=torch.int64)

    def double(given, asked):
        return given * 2

    found = [graphs.run_whole(double, [0], asked, torch.device("cpu"), idle + 3, idle, kind) for kind in "abcab"]
    assert [None if one is None else one[0, 0].item() for one in found] == [6, 6, None, 6, 6]
    assert graphs.run(double, [1], asked, torch.device("cpu")).tolist() == [2]  # decoding steps are no such kinds
    assert len(recording.recorded) == 3


def test_steps_are_recorded_for_few_numbers_of_likeliest_tokens():
    sampler = Sampler(3, 9, "cpu")
    for slot, top in enumerate((0, 3, 30)):
        sampler.place(slot, Request(slot, [1], SamplingParams(temperature=0, logprobs=True, top_logprobs=min(top, 20))))
    assert [sampler.asked([slot]).top for slot in range(3)] == [0, 5, 20]
    assert sampler.tops() == {0: 0, 1: 3, 2: 20}


def test_a_recording_that_fails_costs_no_request(model, tokenizer, caplog):
    """Out of memory, or something in the model that cannot be recorded: steps are launched as they are without."""
    plain, engine = engine_of(model, tokenizer, False), engine_of(model, tokenizer, True)

    recording = Recording()

    def fails_with_many(decode, slots_B, asked):
        if len(slots_B) > 2:
            raise RuntimeError("out of memory")
        return recording(decode, slots_B, asked)

    engine.runner.graphs._capture = fails_with_many
    found = []
    for one in (plain, engine):
        params = [SamplingParams(temperature=0.9, seed=4, max_tokens=n, ignore_eos=True) for n in (4, 8, 12)]
        requests = [one.add_request([5, 6, 7 + number], given) for number, given in enumerate(params)]
        while one.has_work:
            one.step()
        found.append([(request.output_ids, request.finish_reason) for request in requests])
    assert found[0] == found[1]
    assert caplog.text.count("out of memory") == 2  # reading the prompts, and three that decode
    assert [kind[0] for kind in recording.recorded] == [2, 1]
    assert recording.replays == 8
