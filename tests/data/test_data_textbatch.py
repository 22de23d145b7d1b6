"""Spans and hashes of a batch against Python's own string methods."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.clean import clean
from gristmill.data.textbatch import Spans, TextBatch, hash_words

TEXT = st.text(alphabet=st.sampled_from("abAB _.,;-\t\n\n09é€漢😀"), max_size=60).map(clean)


def strings(batch: TextBatch, spans: Spans) -> list[list[str]]:
    data = batch.bytes.tobytes()
    found = [data[s:e].decode() for s, e in zip(spans.starts, spans.ends, strict=True)]
    return [found[a:b] for a, b in zip(spans.offsets[:-1], spans.offsets[1:], strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, max_size=6))
def test_spans_are_what_string_methods_give(texts: list[str]) -> None:
    batch = TextBatch(texts)
    assert strings(batch, batch.words) == [text.split() for text in texts]
    assert strings(batch, batch.lines) == [[line for line in text.split("\n") if line] for text in texts]
    assert strings(batch, batch.paragraphs) == [[p for p in re.split(r"\n{2,}", text) if p] for text in texts]
    assert strings(batch, batch.tokens) == [re.findall(r"(?:\w|[^\x00-\x7f])+", text) for text in texts]
    for spans in (batch.words, batch.lines):
        lengths = [[len(string) for string in row] for row in strings(batch, spans)]
        assert spans.sum(batch.characters(spans)).tolist() == [sum(row) for row in lengths]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_hashes_are_equal_exactly_where_strings_are(texts: list[str]) -> None:
    batch = TextBatch(texts)
    words = [word for row in strings(batch, batch.words) for word in row]
    assert len(set(batch.hashes(batch.words).tolist())) == len(set(words))
    by_word = dict(zip(words, batch.hashes(batch.words).tolist(), strict=True))
    assert all(by_word[word] == h for word, h in zip(words, batch.hashes(batch.words).tolist(), strict=True))
    tokens = [token for row in strings(batch, batch.tokens) for token in row]
    folded = {re.sub("[A-Z]", lambda m: m.group().lower(), token) for token in tokens}
    assert len(set(batch.folded_hashes(batch.tokens).tolist())) == len(folded)


def test_a_word_hashes_alike_in_every_place_and_batch() -> None:
    alone = hash_words(("grist", "mill"))
    long = TextBatch(["x " * 5000 + "mill", "grist"])
    assert alone[::-1].tolist() == long.hashes(long.words)[-2:].tolist()


def test_anagrams_and_long_runs_do_not_collide() -> None:
    words = [f"{a}{b}{c}{d}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh" for d in "abcdefgh"]
    words += ["a" * n for n in range(1, 300) if n != 4]
    assert len(np.unique(hash_words(tuple(words)))) == len(words)


def test_an_empty_batch_has_no_spans() -> None:
    batch = TextBatch([])
    assert len(batch.words) == len(batch.lines) == len(batch.paragraphs) == 0
    assert TextBatch(["", ""]).words.counts.tolist() == [0, 0]
