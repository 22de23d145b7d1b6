"""Speculation through the whole engine: the output is what it is without, whatever happens to requests."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from engine_fixtures import greedy_by_full_forward, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.speculation.draft import DraftProposer
from gristmill.engine.speculation.paged import PagedDraftRunner
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.weights.hf import save_model

COPY = [7, 8, 9, 10, 11, 12, 13, 14] * 3
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def copier():
    """A model whose replies soon go round in circles, as greedy replies of real models do. In float64: what is rounded
    otherwise in other company would change a token drawn now and then, with drafts and without."""
    return make_model(seed=4, spread=0.3).double()


def draft_runner(model, tokenizer, slots=6, max_len=96, block_size=4):
    return PagedDraftRunner(model, slots=slots, max_len=max_len, block_size=block_size, vocab_size=tokenizer.vocab_size)


def engine_of(model, tokenizer, method="ngram", draft=None, *, eager=True, num_tokens=4, max_batch=16, **changes):
    """`eager`: drafts from the first step on, whether they pay or not. `draft`: the small model."""
    speculation = None
    proposer = None
    if method is not None:
        speculation = SpeculationConfig(method=method, num_tokens=num_tokens, max_batch=max_batch, min_ngram=1)
        if method == "draft":
            slots = min(max_batch, changes.get("max_num_seqs", 6))
            proposer = DraftProposer(draft_runner(draft or model, tokenizer, slots), seed=0)
    limits = {
        "max_num_seqs": 6, "max_model_len": 96, "max_num_batched_tokens": 128, "block_size": 4, "num_blocks": 150
    }  # fmt: skip
    config = EngineConfig(**(limits | {"speculation": speculation} | changes))
    engine = Engine(model, tokenizer, config, proposer=proposer)
    if eager and engine.speculator is not None:
        engine.speculator.control.allows = lambda batch: 0 < batch <= max_batch
    return engine


def drain(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        for output in outputs:
            if output.error is not None:
                raise output.error
    engine.scheduler.check()
    assert engine.blocks.num_free == engine.config.num_blocks
    if engine.speculator is not None:
        assert engine._guessing, "it has failed"
        assert not engine.speculator._given
        proposer = engine.speculator.proposer
        assert len(proposer) == 0
        if isinstance(proposer, DraftProposer):
            proposer.runner.check()
            assert proposer.runner.pool.num_free == proposer.runner.pool.num_blocks
    return outputs


def said(engine, prompts, params):
    several = params if isinstance(params, list) else [params] * len(prompts)
    requests = [engine.add_request(ids, p) for ids, p in zip(prompts, several, strict=True)]
    drain(engine)
    return requests


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_greedy_replies_are_the_plain_ones_in_fewer_steps(copier, tokenizer, method):
    prompts = [COPY, [30, 31, 32, 33, 30, 31], [99], [7] * 9]
    plain = engine_of(copier, tokenizer, None)
    wanted = [r.output_ids for r in said(plain, prompts, GREEDY)]
    assert wanted == [greedy_by_full_forward(copier, ids, (), 24) for ids in prompts]
    engine = engine_of(copier, tokenizer, method)
    assert [r.output_ids for r in said(engine, prompts, GREEDY)] == wanted
    figures = engine.speculation
    assert figures.accepted_tokens > 10
    assert 1.3 < figures.acceptance_length <= 5
    for each in (plain, engine):
        each.num_steps = 0
        said(each, [COPY], GREEDY)
    assert engine.num_steps < (0.8 if method == "draft" else 1.0) * plain.num_steps
    if method == "draft":  # the model guesses for itself: all guesses are right
        assert figures.accepted_tokens == figures.draft_tokens


def test_another_small_model_changes_nothing(copier, tokenizer):
    prompts = [COPY, [30, 31, 32, 33, 30, 31], [99]]
    wanted = [r.output_ids for r in said(engine_of(copier, tokenizer, None), prompts, GREEDY)]
    engine = engine_of(copier, tokenizer, "draft", make_model(seed=9))
    assert [r.output_ids for r in said(engine, prompts, GREEDY)] == wanted
    assert engine.speculation.accepted_tokens < engine.speculation.draft_tokens


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["ngram", "draft"]), run_ahead=st.integers(0, 1))
def test_any_company_leaves_every_reply_as_it_is_alone(copier, tokenizer, seed, method, run_ahead):
    """Arrivals, aborts, preemptions (few blocks), shared beginnings, chunked prompts; greedy and seeded requests."""
    rng = random.Random(seed)
    engine = engine_of(
        copier, tokenizer, method, make_model(seed=9) if rng.random() < 0.5 else None,
        num_blocks=rng.choice([24, 30, 60]), max_num_batched_tokens=rng.choice([8, 20, 64]),
        num_tokens=rng.randint(1, 6), max_num_seqs=rng.randint(2, 6), run_ahead=run_ahead,
        max_batch=rng.choice([2, 16]),
    )  # fmt: skip
    stem, going, ended = [rng.randrange(5, 30) for _ in range(30)], [], []
    for _ in range(40):
        if rng.random() < 0.3 and len(going) < 8:
            ids = stem[: rng.randint(0, 30)] + [rng.randrange(5, 30) for _ in range(rng.randint(1, 8))]
            params = SamplingParams(
                max_tokens=rng.randint(1, 30), temperature=rng.choice([0.0, 0.0, 0.8]), seed=rng.randrange(99),
                stop_token_ids=[rng.randrange(269)], ignore_eos=rng.random() < 0.5, min_tokens=0,
            )  # fmt: skip
            going.append(engine.add_request(ids, params))
        if going and rng.random() < 0.04:
            engine.abort(going.pop(rng.randrange(len(going))))
        for output in engine.step():
            assert output.error is None
        ended += [r for r in going if r.finish_reason is not None]
        going = [r for r in going if r.finish_reason is None]
    drain(engine)
    alone = engine_of(copier, tokenizer, None)
    for request in ended + going:
        (wanted,) = said(alone, [request.prompt_ids], request.params)
        assert request.output_ids == wanted.output_ids
        assert request.finish_reason == wanted.finish_reason
        assert request.text == wanted.text


def test_preempted_requests_have_drafts_again(copier, tokenizer):
    prompts = [[5 + i, *COPY] for i in range(5)]
    params = replace(GREEDY, max_tokens=50)
    wanted = [r.output_ids for r in said(engine_of(copier, tokenizer, None), prompts, params)]
    for method in ("ngram", "draft"):
        engine = engine_of(copier, tokenizer, method, num_blocks=40, max_num_seqs=3)
        requests = said(engine, prompts, params)
        assert [r.output_ids for r in requests] == wanted
        assert sum(r.num_preemptions for r in requests) > 0


def test_the_small_models_cache_reuses_what_it_has_read(copier, tokenizer):
    engine = engine_of(copier, tokenizer, "draft")
    for _ in range(2):
        said(engine, [COPY], GREEDY)
    pool = engine.speculator.proposer.runner.pool
    assert pool.hit_tokens >= len(COPY) - 4


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_ends_inside_a_draft(copier, tokenizer, method, run_ahead):
    """Stop tokens, stop strings, max_tokens and the end of the context, each at every place of a reply."""
    reply = greedy_by_full_forward(copier, COPY, (), 24)
    text = tokenizer.decode(reply)
    for count in range(1, 14):
        cases = [
            replace(GREEDY, max_tokens=count),
            replace(GREEDY, stop_token_ids=[reply[count]]),
            replace(GREEDY, stop_token_ids=[reply[0]], min_tokens=count),
            replace(GREEDY, stop=text[count : count + 3] or "x", logprobs=True, top_logprobs=2),
        ]
        for params in cases:
            (wanted,) = said(engine_of(copier, tokenizer, None), [COPY], params)
            (got,) = said(engine_of(copier, tokenizer, method, run_ahead=run_ahead), [COPY], params)
            assert (got.output_ids, got.text, got.finish_reason) == (
                wanted.output_ids,
                wanted.text,
                wanted.finish_reason,
            )
            assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
            assert [[i for i, _ in top] for top in got.top_logprobs] == [
                [i for i, _ in top] for top in wanted.top_logprobs
            ]
    for longest in range(len(COPY) + 1, len(COPY) + 10):
        (wanted,) = said(engine_of(copier, tokenizer, None, max_model_len=longest), [COPY], GREEDY)
        (got,) = said(engine_of(copier, tokenizer, method, max_model_len=longest, run_ahead=run_ahead), [COPY], GREEDY)
        assert got.output_ids == wanted.output_ids
        assert got.finish_reason == "length"
        assert got.num_tokens == longest


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_a_seed_gives_the_same_text(copier, tokenizer, method):
    params = [SamplingParams(max_tokens=30, temperature=0.3, seed=seed, ignore_eos=True) for seed in range(6)]
    wanted = [r.output_ids for r in said(engine_of(copier, tokenizer, None), [COPY] * 6, params)]
    engine = engine_of(copier, tokenizer, method)
    assert [r.output_ids for r in said(engine, [COPY] * 6, params)] == wanted
    assert engine.speculation.accepted_tokens > 0


def tiny_vocabulary_model(seed, spread):
    config = ModelConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=16,
        max_seq_len=16,
    )  # fmt: skip
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


@pytest.mark.parametrize(
    ("method", "cuts"), [("ngram", {}), ("draft", {}), ("draft", {"temperature": 0.7, "top_k": 4})]
)
def test_sampled_replies_have_the_models_distribution(tokenizer, method, cuts):
    """Chi-square of whole replies of three tokens against their exact probabilities."""
    model, small = tiny_vocabulary_model(1, 0.7), tiny_vocabulary_model(2, 0.7)
    prompt, tokens, runs = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], 3, 3000
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, **cuts)
    speculation = SpeculationConfig(method=method, num_tokens=3, min_ngram=1, max_batch=64)
    config = EngineConfig(
        max_num_seqs=50, max_model_len=16, max_num_batched_tokens=512, block_size=4, num_blocks=200,
        speculation=speculation,
    )  # fmt: skip
    proposer = None
    if method == "draft":
        runner = PagedDraftRunner(small, slots=50, max_len=16, block_size=4, vocab_size=6)
        proposer = DraftProposer(runner, seed=5)
    engine = Engine(model, tokenizer, config, proposer=proposer)
    engine.speculator.control.allows = lambda batch: batch > 0
    draw, counts = random.Random(0), Counter()
    for _ in range(runs // 50):
        seeds = [None if method == "draft" else draw.getrandbits(60) for _ in range(50)]
        requests = [engine.add_request(prompt, replace(params, seed=seed)) for seed in seeds]
        for request in requests:
            request.seed = draw.getrandbits(60)
        while engine.has_work:
            engine.step()
        counts.update(tuple(r.output_ids) for r in requests)
    assert engine.speculation.accepted_tokens > 100
    assert engine.speculation.drafts > runs / 2
    assert engine.speculation.accepted_tokens < engine.speculation.draft_tokens - 100
    wanted = exact(model, prompt, tokens, params)
    rare = sum(p for p in wanted.values() if p * runs < 8)
    often = {reply: p for reply, p in wanted.items() if p * runs >= 8}
    statistic = sum((counts[reply] - p * runs) ** 2 / (p * runs) for reply, p in often.items())
    others = runs - sum(counts[reply] for reply in often)
    statistic += (others - rare * runs) ** 2 / max(rare * runs, 1.0)
    freedom = len(often)
    assert all(reply in wanted for reply in counts)
    assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5, f"{statistic:.1f} with {freedom} degrees of freedom"


@torch.no_grad()
def exact(model, prompt, tokens, params):
    """Each reply's probability."""
    replies = {(): 1.0}
    for _ in range(tokens):
        longer = {}
        for reply, before in replies.items():
            logits = model(torch.tensor([[*prompt, *reply]]))[0, -1] / params.temperature
            if params.top_k:
                logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
            for token, p in enumerate(logits.softmax(-1).tolist()):
                if p > 0:
                    longer[*reply, token] = before * p
        replies = longer
    return replies


def test_a_large_batch_has_no_drafts(copier, tokenizer):
    engine = engine_of(copier, tokenizer, max_batch=3)
    said(engine, [[*COPY, i] for i in range(5, 10)], replace(GREEDY, max_tokens=8))
    assert engine.speculation.drafts == 0
    said(engine, [[*COPY, i] for i in range(5, 8)], replace(GREEDY, max_tokens=8))
    assert engine.speculation.drafts > 0


def test_it_is_measured_before_it_is_judged(copier, tokenizer):
    engine = engine_of(copier, tokenizer, eager=False)
    said(engine, [COPY], replace(GREEDY, max_tokens=60))
    sizes = engine.speculator.control._of(1)
    assert len(sizes.plain) >= 4
    assert len(sizes.drafted) + sizes.unjudged > 0


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_a_form_is_kept_with_drafts(copier, tokenizer, method):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    prompt = tokenizer.encode("abcd abcd abcd abcd ")
    drafts = 0
    for form in ({"regex": "(abcd ){4}[a-z]{6}"}, {"json_schema": schema}):
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=40, temperature=temperature, seed=5, **form)
            (wanted,) = LLM.from_model(copier, tokenizer, max_num_seqs=2).generate([prompt], params)
            speculation = SpeculationConfig(method=method, min_ngram=1)
            small = make_model(seed=9) if method == "draft" else None
            llm = LLM.from_model(copier, tokenizer, draft_model=small, max_num_seqs=2, speculation=speculation)
            llm.engine.speculator.control.allows = lambda batch: True
            (got,) = llm.generate([prompt], params)
            assert (got.text, got.token_ids) == (wanted.text, wanted.token_ids)
            drawn = replace(params, seed=None, temperature=1.0)  # drafts with probabilities, where a model makes them
            for reply in llm.generate([prompt] * 3, drawn):
                assert "regex" not in form or re.fullmatch(form["regex"], reply.text)
                assert "regex" in form or reply.finish_reason == "length" or isinstance(json.loads(reply.text), dict)
            drafts += llm.engine.speculation.drafts
    assert drafts > 10


def test_penalties_have_no_drafts(copier, tokenizer):
    params = replace(GREEDY, repetition_penalty=1.2)
    (wanted,) = said(engine_of(copier, tokenizer, None), [COPY], params)
    engine = engine_of(copier, tokenizer)
    first, second = said(engine, [COPY, COPY], [params, GREEDY])
    assert first.output_ids == wanted.output_ids
    assert second.output_ids == greedy_by_full_forward(copier, COPY, (), 24)
    assert engine.speculation.drafts > 0


def test_settings_that_contradict_each_other_are_refused(copier, tokenizer):
    with pytest.raises(GristmillError, match="needs draft_model"):
        LLM.from_model(copier, tokenizer, speculation=SpeculationConfig(method="draft"))
    with pytest.raises(GristmillError, match="contradict"):
        LLM.from_model(copier, tokenizer, draft_model=copier, speculation=SpeculationConfig())
    with pytest.raises(GristmillError, match="has 6 tokens"):
        LLM.from_model(copier, tokenizer, draft_model=tiny_vocabulary_model(0, 1.0))


def test_a_small_model_with_other_tokens_is_refused(copier, tokenizer, tmp_path):
    save_model(copier, tmp_path / "same", tokenizer.directory)
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"the":', '"eht":').replace('["th","e"]', '["e","ht"]'))
    stored = json.loads(file.read_text())
    stored["model"]["merges"] = [pair for pair in stored["model"]["merges"] if pair[0] not in ("e", "th", "Ġ")]
    file.write_text(json.dumps(stored))
    assert LLM(tmp_path / "same", draft_model=tmp_path / "same").engine.speculation is not None
    with pytest.raises(GristmillError, match="another vocabulary"):
        LLM(tmp_path / "same", draft_model=tmp_path / "other")
