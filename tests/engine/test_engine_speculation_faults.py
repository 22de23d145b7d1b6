"""Drafts and beams where something goes wrong, and in the engine's own thread."""

from __future__ import annotations

import asyncio

import pytest
import torch
from engine_fixtures import greedy_by_full_forward, make_model

from gristmill.engine.async_engine import AsyncEngine
from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig

COPY = [7, 8, 9, 10, 11, 12, 13, 14] * 3
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


def engine_of(model, tokenizer):
    config = EngineConfig(
        max_num_seqs=6, max_model_len=96, max_num_batched_tokens=128, block_size=4, num_blocks=150,
        speculation=SpeculationConfig(min_ngram=1, num_tokens=4),
    )  # fmt: skip
    engine = Engine(model, tokenizer, config)
    engine.speculator.control.allows = lambda batch: batch > 0
    return engine


def drain(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert engine.blocks.num_free == engine.config.num_blocks
    return outputs


def test_a_guess_that_breaks_the_model_ends_its_request_alone(tokenizer):
    """The guessed token has no finite embedding, and keys that are none reach all queries of their sequence."""
    model = make_model(seed=4, spread=0.3)
    head = torch.nn.Linear(32, model.config.vocab_size, bias=False)
    head.weight.data = model.embedding.weight.data.clone()
    model.head = head
    wanted = greedy_by_full_forward(model, [*COPY, 5], (), 16)
    poison = next(token for token in range(200, 269) if token not in wanted)
    model.embedding.weight.data[poison] = float("nan")
    engine = engine_of(model, tokenizer)
    engine.speculator.proposer.propose = lambda request, most=None: [poison] * (most or 2)
    broken, other = engine.add_request([*COPY, 5], GREEDY), engine.add_request([*COPY, 5], GREEDY)
    engine.speculator.proposer.ready = lambda request: request is broken
    outputs = drain(engine)
    (failed,) = [output for output in outputs if output.error is not None]
    assert failed.request is broken
    assert "not finite" in str(failed.error)
    assert other.output_ids == wanted


def test_a_reply_that_breaks_inside_its_draft_ends_alone(tokenizer, model, monkeypatch):
    """The third token of a draft cannot be decoded."""
    engine = engine_of(model, tokenizer)
    wanted = greedy_by_full_forward(model, COPY, (), 16)
    engine.speculator.proposer.propose = lambda request, most=None: wanted[len(request.output_ids) :][:4]
    engine.speculator.proposer.ready = lambda request: len(request.output_ids) < 16
    broken, other = engine.add_request(COPY, GREEDY), engine.add_request(COPY, GREEDY)
    engine.step()
    push, calls = engine._texts[broken.id].push, iter(range(99))
    monkeypatch.setattr(engine._texts[broken.id], "push", lambda token: 1 / 0 if next(calls) == 2 else push(token))
    outputs = drain(engine)
    assert [o.request for o in outputs if o.error is not None] == [broken]
    assert other.output_ids == wanted
    assert engine.num_steps < 8


@pytest.mark.parametrize("failing", ["propose", "launch", "read"])
def test_a_step_with_drafts_that_fails_ends_those_in_it(tokenizer, model, monkeypatch, failing):
    engine = engine_of(model, tokenizer)
    first = engine.add_request(COPY, GREEDY)
    while not engine.speculation.drafts and first.finish_reason is None:
        engine.step()
    with monkeypatch.context() as patched:
        if failing == "propose":
            patched.setattr(engine.speculator.proposer, "draft", lambda *_: 1 / 0)
        else:
            name = {"launch": "gristmill.engine.runner.check_drafts", "read": "gristmill.engine.scoring.Checked.read"}
            patched.setattr(name[failing], lambda *_: 1 / 0)
        while first.finish_reason is None:
            engine.step()
    second = engine.add_request(COPY, GREEDY)
    assert all(output.error is None for output in drain(engine))
    assert first.finish_reason == ("length" if failing == "propose" else "error")
    assert second.output_ids == greedy_by_full_forward(model, COPY, (), 16)


def test_beams_and_drafts_in_the_engines_thread(tokenizer, model):
    engine = AsyncEngine(engine_of(model, tokenizer), max_waiting=8)
    engine.start()

    async def run():
        made = engine.engine.make_request
        beams = made(COPY, SamplingParams(beam_width=3, n=2, max_tokens=6, ignore_eos=True))
        aborted = made(COPY, SamplingParams(beam_width=3, max_tokens=60, ignore_eos=True))
        plain = made(COPY, GREEDY)
        given_up = engine.submit([aborted])
        outputs = [output async for _, output in engine.submit([beams, plain])]
        given_up.abort()
        async for _ in given_up:
            pass
        return beams, aborted, plain, outputs

    beams, aborted, plain, outputs = asyncio.run(run())
    assert engine.wait_idle(10)
    assert engine.snapshot()["acceptance_length"] >= 1
    engine.stop()
    assert [o.request for o in outputs].count(beams) == 1
    assert len(beams.others) == 1
    assert aborted.finish_reason in ("abort", "length")
    assert plain.output_ids == greedy_by_full_forward(model, COPY, (), 16)
    assert engine.engine.blocks.num_free == engine.engine.config.num_blocks
