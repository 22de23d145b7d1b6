"""The small model's drafts and its cache."""

from __future__ import annotations

import random

import pytest
import torch
from engine_fixtures import Recording
from speculation_fixtures import PlainDraftRunner, of_model, of_table, request
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gristmill.engine.fused import FusedDecoder
from gristmill.engine.graphs import DecodeGraphs
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation import draft
from gristmill.engine.speculation.draft import DraftProposer, distribution
from gristmill.engine.speculation.paged import PagedDraftRunner

CYCLE = torch.eye(10).roll(1, dims=1) * 9  # the next token is the last one plus 1, nearly surely


def cycling(max_len=1 << 30):
    runner = PlainDraftRunner(of_table(CYCLE), max_len)
    return runner, DraftProposer(runner, seed=0)


def test_each_request_gets_as_many_tokens_as_asked():
    _, proposer = cycling()
    asked = [request([1, 2, 3], i, temperature=0) for i in range(4)]
    found = proposer.draft(asked, [3, 0, 1, 5])
    assert [one.tokens for one in found] == [[4, 5, 6], [], [4], [4, 5, 6, 7, 8]]
    assert all(one.probs is None for one in found)


def test_after_a_refused_draft_the_cache_goes_on_from_what_is_true():
    runner, proposer = cycling()
    asked = request([1, 2, 3], temperature=0)
    proposer.draft([asked], [4])
    assert runner.rows[0] == [1, 2, 3, 4, 5, 6]
    asked.output_ids = [4, 5, 2]  # two accepted, then the model's own
    assert proposer.draft([asked], [2])[0].tokens == [3, 4]
    assert runner.rows[0] == [1, 2, 3, 4, 5, 2, 3]
    assert runner.tokens_read == 3 + 3 + 1 + 1
    asked.output_ids += [3, 4, 5]  # all accepted; the draft's last token was never read
    assert proposer.draft([asked], [1])[0].tokens == [6]
    assert runner.rows[0] == [1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert runner.tokens_read == 8 + 2


def test_the_same_question_twice_has_the_same_answer():
    """The scheduler had no room for the first draft."""
    runner, proposer = cycling()
    asked = request([1, 2, 3], temperature=0)
    assert proposer.draft([asked], [3]) == proposer.draft([asked], [3])
    assert runner.rows[0] == [1, 2, 3, 4, 5]


def test_a_preempted_request_begins_anew():
    runner, proposer = cycling()
    asked = request([1, 2, 3], temperature=0)
    proposer.draft([asked], [3])
    asked.num_preemptions += 1
    asked.output_ids = [4]
    assert proposer.draft([asked], [2])[0].tokens == [5, 6]
    assert runner.rows[0] == [1, 2, 3, 4, 5]
    proposer.forget(asked)
    proposer.forget(asked)
    assert len(proposer) == len(runner.rows) == 0


def test_long_prompts_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(draft, "CATCH_UP", 6)
    _, proposer = cycling()
    asked = [request([i % 10 for i in range(length)], length, temperature=0) for length in (10, 3, 2)]
    found = [[one.tokens for one in proposer.draft(asked, [2] * 3)] for _ in range(4)]
    assert found[0] == [[], [], []]
    assert found[1] == [[0, 1], [], []]  # four tokens, then two of the second's three
    assert found[2] == [[0, 1], [3, 4], [2, 3]]
    assert found[3] == found[2]


def test_drafts_end_where_the_small_models_context_does():
    """A long one's guesses must not be spoilt by a shorter one's that go on beside it."""
    _, proposer = cycling(max_len=8)
    near, far = request([1, 2, 3, 4, 5], 0, temperature=0), request([1], 1, temperature=0)
    found = proposer.draft([near, far], [6, 6])
    assert [one.tokens for one in found] == [[6, 7, 8], [2, 3, 4, 5, 6, 7]]
    near.output_ids = [6, 7]
    assert proposer.ready(near)
    assert proposer.draft([near], [6])[0].tokens == [8]
    near.output_ids.append(8)
    assert not proposer.ready(near)


def test_probabilities_come_with_what_was_drawn():
    """Greedy, sampled and seeded requests side by side."""
    _, proposer = cycling()
    kinds = [{"temperature": 0}, {"temperature": 2.0, "top_k": 3}, {"seed": 4}, {"temperature": 5.0}]
    asked = [request([1, 2], i, **kind) for i, kind in enumerate(kinds)]
    found = proposer.draft(asked, [4, 4, 4, 2])
    assert [one.probs is None for one in found] == [True, False, True, False]
    assert found[0].tokens == found[2].tokens == [3, 4, 5, 6]
    assert found[1].probs.shape == (4, 10)
    assert found[3].probs.shape == (2, 10)
    last = 2
    for token, row in zip(found[1].tokens, found[1].probs, strict=True):
        torch.testing.assert_close(row, distribution(CYCLE[last][None], [asked[1].params])[0])
        assert row[token] > 0
        last = token


def test_draws_follow_the_distribution():
    _, proposer = cycling()
    asked = [request([i % 10], i, temperature=4.0, max_tokens=2) for i in range(2000)]
    found = torch.tensor([(one.tokens[0] - i) % 10 for i, one in enumerate(proposer.draft(asked, [1] * len(asked)))])
    expected = (CYCLE[0] / 4).softmax(-1).double() * len(asked)
    counts = torch.bincount(found, minlength=10)
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # 99.9 % point at 9 degrees


def test_a_cut_beyond_any_vocabulary_keeps_all():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    asked = SamplingParams(top_k=10**30)
    torch.testing.assert_close(distribution(logits, [asked]), logits.softmax(-1))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.4},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
        {"top_p": 1e-6},
        {"top_k": 1},
    ],
)
def test_the_distribution_is_that_of_transformers(params):
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)) * 2
    params = SamplingParams(**params)
    scores = TemperatureLogitsWarper(params.temperature)(None, logits)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    torch.testing.assert_close(distribution(logits, [params] * 4), scores.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("replayed", [False, True])
def test_a_paged_cache_says_what_the_plain_model_says(model, tokenizer, replayed):
    """Requests grow by right and wrong guesses, are preempted while others take their place, and begin alike."""
    rng = random.Random(3)
    runner = PagedDraftRunner(model, slots=2, max_len=60, block_size=4, vocab_size=tokenizer.vocab_size)
    recording = Recording()
    if replayed:
        runner.runner.fused = FusedDecoder(model)
        runner.runner.graphs = DecodeGraphs(2, 2, recording)
    paged, plain = DraftProposer(runner), DraftProposer(PlainDraftRunner(cut_to(model, tokenizer.vocab_size), 60))
    asked = [request([*range(20, 32), 40 + number], number, temperature=0) for number in range(4)]
    for _ in range(30):
        running = rng.sample(asked, rng.randint(1, 2))
        for one in asked:
            if one in running:
                one.slot = 0
            elif one.slot is not None:
                one.slot, one.num_preemptions = None, one.num_preemptions + 1
        most = [rng.randint(1, 4) for _ in running]
        found = paged.draft(running, most)
        assert found == plain.draft(running, most)
        runner.check()
        for one, made in zip(running, found, strict=True):
            one.output_ids += [*made.tokens[: rng.randint(0, len(made.tokens))], rng.randrange(269)]
            if one.num_tokens > 50:
                del one.output_ids[:]
                paged.forget(one)
                plain.forget(one)
    assert runner.pool.hit_tokens > 12
    assert (recording.replays > 50) == replayed
    for one in asked:
        paged.forget(one)
    runner.check()
    assert runner.pool.num_free == runner.pool.num_blocks


def cut_to(model, vocab_size):
    whole = of_model(model)
    return lambda ids: whole(ids)[:, :vocab_size]
