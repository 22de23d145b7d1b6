"""Log probabilities of prompts, and what becomes of a slot's parameters."""

from __future__ import annotations

import pytest
import torch
from engine_fixtures import make_model

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig

PROMPTS = [[7, 8, 9], [30], list(range(50, 90)), [7, 8, 9, *range(100, 130)]]


def engine_of(model, tokenizer, **changes):
    limits = {
        "max_num_seqs": 4, "max_model_len": 64, "max_num_batched_tokens": 64, "block_size": 4, "num_blocks": 80
    }  # fmt: skip
    return Engine(model, tokenizer, EngineConfig(**(limits | changes)))


def drain(engine):
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error


@torch.no_grad()
def check_against_the_plain_model(model, vocab_size, request, top):
    ids = request.prompt_ids
    logprobs = model(torch.tensor([ids]))[0, :, :vocab_size].log_softmax(-1)
    own = [float(logprobs[at, token]) for at, token in enumerate(ids[1:])]
    assert request.prompt_logprobs == pytest.approx(own, abs=1e-4)
    assert len(request.prompt_top_logprobs) == len(ids) - 1
    for row, found in zip(logprobs, request.prompt_top_logprobs, strict=False):
        values, best = row.topk(top)
        assert [token for token, _ in found] == best.tolist()
        assert [value for _, value in found] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("budget", [4, 7, 64])
@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("speculation", [None, SpeculationConfig(min_ngram=1)])
def test_prompts_in_chunks_are_scored_as_by_the_plain_model(model, tokenizer, budget, run_ahead, speculation):
    """Twice, so that the second time all blocks are in the cache; ordinary requests stand between."""
    engine = engine_of(model, tokenizer, max_num_batched_tokens=budget, run_ahead=run_ahead, speculation=speculation)
    for _ in range(2):
        requests = []
        for top, ids in enumerate(PROMPTS):
            requests.append(engine.add_request(ids, SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=top)))
            engine.add_request(ids, SamplingParams(max_tokens=3, temperature=0))
        drain(engine)
        for top, request in enumerate(requests):
            check_against_the_plain_model(model, tokenizer.vocab_size, request, top)


def test_preempted_prompts_are_scored_once(model, tokenizer):
    """Blocks for one sequence of the two that grow."""
    engine = engine_of(model, tokenizer, num_blocks=16, max_num_batched_tokens=9)
    params = SamplingParams(max_tokens=30, temperature=0, prompt_logprobs=2, ignore_eos=True)
    requests = [engine.add_request(list(range(50 + i, 78 + i)), params) for i in range(4)]
    drain(engine)
    assert sum(request.num_preemptions for request in requests) > 0
    for request in requests:
        check_against_the_plain_model(model, tokenizer.vocab_size, request, 2)


def test_a_vocabulary_with_padding_is_scored_without_it(tokenizer):
    model = make_model(seed=4, padding=11)
    engine = engine_of(model, tokenizer)
    request = engine.add_request(PROMPTS[2], SamplingParams(max_tokens=1, prompt_logprobs=20))
    drain(engine)
    check_against_the_plain_model(model, tokenizer.vocab_size, request, 20)


def test_a_completion_has_an_entry_for_each_token_of_its_prompt(model, tokenizer):
    llm = LLM.from_model(model, tokenizer, max_num_seqs=2)
    params = SamplingParams(max_tokens=2, prompt_logprobs=1, n=2)
    (completion,) = llm.generate([PROMPTS[0]], params)
    for one in (completion, *completion.others):
        assert one.prompt_logprobs[0] is None
        assert len(one.prompt_logprobs) == len(one.prompt_top_logprobs) == 3
        assert one.prompt_top_logprobs[0] == []
    (without,) = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=2))
    assert without.prompt_logprobs is None


def test_a_slot_that_is_left_asks_for_nothing(model, tokenizer):
    engine = engine_of(model, tokenizer, num_blocks=24)
    sampler = engine.runner.sampler
    wants = SamplingParams(max_tokens=40, repetition_penalty=1.2, logprobs=True, logit_bias={5: 1.0})
    requests = [engine.add_request([7, 8, 9, i], wants) for i in range(10, 13)]
    engine.abort(requests[0])
    while engine.has_work:
        engine.step()
        assert set(sampler._placed) == {request.slot for request in engine.scheduler.running.values()}
    assert sampler.asked() == sampler.asked([])  # biases of a freed slot lie there until the next request clears them
