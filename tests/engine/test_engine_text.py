"""Streaming text: the pieces are the whole, and nothing of a stop string is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.text import TextStream


def pieces_of(tokenizer, ids, stop=()):
    """What each token gave, up to the stop; then whether it stopped."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    pieces.append(stream.finish())
    return pieces, stream.stopped


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 268), max_size=40))
def test_any_tokens_stream_to_what_they_decode_to(tokenizer, ids):
    pieces, _ = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("abé€ "), max_size=30),
    st.lists(st.text(st.sampled_from("abé "), min_size=1, max_size=4), max_size=4),
)
def test_text_ends_before_the_first_stop_string(tokenizer, text, stop):
    pieces, stopped = pieces_of(tokenizer, tokenizer.encode(text), stop)
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)
    assert stopped == any(s in text for s in stop)
    if stopped:
        assert any(text.startswith(s, len(shown)) for s in stop)
    else:
        assert shown == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab"), max_size=20), st.text(st.sampled_from("ab"), min_size=1, max_size=4))
def test_what_is_shown_is_as_much_as_is_certain(tokenizer, text, stop):
    """After every token: all text but the longest end that may begin the stop string."""
    stream = TextStream(tokenizer, [stop])
    shown = ""
    for i, token in enumerate(tokenizer.encode(text)):
        shown += stream.push(token)
        seen = text[: i + 1]
        if stream.stopped:
            assert shown == seen[: seen.find(stop)]
            return
        held = max(n for n in range(len(stop)) if seen.endswith(stop[:n]))
        assert shown == seen[: len(seen) - held]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("aaab", ["aab"], "a"),  # the first a looked like the beginning and was not
        ("caféééx", ["éx"], "caféé"),  # the stop string begins inside a character's bytes
        ("xyz", ["zy"], "xyz"),  # held back to the end, then given
        ("the\nUser: hi", ["\nUser:", "\nAssistant:"], "the"),
    ],
)
def test_examples(tokenizer, text, stop, shown):
    assert "".join(pieces_of(tokenizer, tokenizer.encode(text), stop)[0]) == shown
