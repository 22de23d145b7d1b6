"""Cleaning and cutting."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.data.clean import clean, drop_lines, pieces

RAW = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from(" \t\n\r\x0b\x0c\x00\x85\xa0\u200b\u2028\ufeff\u0301e"),
        st.characters(max_codepoint=127),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(RAW)
@example("a\n \t")
@example("e\u200b\u0301 \r\n\r\n\r\n\r\n\r\nx\ud800")
def test_clean_text_is_clean_and_stays_so(raw: str) -> None:
    text = clean(raw)
    assert clean(text) == text
    assert unicodedata.is_normalized("NFC", text)
    assert text.split() == [word for word in text.replace("\t", " ").replace("\n", " ").split(" ") if word]
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert "\n\n\n\n" not in text
    assert text == text.strip("\n")
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\n\t")


def test_known_cases() -> None:
    assert clean("a\r\nb\rc\x0cd") == "a\nb\nc\nd"
    assert clean("\ufeffcafe\u0301\u00a0au\u200b lait \u2028x") == "café au lait\nx"
    assert clean("    indented\n\tcode  \n") == "    indented\n\tcode"


def test_policy_lines_are_dropped_and_others_kept() -> None:
    text = "Text.\nSee our Privacy Policy here\nMore."
    assert drop_lines(text, ("privacy policy",)) == "Text.\nMore."
    assert drop_lines(text, ("cookie",)) == text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["word", "é", "x" * 40, "\n", "\n\n", "  ", "漢字"]), max_size=120), st.integers(20, 90)
)
def test_pieces_fit_and_lose_nothing_but_blanks(parts: list[str], limit: int) -> None:
    text = clean(" ".join(parts))
    cut = pieces(text, limit)
    assert all(0 < len(piece.encode()) <= limit for piece in cut)
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(clean(piece) == piece for piece in cut)


def test_a_text_that_fits_is_not_touched() -> None:
    assert pieces("a\n\nb", 4) == ["a\n\nb"]


def test_the_best_border_is_taken() -> None:
    code = "def one():\n    a\n\n    b\n\ndef two():\n    c\n\n    d"
    assert pieces(code, 30) == ["def one():\n    a\n\n    b", "def two():\n    c\n\n    d"]
    assert pieces("aaaa bbbb\ncccc dddd", 12) == ["aaaa bbbb", "cccc dddd"]
    assert pieces("é" * 10, 8) == ["ééé", "ééé", "éééé"]


def test_pieces_are_of_about_equal_size() -> None:
    text = "\n\n".join(["line " * 10 + str(i) for i in range(50)])
    sizes = [len(piece) for piece in pieces(text, 1000)]
    assert min(sizes) > 0.5 * max(sizes)
