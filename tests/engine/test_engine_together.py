"""Requests of every kind at the same time, with arrivals, aborts, preemption, drafts and shared prompts as they fall:
each gets, bit for bit, what it gets when it is alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine_fixtures import make_model, make_tokenizer

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.speculation.draft import DraftProposer
from gristmill.engine.speculation.paged import PagedDraftRunner

VOCAB = 269
LONGEST = 40

Make = Callable[[EngineConfig], Engine]


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory) -> Make:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    model, small = (make_model(seed).requires_grad_(False) for seed in (0, 3))

    def make(config: EngineConfig) -> Engine:
        proposer = None
        if config.speculation is not None and config.speculation.method == "draft":
            proposer = DraftProposer(PagedDraftRunner(small, slots=8, max_len=LONGEST, block_size=4, vocab_size=VOCAB))
        engine = Engine(model, tokenizer, config, (), proposer)
        if engine.speculator is not None:
            engine.speculator.control.allows = lambda batch: True  # whether it pays or not
        return engine

    return make


def drawn_config(draw: random.Random) -> EngineConfig:
    speculation = None
    if draw.random() < 0.7:
        speculation = SpeculationConfig(max_batch=8, method=draw.choice(["ngram", "draft"]))
    return EngineConfig(
        max_num_seqs=draw.choice([2, 4, 6]),
        max_model_len=LONGEST,
        max_num_batched_tokens=draw.choice([6, 12, 40]),
        block_size=4,
        num_blocks=draw.choice([10, 14, 24]),
        run_ahead=draw.randrange(2),
        prefix_caching=draw.random() < 0.7,
        batch_invariant=True,
        speculation=speculation,
    )


ALONE = EngineConfig(
    max_num_seqs=8, max_model_len=LONGEST, max_num_batched_tokens=64, block_size=4, num_blocks=200, batch_invariant=True
)


def drawn_params(draw: random.Random) -> SamplingParams:
    tokens, seed = draw.randrange(1, 14), draw.randrange(99)
    biased = {draw.randrange(VOCAB): draw.choice([-5.0, 6.0, 20.0]) for _ in range(draw.randrange(1, 9))}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "ignore_eos": True},
        {"logit_bias": biased},
        {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7},
        {"min_tokens": tokens // 2, "stop_token_ids": [draw.randrange(VOCAB) for _ in range(30)]},
        {"top_k": draw.randrange(1, 9), "top_p": 0.9, "logprobs": True, "top_logprobs": 3},
        {"regex": "[abc]{2,9}"},
        {"prompt_logprobs": 2, "temperature": 0.8, "logprobs": True},
    ]
    if draw.random() < 0.15:
        return SamplingParams(
            beam_width=draw.randrange(1, 4),
            max_tokens=tokens,
            repetition_penalty=draw.choice([1, 1.3]),
            prompt_logprobs=draw.choice([None, 2]),
        )
    return SamplingParams(max_tokens=tokens, seed=seed, **draw.choice(kinds))


def outcome(request: Request) -> tuple[Any, ...]:
    """All that a caller gets."""
    return (
        request.finish_reason,
        request.output_ids,
        "".join(request.text),
        request.logprobs,
        request.prompt_logprobs,
        [[token for token, _ in tops] for tops in request.prompt_top_logprobs],
        [[token for token, _ in tops] for tops in request.top_logprobs],
        [other.output_ids for other in request.others],
    )


def step(engine: Engine) -> None:
    for output in engine.step():
        if output.error is not None:
            raise output.error


def among_others(engine: Engine, draw: random.Random) -> list[Request]:
    """The requests that came to their own end."""
    stem = [draw.randrange(5, 12) for _ in range(9)]
    left, requests, aborted = draw.randrange(3, 12), [], set()
    while left or engine.has_work:
        while left and draw.random() < 0.5:
            left -= 1
            ids = stem[: draw.randrange(10)] + [draw.randrange(5, VOCAB) for _ in range(draw.randrange(1, 8))]
            requests.append(engine.add_request(ids, drawn_params(draw), True))
        step(engine)
        if requests and draw.random() < 0.08:
            request = draw.choice(requests)
            if request.finish_reason is None:
                aborted.add(request.id)
            engine.abort(request)
    engine.scheduler.check()
    return [request for request in requests if request.id not in aborted]


def check(engine_of: Make, seed: int) -> int:
    draw = random.Random(seed)
    config = drawn_config(draw)
    requests = among_others(engine_of(config), draw)
    for request in requests:
        alone = engine_of(ALONE)
        same = alone.add_request(request.prompt_ids, request.params, True)
        while alone.has_work:
            step(alone)
        assert outcome(request) == outcome(same), (seed, config, request.params)
    return len(requests)


def test_each_request_gets_what_it_gets_alone(engine_of):
    assert sum(check(engine_of, seed) for seed in range(8)) > 20


@pytest.mark.slow
@pytest.mark.single
def test_over_many_mixtures_too(engine_of):
    assert sum(check(engine_of, seed) for seed in range(1000, 1050)) > 200
