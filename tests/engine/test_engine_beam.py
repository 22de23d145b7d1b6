"""Beam search against transformers', and by exhaustion."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gristmill.engine.beam import BeamSearch, Turn

VOCAB, SPREAD = 14, 0.5


@pytest.fixture(scope="module")
def llamas():
    """A few tiny models with weights so wide that their distributions are uneven."""
    made = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
            )
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, SPREAD)
        made.append(model)
    return made


class Bench:
    """Runs a search as the engine would: a row of tokens for each beam, forked, dropped and lengthened as told."""

    def __init__(self, model, prompt, search):
        self.model, self.prompt, self.search = model, prompt, search
        self.rows = {0: list(prompt)}
        self.most_rows = 1

    @torch.no_grad()
    def run(self):
        while not self.search.done:
            names = [beam.id for beam in self.search.running]
            assert sorted(names) == sorted(self.rows)
            logits = self.model(torch.tensor([self.rows[name] for name in names])).logits[:, -1].float()
            values, ids = logits.log_softmax(-1).topk(min(self.search.num_candidates, logits.shape[1]))
            top = {name: list(zip(ids[i].tolist(), values[i].tolist(), strict=True)) for i, name in enumerate(names)}
            self.follow(self.search.advance(top))
        assert not self.rows
        return self.search.best(self.search.width)

    def follow(self, turn: Turn):
        for parent, child in turn.forks:
            assert child not in self.rows
            self.rows[child] = list(self.rows[parent])
        for name in turn.ended:
            del self.rows[name]
        assert set(turn.tokens) == set(self.rows)
        for name, token in turn.tokens.items():
            self.rows[name].append(token)
        for beam in self.search.running:
            assert self.rows[beam.id] == [*self.prompt, *beam.tokens]
            assert math.isclose(sum(beam.logprobs), beam.total, abs_tol=1e-9)
        assert len(self.rows) <= self.search.width


def of_transformers(model, prompt, width, max_tokens, end_ids, length_penalty):
    """Its sequences without what pads them, and their scores."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=list(end_ids) or None,
        pad_token_id=0,
        length_penalty=length_penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    texts = []
    for sequence in found.sequences[:, len(prompt) :].tolist():
        ends = [i for i, token in enumerate(sequence) if token in end_ids]
        texts.append(sequence[: ends[0] + 1] if ends else sequence)
    return texts, found.sequences_scores.tolist()


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(
    ("width", "end_ids"), [(4, (3,)), (4, (3, 5)), (4, (1, 3, 5, 8)), (4, ()), (3, (7, 9)), (1, (3,))]
)
def test_sequences_and_scores_are_those_of_transformers(llamas, width, end_ids, length_penalty):
    """Four models and two prompts each, some of which end early and some by length."""
    for model, prompt in itertools.product(llamas, ([1, 2, 4], [9])):
        if width == 1:
            continue_greedily(model, prompt, end_ids, length_penalty)
            continue
        found = Bench(model, prompt, BeamSearch(width, 10, end_ids, length_penalty)).run()
        texts, scores = of_transformers(model, prompt, width, 10, end_ids, length_penalty)
        assert [hypothesis.tokens for hypothesis in found] == texts
        assert [hypothesis.score for hypothesis in found] == pytest.approx(scores, rel=1e-5, abs=1e-5)
        for hypothesis in found:
            assert hypothesis.finish_reason == ("stop" if hypothesis.tokens[-1] in end_ids else "length")
            assert len(hypothesis.logprobs) == len(hypothesis.tokens)


@torch.no_grad()
def continue_greedily(model, prompt, end_ids, length_penalty):
    """One beam is greedy decoding."""
    ids = list(prompt)
    while len(ids) < len(prompt) + 10:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in end_ids:
            break
    (found,) = Bench(model, prompt, BeamSearch(1, 10, end_ids, length_penalty)).run()
    assert found.tokens == ids[len(prompt) :]


def test_searches_end_both_ways(llamas):
    """The comparison above would say little if none ended before the last token, or all did."""
    reasons, lengths = set(), set()
    for model in llamas:
        for hypothesis in Bench(model, [1, 2], BeamSearch(4, 10, (1, 3, 5, 8))).run():
            reasons.add(hypothesis.finish_reason)
            lengths.add(len(hypothesis.tokens))
    assert reasons == {"stop", "length"}
    assert len(lengths) > 3


@torch.no_grad()
def test_a_width_that_covers_everything_finds_the_best_of_all(llamas):
    """All 14 ** 2 texts of two tokens."""
    model = llamas[2]
    first = model(torch.tensor([[1, 2]])).logits[0, -1].log_softmax(-1)
    totals = {}
    for a in range(VOCAB):
        second = model(torch.tensor([[1, 2, a]])).logits[0, -1].log_softmax(-1)
        totals |= {(a, b): float(first[a] + second[b]) for b in range(VOCAB)}
    found = Bench(model, [1, 2], BeamSearch(VOCAB, 2)).run()
    best = sorted(totals, key=totals.__getitem__, reverse=True)[:VOCAB]
    assert [tuple(hypothesis.tokens) for hypothesis in found] == best


def test_forks_go_ends_and_names():
    """By hand: both of two beams go on from one parent, then the other way round."""
    search = BeamSearch(2, 10, {9})
    assert search.num_candidates == 4
    half = math.log(0.5)
    turn = search.advance({0: [(1, half), (2, half - 0.1), (9, -3.0), (3, -4.0)]})
    assert turn == Turn(forks=[(0, 1)], ended=[], tokens={0: 1, 1: 2})
    turn = search.advance({0: [(4, -5.0), (5, -6.0)], 1: [(6, -0.1), (7, -0.2), (9, -9.0)]})
    assert turn == Turn(forks=[(1, 2)], ended=[0], tokens={1: 6, 2: 7})
    assert [beam.tokens for beam in search.running] == [[2, 6], [2, 7]]
    turn = search.advance({1: [(9, -0.1), (3, -2.0)], 2: [(9, -0.1), (3, -3.0)]})
    assert turn == Turn(forks=[], ended=[1, 2], tokens={})
    assert search.done
    assert [hypothesis.tokens for hypothesis in search.best(5)] == [[2, 6, 9], [2, 7, 9]]
    assert search.best() == search.finished[:1]


def test_an_end_among_the_lesser_candidates_does_not_count():
    """Only the `width` best continuations may end a sequence; a token of probability 0 is none at all."""
    search = BeamSearch(1, 10, {9})
    search.advance({0: [(1, -0.5), (9, -0.6)]})
    assert not search.finished
    assert search.advance({0: [(9, -0.1), (2, -math.inf)]}).tokens == {}
    assert search.done
    assert search.best()[0].tokens == [1, 9]
