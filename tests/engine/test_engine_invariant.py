"""batch_invariant: a reply has the same bits alone, among others, with its prompt cut anyhow, preempted or reused."""

from __future__ import annotations

import random

import pytest
import torch
from engine_fixtures import make_model

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def engine_of(model, tokenizer, **changes):
    settings = {
        "max_num_seqs": 80, "max_model_len": 64, "max_num_batched_tokens": 96, "block_size": 4, "num_blocks": 1280,
        "batch_invariant": True,
    } | changes  # fmt: skip
    return Engine(model, tokenizer, EngineConfig(**settings))


def replies(engine, prompts, temperature=0.8):
    """Tokens and log probabilities of each prompt's reply, all served together."""
    params = [
        SamplingParams(
            temperature=temperature, max_tokens=12, ignore_eos=True, seed=number, logprobs=True, top_logprobs=3
        )
        for number in range(len(prompts))
    ]
    requests = [engine.add_request(*given) for given in zip(prompts, params, strict=True)]
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
    return [(request.output_ids, request.logprobs, request.top_logprobs) for request in requests], requests


def prompts_of(count):
    rng = random.Random(5)
    shared = [rng.randrange(269) for _ in range(20)]
    return [
        shared[: rng.randint(0, 20)] + [rng.randrange(269) for _ in range(rng.randint(1, 20))] for _ in range(count)
    ]


def _single(engine, prompt, seed):
    params = SamplingParams(temperature=0.8, max_tokens=12, ignore_eos=True, seed=seed, logprobs=True, top_logprobs=3)
    request = engine.add_request(prompt, params)
    while engine.has_work:
        engine.step()
    return request.output_ids, request.logprobs, request.top_logprobs


def check(model, tokenizer, count):
    prompts = prompts_of(count)
    expected = [_single(engine_of(model, tokenizer), prompts[number], number) for number in range(3)]
    together, requests = replies(engine_of(model, tokenizer), prompts)
    assert together[:3] == expected
    assert any(request.num_cached for request in requests), "nothing was reused"
    tight, requests = replies(engine_of(model, tokenizer, num_blocks=60, max_num_seqs=9), prompts)
    assert any(request.num_preemptions for request in requests)
    assert tight == together


def test_a_reply_is_the_same_alone_and_among_others(model, tokenizer):
    check(model, tokenizer, 65)


def test_otherwise_it_is_not(model, tokenizer):
    """Or the test above would show nothing."""
    prompts = prompts_of(65)
    together, _ = replies(engine_of(model, tokenizer, batch_invariant=False), prompts)
    single = [_single(engine_of(model, tokenizer, batch_invariant=False), prompts[n], n) for n in range(12)]
    assert together[:12] != single


def test_what_varies_is_refused(tokenizer):
    model = make_model()
    model.blocks[0].feed_forward.down = torch.nn.Sequential(model.blocks[0].feed_forward.down)
    with pytest.raises(GristmillError, match=r"batch_invariant: .*down, a Sequential"):
        engine_of(model, tokenizer)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_too(tokenizer, dtype, graphs):
    pytest.importorskip("triton")
    model = make_model().to("cuda", dtype)
    prompts = prompts_of(65)
    expected = [_single(engine_of(model, tokenizer, graphs=graphs, run_ahead=1), prompts[n], n) for n in range(3)]
    together, _ = replies(engine_of(model, tokenizer, graphs=graphs, run_ahead=1), prompts)
    assert together[:3] == expected
    tight, requests = replies(engine_of(model, tokenizer, graphs=graphs, num_blocks=60, max_num_seqs=9), prompts)
    assert any(request.num_preemptions for request in requests)
    assert tight == together
