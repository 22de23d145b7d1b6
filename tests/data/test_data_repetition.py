"""Gopher's repetition measures against plain Python that follows the definitions word by word."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.clean import clean
from gristmill.data.repetition import Repetition
from gristmill.data.textbatch import TextBatch

WORDS = st.sampled_from([["a", "bb"], ["a", "bb", "the", "é", "\n", "\n\n", "c,"]])
TEXT = WORDS.flatmap(lambda words: st.lists(st.sampled_from(words), max_size=80)).map(" ".join).map(clean)


def repeated(parts: list[str]) -> list[str]:
    return [part for i, part in enumerate(parts) if part in parts[:i]]


def share(part: float, whole: int) -> float:
    return part / max(whole, 1)


def top_ngram(text: str, n: int) -> float:
    words = text.split()
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    gram, count = counts.most_common(1)[0] if counts else ("", 0)
    return share(len(gram) * count if count > 1 else 0, len(text))


def duplicate_ngrams(text: str, n: int) -> float:
    words, met, place, found = text.split(), set(), 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in met:
            found += sum(map(len, gram))
            place += n
        else:
            met.add(gram)
            place += 1
    return share(found, len(text))


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_measures_equal_the_definitions(texts: list[str]) -> None:
    measured = Repetition(TextBatch(texts))
    top, duplicate = measured.ngrams([2, 3, 4], [5, 6, 7, 10])
    for i, text in enumerate(texts):
        lines = [line for line in text.split("\n") if line]
        paragraphs = [paragraph for paragraph in re.split(r"\n{2,}", text) if paragraph]
        assert measured.duplicate_lines[i] == share(len(repeated(lines)), len(lines))
        assert measured.duplicate_line_characters[i] == share(sum(map(len, repeated(lines))), len(text))
        assert measured.duplicate_paragraphs[i] == share(len(repeated(paragraphs)), len(paragraphs))
        assert measured.duplicate_paragraph_characters[i] == share(sum(map(len, repeated(paragraphs))), len(text))
        assert {n: values[i] for n, values in top.items()} == {n: top_ngram(text, n) for n in top}
        assert {n: values[i] for n, values in duplicate.items()} == {n: duplicate_ngrams(text, n) for n in duplicate}


def test_repeats_in_different_documents_do_not_count() -> None:
    text = "one two three four five six seven"
    top, duplicate = Repetition(TextBatch([text, text])).ngrams([2], [5])
    assert top[2].tolist() == [0, 0]
    assert duplicate[5].tolist() == [0, 0]


def test_the_share_of_a_known_text() -> None:
    # "a b c d e" twice: the second five words are a 5-gram met before, 5 of the 19 characters.
    text = "a b c d e a b c d e"
    top, duplicate = Repetition(TextBatch([text])).ngrams([2], [5])
    assert duplicate[5][0] == pytest.approx(5 / 19)
    assert top[2][0] == pytest.approx(2 * 3 / 19)
