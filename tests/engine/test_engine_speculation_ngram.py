"""Prompt lookup against a search of the whole text."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from speculation_fixtures import request

from gristmill.engine.speculation import ngram
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.speculation.ngram import NgramProposer


def longest_earlier_run(ids, shortest, longest):
    """Length of the longest run of last tokens, up to `longest`, that stood before with a token behind it; or 0."""
    best = 0
    for n in range(shortest, longest + 1):
        if any(ids[end - n : end] == ids[-n:] for end in range(n, len(ids))):
            best = n
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=25), max_size=12),
    st.sampled_from([(1, 1), (1, 3), (2, 4), (3, 3)]),
    st.integers(1, 9),
)
def test_a_guess_is_what_followed_the_longest_run(prompt, gains, lengths, most):
    """After any prompt and any gains of several tokens a step, bulk or not: a guess exactly where the shortest run has
    stood before, from behind a place that equals the last tokens as far as the longest run found there or further."""
    shortest, longest = lengths
    proposer = NgramProposer(SpeculationConfig(min_ngram=shortest, max_ngram=longest, num_tokens=9))
    asked = request(prompt, max_tokens=1000)
    for gain in [[], *gains]:
        asked.output_ids += gain
        ids = asked.prompt_ids + asked.output_ids
        found = proposer.propose(asked, most)
        run = longest_earlier_run(ids, shortest, longest)
        assert bool(found) == (run > 0)
        if found:
            index = proposer._indices[asked.id]
            assert index.matched >= run
            assert ids[index.source - index.matched : index.source] == ids[-index.matched :]
            followed = ids[index.source :]
            assert found == [followed[i % len(followed)] for i in range(most)]


def test_a_place_that_goes_on_to_be_right_beats_a_later_one():
    """The run 1 2 stands twice; the text repeats the first place, and later the second's 1 2 is nearer."""
    proposer = NgramProposer(SpeculationConfig(min_ngram=2, max_ngram=2, num_tokens=3))
    asked = request([5, 6, 7, 1, 2, 8, 9, 4, 1, 2, 3, 3, 0, 5, 6], max_tokens=100)
    assert proposer.propose(asked) == [7, 1, 2]
    asked.output_ids += [7, 1, 2]
    assert proposer.propose(asked) == [8, 9, 4]
    asked.output_ids += [3]  # now it was the other
    assert proposer.propose(asked) == [3, 0, 5]


def test_a_guess_goes_round_at_the_end_of_the_text():
    proposer = NgramProposer(SpeculationConfig())
    assert proposer.propose(request([9, 1, 2, 3, 1, 2, 3, 1, 2]), 7) == [3, 1, 2, 3, 1, 2, 3]
    assert proposer.propose(request([9, 4, 4, 4], number=1), 5) == [4] * 5


def test_new_text_has_no_guess():
    proposer = NgramProposer(SpeculationConfig())
    for ids in ([1], [1, 2], list(range(50))):
        assert proposer.propose(request(ids, number=len(ids))) == []


def test_nothing_is_kept_of_a_request_that_is_gone():
    proposer = NgramProposer(SpeculationConfig())
    asked = [request([1, 2, 3, 1, 2], number=i) for i in range(20)]
    for one in asked:
        proposer.propose(one)
    assert len(proposer) == 20
    for one in asked:
        proposer.forget(one)
        proposer.forget(one)
        proposer.verified(one, 3, 0)
    assert len(proposer) == 0


def test_a_huge_prompt_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(ngram, "CATCH_UP", 100)
    rng = random.Random(0)
    text = [rng.randrange(1000) for _ in range(330)]
    asked = request(text + text[10:20])
    proposer = NgramProposer(SpeculationConfig(num_tokens=4))
    assert [proposer.propose(asked) for _ in range(5)] == [[], [], [], text[20:24], text[20:24]]


def test_misses_make_it_rest_ever_longer_and_a_hit_ends_that():
    proposer = NgramProposer(SpeculationConfig(min_ngram=1, max_ngram=1, num_tokens=2))
    rng = random.Random(0)
    asked = request([rng.randrange(4) for _ in range(20)], max_tokens=10_000)

    def rest(accepted):
        """Tokens until it is ready again, where what it guesses is never right."""
        proposer.verified(asked, 2, accepted)
        for count in range(200):
            if proposer.ready(asked):
                return count
            guessed = proposer._indices[asked.id].guess(1)
            asked.output_ids.append((guessed[0] + 1) % 4)
        raise AssertionError("it never tried again")

    assert proposer.ready(asked)
    assert [rest(0) for _ in range(8)] == [2, 4, 8, 16, 32, 64, 64, 64]
    assert rest(1) == 0
    assert rest(0) == 2


def test_a_long_match_ends_a_rest():
    """Copying that begins while a request rests is seen, since look-ups go on."""
    proposer = NgramProposer(SpeculationConfig(min_ngram=2, max_ngram=3, num_tokens=4))
    text = list(range(40))
    asked = request([*text, 90, 91, 90, 91], max_tokens=1000)
    assert proposer.ready(asked)
    for _ in range(6):
        proposer.verified(asked, 4, 0)
    ready = []
    for token in text[:12]:
        asked.output_ids.append(token)
        ready.append(proposer.ready(asked))
    assert ready == [False] * 5 + [True] * 7


def test_no_drafted_tokens_is_no_miss():
    """The scheduler had no room for the draft."""
    proposer = NgramProposer(SpeculationConfig())
    asked = request([1, 2, 3, 1, 2, 3])
    assert proposer.ready(asked)
    proposer.verified(asked, 0, 0)
    assert proposer.ready(asked)


@pytest.mark.parametrize("settings", [{"min_ngram": 5}, {"num_tokens": 0}, {"max_batch": 0}, {"method": "medusa"}])
def test_settings_are_checked(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        SpeculationConfig(**settings)
