"""Speculation changes nothing but the number of steps: greedy text is equal, sampled text equally distributed."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from engine_fixtures import greedy_by_full_forward, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation_fixtures import (
    PlainDraftRunner,
    generate,
    of_model,
    of_table,
    request,
    speculator,
    verify_greedy,
    verify_sampling,
)

from gristmill.engine.sampler import Sampler
from gristmill.engine.speculation.draft import DraftProposer
from gristmill.engine.speculation.proposal import Draft, cut_at_end, cut_to_grammar, room


def repeating(attention):
    """A model that looks back so little that its greedy text soon goes in circles."""
    model = make_model(seed=2)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight *= attention
    return model


@pytest.fixture(scope="module")
def model():
    return repeating(0.002)


@pytest.fixture(scope="module")
def small():
    return repeating(0.0)


def proposers(small):
    """The text itself, and a second model that is often right, but not always."""
    return {"ngram": None, "draft": DraftProposer(PlainDraftRunner(of_model(small), max_len=60))}


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_greedy_text_is_that_of_the_plain_model(model, small, kind):
    """Replies of many lengths together, to the end of the context: repeating ones, so that drafts come true."""
    context = model.config.max_seq_len
    prompts = [[5 + (7 * i + j) % 250 for j in range(3 + 9 * i)] for i in range(0, 5, 2)] + [[50, 51, 52, 53] * 5]
    requests = [request(ids, i, temperature=0, max_tokens=20 + 25 * i) for i, ids in enumerate(prompts)]
    made = speculator(proposers(small)[kind], max_model_len=context, num_tokens=5)
    steps = generate(of_model(model), requests, verify_greedy, made, max_model_len=context)
    for one in requests:
        assert one.output_ids == greedy_by_full_forward(model, one.prompt_ids, (), one.params.max_tokens)
    assert 20 < made.figures.accepted_tokens < made.figures.draft_tokens
    assert steps < max(len(one.output_ids) for one in requests)


def test_a_draft_model_like_the_model_is_always_right(model):
    """Then k guesses and the model's own token come from each step; its cache reads no token twice."""
    runner = PlainDraftRunner(of_model(model))
    made = speculator(DraftProposer(runner), num_tokens=4)
    asked = request([60, 61, 62], temperature=0, max_tokens=25)
    steps = generate(of_model(model), [asked], verify_greedy, made)
    assert asked.output_ids == greedy_by_full_forward(model, [60, 61, 62], (), 25)
    assert steps == 5
    assert made.figures.acceptance_length == 5
    assert runner.tokens_read == 27 - 1, "all but the last two; the token before the last draft is not read twice"
    assert len(made.proposer) == len(runner.rows) == 0


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_an_end_inside_a_draft_ends_the_text(model, small, kind):
    """Every token that comes is made an end once, wherever a draft then has it."""
    prompt = [50, 51, 52, 53] * 4
    said = greedy_by_full_forward(model, prompt, (), 40)
    for end in sorted(set(said)):
        asked = request(prompt, temperature=0, max_tokens=40)
        made = speculator(proposers(small)[kind], end_ids=(end,), num_tokens=6)
        generate(of_model(model), [asked], verify_greedy, made, end_ids=(end,))
        assert asked.output_ids == said[: said.index(end) + 1]
        assert asked.finish_reason == "stop"


def test_cutting_at_an_end():
    asked = request([1], max_tokens=50, min_tokens=5)
    asked.output_ids = [1, 1, 1]
    drawn = Draft([4, 9, 4], torch.ones(3, 20) / 20)
    assert cut_at_end(asked, Draft([4, 4, 9, 5, 5]), {9}).tokens == [4, 4, 9]
    assert cut_at_end(asked, Draft([4, 9, 9, 5, 5]), {9}).tokens == [4], "min_tokens forbids it there"
    assert cut_at_end(asked, drawn, {9}).tokens == [4, 9], "a token that was drawn must be refused, not dropped"
    assert cut_at_end(asked, drawn, {9}).probs.shape == (2, 20)
    assert cut_at_end(asked, drawn, {8}) is drawn
    assert cut_at_end(asked, Draft(), {9}).tokens == []


def test_room():
    asked = request([1, 2, 3], max_tokens=10)
    asked.output_ids = [4, 5]
    assert room(asked, 100) == 7
    assert room(asked, 9) == 3
    assert room(asked, 6) == room(asked, 5) == 0


class Alternating:
    """Allows even tokens and odd ones in turn, in a vocabulary of `size`."""

    def __init__(self, size, tokens=()):
        self.size, self.tokens = size, list(tokens)

    def allowed(self):
        return torch.arange(self.size) % 2 == len(self.tokens) % 2

    def mask_into(self, row):
        bits = np.zeros(len(row) * 32, dtype=np.uint8)
        bits[: self.size] = self.allowed().numpy()
        row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token):
        if not self.allowed()[token]:
            return False
        self.tokens.append(token)
        return True

    def rollback(self, count):
        assert count > 0
        del self.tokens[-count:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=6), st.booleans(), st.lists(st.integers(0, 0), max_size=1))
def test_cutting_to_a_grammar(tokens, drawn, before):
    matcher = Alternating(40, before)
    masks = np.zeros((len(tokens) + 1, 2), dtype=np.int32)
    probs = torch.rand(len(tokens), 40) if drawn else None
    kept = cut_to_grammar(matcher, Draft(tokens, probs), masks)
    assert matcher.tokens == before
    turns = [(token + place + len(before)) % 2 == 0 for place, token in enumerate(tokens)]
    good = list(itertools.takewhile(bool, turns))
    assert kept.tokens == tokens[: len(good) + drawn]
    for place in range(len(good) + 1):
        row = np.zeros(2, dtype=np.int32)
        Alternating(40, [*before, *range(place)]).mask_into(row)
        assert (masks[place] == row).all()


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_greedy_text_under_a_grammar(model, small, kind):
    def generated(made):
        asked = request([50, 51, 52, 53] * 4, temperature=0, max_tokens=40)
        asked.matcher = Alternating(model.config.vocab_size)
        generate(of_model(model), [asked], verify_greedy, made)
        return asked.output_ids

    made = speculator(proposers(small)[kind], vocab_size=model.config.vocab_size, num_tokens=5)
    assert generated(made) == generated(None)
    assert made.figures.drafts > 0


VOCAB = 4
TARGET = torch.tensor([[0.1, 1.5, 0.3, -1.0], [1.2, 0.0, 1.0, 0.4], [-0.5, 0.8, 0.1, 1.9], [0.6, -0.2, 0.9, 0.0]])
DRAFTER = torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.0, 1.0, 1.4, -0.8], [0.3, 0.3, 0.5, 1.0], [1.5, -1.0, 0.2, 0.1]])


def by_rejection():
    verify = verify_sampling(torch.Generator().manual_seed(11))
    return lambda asked: verify


def by_sampler():
    """The engine's own check, on the requests' own numbers."""
    sampler = Sampler(1, VOCAB, "cpu")

    def verify_of(asked):
        sampler.place(0, asked)
        slot = torch.tensor([0])

        def verify(logits_KV, drafts, probs):
            position = torch.tensor([asked.num_tokens])
            if not drafts:
                return 0, int(sampler.sample(logits_KV, slot, position).tokens_B)
            drafts_BK = torch.tensor([drafts])
            count = torch.tensor([len(drafts)])
            probs_BKV = None if probs is None else probs[None]
            found = sampler.verify(logits_KV[None], slot, position, drafts_BK, count, probs_BKV)
            return int(found.accepted_B), int(found.next_B)

        return verify

    return verify_of


def check_distribution(make, prompt, verify_of, runs, tokens=3, matcher=None, **params):
    """Chi-square of all texts of `tokens` tokens against the product of the model's probabilities."""
    made = make()
    seen = Counter()
    for number in range(runs):
        asked = request(prompt, number, max_tokens=tokens, **params)
        asked.seed = number  # what a request without a seed draws by chance
        asked.matcher = matcher() if matcher else None
        generate(of_table(TARGET), [asked], verify_of(asked), made)
        seen[tuple(asked.output_ids)] += 1
    assert made.figures.drafts > runs // 2
    assert 0 < made.figures.accepted_tokens < made.figures.draft_tokens
    square, cells = 0.0, 0
    for text in itertools.product(range(VOCAB), repeat=tokens):
        probability, last = 1.0, prompt[-1]
        rules = matcher() if matcher else None
        for token in text:
            row = TARGET[last].masked_fill(~rules.allowed(), -torch.inf) if rules else TARGET[last]
            probability *= float(row.double().softmax(-1)[token])
            last = token
            if rules:
                rules.accept(token)
        if probability == 0:
            assert seen[text] == 0
            continue
        square += (seen[text] - runs * probability) ** 2 / (runs * probability)
        cells += 1
    # The 99.9 % point of chi-square, by Wilson and Hilferty's approximation.
    degrees = cells - 1
    assert square < degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3, (square, degrees)


def drafting():
    return speculator(
        DraftProposer(PlainDraftRunner(of_table(DRAFTER)), seed=3), vocab_size=VOCAB, num_tokens=3, max_batch=1
    )


def looking_up():
    return speculator(vocab_size=VOCAB, num_tokens=3, min_ngram=1, max_ngram=2)


CHECKS = pytest.mark.parametrize(("checked", "runs"), [(by_rejection, 2500), (by_sampler, 800)])
REPEATING = [1, 2, 0, 1, 3, 2, 1, 0, 1]


@CHECKS
def test_sampled_text_with_a_draft_model_has_the_models_distribution(checked, runs):
    check_distribution(drafting, [2, 0], checked(), runs)


@CHECKS
def test_sampled_text_with_look_ups_has_the_models_distribution(checked, runs):
    check_distribution(looking_up, REPEATING, checked(), runs)


def test_sampled_text_with_likeliest_drafts_has_the_models_distribution():
    """Seeded requests, each with another seed: the small model's best tokens, checked by the model's own draws."""
    check_distribution(drafting, [2, 0], by_sampler(), 800, seed=1)


@CHECKS
def test_sampled_text_under_a_grammar_has_the_masked_models_distribution(checked, runs):
    """Fails where a draw that the grammar refuses is dropped from the draft in place of being refused."""
    check_distribution(drafting, [2, 0], checked(), runs, matcher=lambda: Alternating(VOCAB))
    check_distribution(looking_up, REPEATING, checked(), runs // 2, matcher=lambda: Alternating(VOCAB))


def test_a_seeded_text_is_the_same_with_any_drafts():
    verify_of = by_sampler()
    for seed in range(5):
        texts = set()
        for made in (None, looking_up(), drafting()):
            asked = request(REPEATING, max_tokens=40, seed=seed)
            generate(of_table(TARGET), [asked], verify_of(asked), made)
            texts.add(tuple(asked.output_ids))
        assert len(texts) == 1
