"""CUDA graphs of steps on a GPU: all are recorded, give what launched kernels give, and wait for nothing."""

from __future__ import annotations

import random

import pytest
import torch
from engine_fixtures import Knowing, check_tables, make_model, make_tokenizer, params_of

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.graphs import DecodeGraphs, NotRecorded
from gristmill.engine.prompt_steps import Size
from gristmill.engine.runner import NOTHING
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.speculation.draft import DraftProposer
from gristmill.engine.speculation.paged import PagedDraftRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


def test_the_compiled_tables_kernels_are_their_reference():
    pytest.importorskip("triton")
    check_tables("cuda")


@pytest.fixture(scope="module")
def on_gpu():
    return make_model().cuda()


def gpu_config(graphs, **changes):
    return EngineConfig(
        max_num_seqs=40, max_model_len=96, max_num_batched_tokens=256, block_size=16, num_blocks=240, run_ahead=1,
        graphs=graphs, **changes,
    )  # fmt: skip


def gpu_engine(model, tokenizer, graphs, **changes):
    return Engine(model, tokenizer, gpu_config(graphs, **changes))


def all_recorded(engine):
    """The kinds of steps that were recorded, which are all."""
    made = engine.runner.graphs._graphs
    assert made
    assert None not in made.values()
    return list(made)


def test_a_recording_that_the_device_breaks_off_harms_no_other():
    graphs, asked, device = DecodeGraphs(4, 4), NOTHING, torch.device("cuda")

    def waits(slots_B, asked):
        return torch.full((int(slots_B[0]) + 1,), 1.0, device=device)

    def goes(slots_B, asked):
        return slots_B * 2

    with pytest.raises(NotRecorded):
        graphs.run(waits, [0], asked, device)
    assert graphs.run(waits, [0], asked, device) is None
    torch.cuda.empty_cache()
    assert graphs.run(goes, [1, 3], asked, device).tolist() == [2, 6]
    assert graphs.run(goes, [3, 2, 1], asked, device).tolist() == [6, 4, 2, 8]


def test_forms_and_a_draft_model_are_recorded(on_gpu, tokenizer):
    pytest.importorskip("llguidance")
    found = []
    for graphs in (False, True):
        small = PagedDraftRunner(on_gpu, slots=8, max_len=96, block_size=16, vocab_size=269, graphs=graphs)
        config = gpu_config(graphs, speculation=SpeculationConfig(method="draft"))
        engine = Engine(on_gpu, tokenizer, config, (), DraftProposer(small))
        engine.speculator.control.allows = lambda batch: True
        kinds = [{"temperature": 0, "ignore_eos": True}, {"temperature": 0, "regex": "[abc]{2,9}"}]
        given = [engine.add_request([3, 4, 5 + n], SamplingParams(max_tokens=20, **kinds[n % 2])) for n in range(4)]
        while engine.has_work:
            engine.step()
        found.append([request.output_ids for request in given])
        if graphs:
            assert None not in small.runner.graphs._graphs.values()
            assert small.runner.graphs._graphs
            assert any(len(shape) == 2 and kind is None for shape, _, kind, _ in all_recorded(engine))
    assert engine.speculation.acceptance_length > 3, "the model guesses itself"
    assert sum(mine == expected for mine, expected in zip(*found, strict=True)) >= 3


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("requests", [1, 3, 7, 23, 40])
def test_graphs_give_what_launched_kernels_give(on_gpu, tokenizer, requests, kv_dtype):
    pytest.importorskip("triton")
    found = []
    for graphs in (False, True):
        engine = gpu_engine(on_gpu, tokenizer, graphs, kv_dtype=kv_dtype)
        rng = random.Random(requests)
        given = [
            engine.add_request([rng.randrange(269) for _ in range(rng.randint(1, 30))], params_of(rng))
            for _ in range(requests)
        ]
        while engine.has_work:
            engine.step()
        if graphs:
            all_recorded(engine)
        else:
            assert engine.runner.graphs is None
        found.append([(r.output_ids, r.finish_reason) for r in given])
    same = sum(mine == expected for mine, expected in zip(*found, strict=True))
    # A bucket's products round as its number of rows says, so a tie may fall the other way now and then.
    assert same >= 0.9 * requests


@pytest.mark.parametrize("requests", [1, 5, 16])
def test_prompts_are_read_by_graphs(on_gpu, tokenizer, requests):
    pytest.importorskip("triton")
    found = []
    for graphs in (False, True):
        engine = gpu_engine(on_gpu, tokenizer, graphs)
        rng = random.Random(requests)
        given = []
        for number in range(requests):
            ids = [rng.randrange(269) for _ in range(rng.randint(1, 80))]
            heat = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}
            given.append(engine.add_request(ids, SamplingParams(max_tokens=12, ignore_eos=True, **heat)))
            engine.step()
        while engine.has_work:
            engine.step()
        if graphs:
            sizes = [kind for _, _, kind, _ in all_recorded(engine) if kind is not None]
            assert any(size.decoding for size in sizes) == (requests > 1)
            assert all(isinstance(size, Size) for size in sizes)
        found.append([request.output_ids for request in given])
    # As above: what fills a step up changes how its products round.
    assert sum(mine == expected for mine, expected in zip(*found, strict=True)) >= 0.8 * requests


@pytest.mark.parametrize("requests", [1, 5, 16])
def test_drafts_are_checked_by_graphs(on_gpu, tokenizer, requests):
    pytest.importorskip("triton")
    found, replies = [], {}
    for speculation in (None, SpeculationConfig()):
        engine = gpu_engine(on_gpu, tokenizer, True, speculation=speculation)
        if speculation is not None:
            engine.speculator.control.allows = lambda batch: True
            engine.speculator.proposer = Knowing(replies, random.Random(requests))
        rng = random.Random(requests)
        given = [
            engine.add_request([rng.randrange(269) for _ in range(rng.randint(1, 30))], params)
            for params in [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)] * requests
        ]
        while engine.has_work:
            engine.step()
        found.append([request.output_ids for request in given])
        replies = {tuple(request.prompt_ids): request.output_ids for request in given}
    assert any(shape[1:] and kind is None for shape, _, kind, _ in all_recorded(engine)), "no such step was recorded"
    figures = engine.speculation
    assert figures.accepted_tokens > figures.draft_tokens / 3
    # As above, and a draft's step multiplies more rows than a plain one: ties may fall the other way.
    assert sum(mine == expected for mine, expected in zip(*found, strict=True)) >= 0.8 * requests


def test_launching_waits_for_nothing(on_gpu, tokenizer):
    pytest.importorskip("triton")
    engine = gpu_engine(on_gpu, tokenizer, True)
    kinds = [
        {"temperature": 0.7}, {"temperature": 0, "logit_bias": {7: 2.0}, "min_tokens": 3},
        {"temperature": 1.1, "top_p": 0.9, "top_k": 40}, {"temperature": 0.9, "frequency_penalty": 0.4},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    ]  # fmt: skip
    run = lambda: [  # noqa: E731
        engine.add_request([3, 4, 5 + n], SamplingParams(**kind, max_tokens=12, ignore_eos=True))
        for n, kind in enumerate(kinds)
    ]
    run()
    while engine.has_work:  # kernels are compiled and graphs recorded
        engine.step()
    launch = engine.runner.launch

    def strict(step):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.runner.launch = strict
    requests = run()
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
    assert all(len(request.output_ids) == 12 for request in requests)
    all_recorded(engine)


def test_weights_changed_in_place_are_seen_by_graphs(tokenizer, tmp_path):
    pytest.importorskip("triton")
    model = make_model().cuda()
    engine = gpu_engine(model, tokenizer, True, prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)

    def replies():
        request = engine.add_request([11, 12, 13], params)
        while engine.has_work:
            engine.step()
        return request.output_ids

    before = replies()
    all_recorded(engine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.roll(1, 0))
    after = replies()
    assert after != before
    fresh = gpu_engine(model, make_tokenizer(tmp_path), False, prefix_caching=False)
    request = fresh.add_request([11, 12, 13], params)
    while fresh.has_work:
        fresh.step()
    assert after == request.output_ids
