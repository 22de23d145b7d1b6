"""One request's trouble is its own: aborts, a poisoned token, a step that throws."""

from __future__ import annotations

import time

import pytest
import torch
from engine_fixtures import greedy_by_full_forward, make_model

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.kernels import cpu_linear
from gristmill.model.config import RopeScaling
from gristmill.model.decoder import Decoder

POISON = 200  # a token whose embedding is not a number
GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)


@pytest.fixture
def poisoned():
    """A model that one token breaks; its head does not know, so that other rows are whole."""
    model = make_model(seed=5)
    head = torch.nn.Linear(32, model.config.vocab_size, bias=False)
    head.weight.data = model.embedding.weight.data.clone()
    model.head = head
    model.embedding.weight.data[POISON] = float("nan")
    return model


def engine_of(model, tokenizer, max_num_seqs=4, max_num_batched_tokens=256):
    limits = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_model_len=96,
        max_num_batched_tokens=max_num_batched_tokens,
        num_blocks=6 * max_num_seqs,
    )
    return Engine(model, tokenizer, limits)


def drain(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    engine.scheduler.check()
    return outputs


def test_a_poisoned_prompt_fails_alone(poisoned, tokenizer):
    engine = engine_of(poisoned, tokenizer)
    good = [[7, 8, 9], [30, 31, 32, 33]]
    requests = [engine.add_request(ids, GREEDY) for ids in (good[0], [9, POISON, 9], good[1])]
    outputs = drain(engine)
    assert [r.finish_reason for r in requests] == ["length", "error", "length"]
    (failed,) = [output for output in outputs if output.error is not None]
    assert failed.request is requests[1]
    assert "not finite" in str(failed.error)
    for request, ids in zip(requests[::2], good, strict=True):
        assert request.output_ids == greedy_by_full_forward(poisoned, ids, (), 10)


def test_a_poisoned_slot_is_clean_for_the_next(poisoned, tokenizer):
    """What the failed request left in the cache must not reach the one that takes over its slot, although that one is
    shorter than its neighbour and its row is read beyond its own length."""
    engine = engine_of(poisoned, tokenizer, max_num_seqs=2)
    engine.add_request([9] * 20 + [POISON] * 20, GREEDY)
    long = engine.add_request([11] * 50, SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True))
    engine.step()
    short = engine.add_request([40, 41], GREEDY)
    drain(engine)
    assert short.output_ids == greedy_by_full_forward(poisoned, [40, 41], (), 10)
    assert long.finish_reason == "length"


def test_a_step_that_throws_ends_its_requests_only(model, tokenizer, monkeypatch):
    engine = engine_of(model, tokenizer, max_num_seqs=2)
    requests = [engine.add_request([10 + i, 20], GREEDY) for i in range(4)]
    forward = engine.runner.hidden_states
    failures = iter([RuntimeError("the device is out of memory")])

    def fail_once(step):
        for failure in failures:
            raise failure
        return forward(step)

    monkeypatch.setattr(engine.runner, "hidden_states", fail_once)
    drain(engine)
    assert [r.finish_reason for r in requests] == ["error", "error", "length", "length"]
    assert requests[3].output_ids == greedy_by_full_forward(model, [13, 20], (), 10)


def test_numbers_beyond_what_tables_hold_harm_nobody(model, tokenizer):
    engine = engine_of(model, tokenizer)
    other = engine.add_request([7, 8, 9], GREEDY)
    asked = SamplingParams(max_tokens=10**30, min_tokens=10**30, temperature=0.0, top_k=10**30, seed=10**30)
    endless = engine.add_request([30, 31], asked)
    drain(engine)
    assert other.output_ids == greedy_by_full_forward(model, [7, 8, 9], (), 10)
    assert endless.finish_reason == "length"
    assert len(endless.output_ids) == 96 - 2


@pytest.mark.parametrize("how", ["counted", "unseen", "fused"])
def test_after_a_change_of_weights_nothing_of_the_old_ones_is_used(tokenizer, monkeypatch, how):
    monkeypatch.setattr(cpu_linear, "SMALLEST", 1)
    monkeypatch.setattr(cpu_linear, "_has_room", lambda size: True)
    model = make_model().requires_grad_(False)
    engine, prompt = engine_of(model, tokenizer), list(range(7, 47))  # two blocks and more
    engine.add_request(prompt, GREEDY)
    drain(engine)
    for weight in model.parameters():
        new = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3
        if how == "counted":
            weight.copy_(new)
        elif how == "unseen":
            weight.data.copy_(new)
        else:
            weight.requires_grad_(True).grad = weight.detach() - new
            torch.optim.SGD([weight], lr=1.0, fused=True).step()
            weight.requires_grad_(False).grad = None
    engine.weights_changed()
    again = engine.add_request(prompt, GREEDY)
    drain(engine)
    assert again.output_ids == greedy_by_full_forward(model, prompt, (), 10)


def test_a_text_that_cannot_be_made_fails_alone(model, tokenizer, monkeypatch):
    engine = engine_of(model, tokenizer)
    bad, good = engine.add_request([10, 20], GREEDY), engine.add_request([11, 20], GREEDY)

    def broken(token):
        raise KeyError(token)

    monkeypatch.setattr(engine._texts[bad.id], "push", broken)
    drain(engine)
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")


def test_generate_raises_what_went_wrong(poisoned, tokenizer):
    llm = LLM.from_model(poisoned, tokenizer, max_num_seqs=2)
    with pytest.raises(ArithmeticError, match="not finite"):
        llm.generate([[POISON], [3], [4]], GREEDY)
    assert not llm.engine.has_work
    llm.engine.scheduler.check()
    with pytest.raises(ArithmeticError, match="not finite"):
        list(llm.stream([POISON], GREEDY))


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "in its prompt", "replying"])
def test_abort_frees_the_slot_and_changes_nobody_else(model, tokenizer, steps):
    engine = engine_of(model, tokenizer, max_num_seqs=2, max_num_batched_tokens=24)
    victim = engine.add_request([9] * 40, GREEDY)
    other = engine.add_request([11, 12], GREEDY)
    third = engine.add_request([13, 14, 15], GREEDY)
    for _ in range(steps):
        engine.step()
    engine.abort(victim)
    engine.abort(victim)
    assert victim.finish_reason == "abort"
    assert victim.slot is None
    engine.scheduler.check()
    drain(engine)
    assert other.output_ids == greedy_by_full_forward(model, [11, 12], (), 10)
    assert third.output_ids == greedy_by_full_forward(model, [13, 14, 15], (), 10)
    engine.abort(other)
    assert other.finish_reason == "length", "an abort after the end changes nothing"


def test_stop_strings_end_requests_across_tokens(model, tokenizer):
    """A stop string cut out of the middle of what the model says, so that it spans tokens."""
    free = LLM.from_model(model, tokenizer, max_num_seqs=4)
    prompts = [[0, 10 + i, 40] for i in range(12)]
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    whole = free.generate(prompts, params)
    for ids, said in zip(prompts, whole, strict=True):
        stop = said.text[5:8]
        if not stop:
            continue
        engine = engine_of(model, tokenizer)
        request = engine.add_request(ids, SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True, stop=[stop]))
        engine.add_request([5, 6], GREEDY)
        outputs = [output for output in drain(engine) if output.request is request]
        text = "".join(output.text for output in outputs)
        assert text == said.text[: said.text.find(stop)]
        assert (request.finish_reason, outputs[-1].finish_reason) == ("stop", "stop")
        assert request.output_ids == said.token_ids[: len(request.output_ids)]
        decoder = tokenizer.stream()
        pieces = [decoder.push(token) for token in request.output_ids]
        assert stop in "".join(pieces)
        assert stop not in "".join(pieces[:-1]), "it went on after the stop string"


def test_a_form_that_breaks_fails_its_own_reply(model, tokenizer):
    """What a matcher raises or refuses once a token is drawn must not reach the replies beside it."""

    class Matcher:
        def __init__(self, error):
            self.error = error

        def mask_into(self, row):
            row.fill_(-1)

        def accept(self, token):
            if self.error is not None:
                raise self.error
            return False

    engine = engine_of(model, tokenizer)
    refused, broken, good = (engine.add_request([10 + i, 20], GREEDY) for i in range(3))
    refused.matcher, broken.matcher = Matcher(None), Matcher(GristmillError("the form grew too large"))
    errors = {output.request.id: str(output.error) for output in drain(engine) if output.error is not None}
    assert "drawn against the request's mask" in errors[refused.id]
    assert errors[broken.id] == "the form grew too large"
    assert good.output_ids == greedy_by_full_forward(model, [12, 20], (), 10)


def test_dynamic_positions_share_no_beginnings(tokenizer):
    """Their angles depend on the whole prompt's length, so equal beginnings of unlike prompts have unlike keys."""
    plain = make_model(seed=3)
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_max_seq_len=16)
    model = Decoder(plain.config.model_copy(update={"rope_scaling": scaling}))
    model.load_state_dict(plain.state_dict())
    shared = [5 + 7 * i % 250 for i in range(40)]
    short, long = [*shared, 9, 8], [*shared, *(11 + 3 * i % 200 for i in range(40))]
    alone = LLM.from_model(model, tokenizer).generate([long], GREEDY)
    llm = LLM.from_model(model, tokenizer)
    llm.generate([short], GREEDY)
    assert llm.generate([long], GREEDY) == alone


def test_blocks_that_leak_are_missed_even_where_not_all_are_looked_at(tokenizer, monkeypatch):
    monkeypatch.setattr("gristmill.engine.engine.FEW_BLOCKS", 0)
    engine = engine_of(make_model(), tokenizer)
    engine.add_request([7, 8, 9], GREEDY)
    drain(engine)
    looked = []
    monkeypatch.setattr(engine.scheduler, "check", lambda: looked.append(time.sleep(0.2)))
    engine._next_check = 0.0
    for _ in range(3):  # within the 20 seconds that follow 0.2 of looking
        engine.add_request([7, 8, 9], GREEDY)
        while engine.has_work:
            engine.step()
    assert len(looked) == 1
    engine.blocks._blank.take(None, 1)
    engine.add_request([7, 8, 9], GREEDY)
    with pytest.raises(AssertionError, match="leaked"):
        while engine.has_work:
            engine.step()
