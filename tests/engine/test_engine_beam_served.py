"""Beam search through the whole engine: transformers' sequences, in any company, without a lost block."""

from __future__ import annotations

import random

import pytest
import torch
from engine_fixtures import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import RequestError, SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.weights.hf import save_model


@pytest.fixture(scope="module")
def exact_model():
    """Other company rounds otherwise, and beams of like weight would change places."""
    return make_model().double()


def engine_of(model, tokenizer, **changes):
    limits = {
        "max_num_seqs": 6, "max_model_len": 64, "max_num_batched_tokens": 64, "block_size": 4, "num_blocks": 120
    }  # fmt: skip
    return Engine(model, tokenizer, EngineConfig(**(limits | changes)))


def drain(engine):
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
    engine.scheduler.check()
    assert engine.blocks.num_free == engine.config.num_blocks
    assert not engine._searches


def found(request):
    return [(one.output_ids, one.finish_reason) for one in (request, *request.others)]


@torch.no_grad()
def by_the_plain_model(model, prompt, width, max_tokens, ends, length_penalty):
    """Beam search word for word over the plain model, every beam whole each time (`early_stopping=False`)."""
    beams, done = [([], 0.0)], []
    while beams:
        length = len(beams[0][0]) + 1
        pairs = []
        for tokens, total in beams:
            logprobs = model(torch.tensor([[*prompt, *tokens]]))[0, -1, :269].log_softmax(-1)
            pairs += [(total + p, [*tokens, token]) for token, p in enumerate(logprobs.tolist())]
        pairs.sort(key=lambda pair: -pair[0])
        beams = []
        for rank, (total, tokens) in enumerate(pairs[: max(2, 1 + len(ends)) * width]):
            if tokens[-1] in ends or length == max_tokens:
                if rank < width:
                    reason = "stop" if tokens[-1] in ends else "length"
                    done.append((total / length**length_penalty, tokens, reason))
            elif len(beams) < width:
                beams.append((tokens, total))
        done = sorted(done, key=lambda one: -one[0])[:width]
        if len(done) == width and beams and beams[0][1] / length**length_penalty <= done[-1][0]:
            break
    return [(tokens, reason) for _, tokens, reason in done]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_engine_finds_what_the_plain_model_finds(model, tokenizer, width, length_penalty):
    stop = [40, 41, 42, *range(100, 140)]
    params = SamplingParams(
        beam_width=width, n=width, max_tokens=8, length_penalty=length_penalty, stop_token_ids=stop, logprobs=True
    )
    ends = {*stop, *tokenizer.stop_ids}
    engine = engine_of(model, tokenizer)
    prompts = [[7, 8, 9], [30], list(range(50, 63))]
    requests = [engine.add_request(ids, params) for ids in prompts]
    drain(engine)
    for ids, request in zip(prompts, requests, strict=True):
        assert found(request) == by_the_plain_model(model, ids, width, 8, ends, length_penalty)
        assert len(request.logprobs) == len(request.output_ids)


def test_sequences_are_those_of_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    model = make_model(seed=2, max_seq_len=64)
    save_model(model, tmp_path, tokenizer.directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    llm = LLM.from_model(model, tokenizer, max_num_seqs=4)
    ends = sorted({*tokenizer.stop_ids, *range(60, 90)})
    for prompt, penalty in (([7, 8, 9], 1.0), ([44] * 5, 0.0), (list(range(20, 30)), 2.0)):
        params = SamplingParams(beam_width=4, n=4, max_tokens=9, length_penalty=penalty, stop_token_ids=ends)
        (completion,) = llm.generate([prompt], params)
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), num_beams=4,
            num_return_sequences=4, max_new_tokens=9, do_sample=False, eos_token_id=ends, pad_token_id=0,
            length_penalty=penalty,
        )[:, len(prompt) :].tolist()  # fmt: skip
        for ours, row in zip((completion, *completion.others), expected, strict=True):
            assert row[: len(ours.token_ids)] == ours.token_ids
            assert len(ours.token_ids) == 9 or ours.token_ids[-1] in ends  # what follows there is filling


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), run_ahead=st.integers(0, 1))
def test_beams_beside_others_with_aborts_and_few_blocks(exact_model, tokenizer, seed, run_ahead):
    """Slots and blocks for fewer sequences than there are beams; every reply is what it is alone."""
    model = exact_model
    rng = random.Random(seed)
    speculation = SpeculationConfig(min_ngram=1) if rng.random() < 0.3 else None
    engine = engine_of(
        model, tokenizer, run_ahead=run_ahead, max_num_seqs=rng.randint(1, 6), num_blocks=rng.choice([16, 20, 30, 90]),
        max_num_batched_tokens=rng.choice([6, 12, 64]), speculation=speculation,
    )  # fmt: skip
    stem, going, ended = [rng.randrange(5, 30) for _ in range(20)], [], []
    for _ in range(30):
        if rng.random() < 0.3 and len(going) < 6:
            ids = stem[: rng.randint(0, 20)] + [rng.randrange(5, 30) for _ in range(rng.randint(1, 6))]
            stop = rng.sample(range(5, 269), 20)
            if rng.random() < 0.5:
                width = rng.randint(1, 5)
                params = SamplingParams(
                    beam_width=width, n=rng.randint(1, width), max_tokens=rng.randint(1, 12), stop_token_ids=stop,
                    prompt_logprobs=rng.choice([None, 2]), length_penalty=rng.choice([0.0, 1.0, 2.0]),
                )  # fmt: skip
            else:
                params = SamplingParams(max_tokens=rng.randint(1, 12), temperature=0.0, stop_token_ids=stop)
            going.append(engine.add_request(ids, params))
        if going and rng.random() < 0.06:
            engine.abort(going.pop(rng.randrange(len(going))))
        for output in engine.step():
            assert output.error is None, output.error
        ended += [r for r in going if r.finish_reason is not None]
        going = [r for r in going if r.finish_reason is None]
        engine.scheduler.check()
    drain(engine)
    for request in ended + going:
        alone = engine_of(model, tokenizer)
        wanted = alone.add_request(request.prompt_ids, request.params)
        drain(alone)
        assert found(request) == found(wanted)
        assert request.text == wanted.text
        assert request.prompt_logprobs == pytest.approx(wanted.prompt_logprobs, abs=1e-4)


def test_beams_share_blocks_and_copy_what_they_write(model, tokenizer):
    engine = engine_of(model, tokenizer)
    prompt = list(range(20, 50))
    engine.add_request(prompt, SamplingParams(beam_width=4, max_tokens=10, ignore_eos=True))
    most, copies = 0, 0
    schedule = engine.scheduler.schedule

    def counted():
        nonlocal copies
        step = schedule()
        copies += 0 if step is None else len(step.copies)
        return step

    engine.scheduler.schedule = counted
    while engine.has_work:
        engine.step()
        most = max(most, engine.config.num_blocks - engine.blocks.num_free)
    assert copies > 0
    assert most <= 7 + 4 * 4  # the prompt's full blocks once, and what each beam has of its own


def test_the_text_ends_before_a_stop_string(model, tokenizer):
    params = SamplingParams(beam_width=3, n=3, max_tokens=8, ignore_eos=True)
    (plain,) = LLM.from_model(model, tokenizer).generate([[7, 8, 9]], params)
    stop = plain.text[2:4]
    (cut,) = LLM.from_model(model, tokenizer).generate(
        [[7, 8, 9]], SamplingParams(beam_width=3, n=3, max_tokens=8, ignore_eos=True, stop=stop)
    )
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_all_that_a_search_gives_back_have_the_prompts_scores(model, tokenizer):
    llm = LLM.from_model(model, tokenizer, max_num_seqs=4, num_blocks=60)
    (best,) = llm.generate([[7, 8, 9]], SamplingParams(beam_width=3, n=3, max_tokens=4, prompt_logprobs=1))
    assert len(best.prompt_logprobs) == 3
    assert [one.prompt_logprobs for one in best.others] == [best.prompt_logprobs] * 2
    assert [one.prompt_top_logprobs for one in best.others] == [best.prompt_top_logprobs] * 2


def test_beams_keep_a_form(model, tokenizer):
    pytest.importorskip("llguidance")
    params = SamplingParams(beam_width=3, n=3, max_tokens=20, choice=["red", "green", "blue"])
    (completion,) = LLM.from_model(model, tokenizer, max_num_seqs=4).generate([[7, 8, 9]], params)
    texts = [one.text for one in (completion, *completion.others)]
    assert set(texts) <= {"blue", "green", "red"}  # some twice: several tokens end a text
    assert len(set(texts)) > 1


def test_a_failing_step_ends_the_search_once(model, tokenizer, monkeypatch):
    engine = engine_of(model, tokenizer)
    request = engine.add_request([7, 8, 9], SamplingParams(beam_width=4, max_tokens=10, ignore_eos=True))
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "launch", lambda *_: 1 / 0)
        outputs = engine.step()
    assert [(o.request, o.finish_reason) for o in outputs] == [(request, "error")]
    other = engine.add_request([7, 8, 9], SamplingParams(max_tokens=3, temperature=0.0))
    drain(engine)
    assert other.finish_reason is not None


def test_likeliest_tokens_of_beams_are_refused(model, tokenizer):
    with pytest.raises(RequestError, match="top_logprobs and beam_width"):
        engine_of(model, tokenizer).add_request([7], SamplingParams(beam_width=2, logprobs=True, top_logprobs=1))
