"""Learning merges: the same as `tokenizers` learns, from counts of any size, whatever the tables hold."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from gristmill.tokenizer.training import merges as merges_module
from gristmill.tokenizer.training.merges import byte_order, learn_merges

Merges = list[tuple[int, int]]


def library_merges(words: dict[str, int], merges: int, least: int, most_bytes: int | None) -> Merges:
    """What BpeTrainer learns from a text that holds each word so often; a line break parts words."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        min_frequency=least,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=None if most_bytes is None else most_bytes + 1,  # it takes lengths below that
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\n".join([word] * count) for word, count in words.items()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def our_merges(words: dict[str, int], merges: int, least: int = 1, most_bytes: int | None = None) -> Merges:
    column = pa.array([word.encode() for word in words], pa.binary())
    found = learn_merges(column, np.array(list(words.values()), np.int64), merges, least, most_bytes)
    return [(left, right) for left, right in found.tolist()]


def words_of(letters: str, longest: int) -> st.SearchStrategy[dict[str, int]]:
    word = st.text(st.sampled_from(letters), min_size=1, max_size=longest)
    return st.dictionaries(word, st.integers(1, 5), max_size=30)


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(words_of("a", 30), words_of("ab", 20), words_of("abc", 12), words_of("abcdefgh é水", 10)),
    st.sampled_from([1, 3, 30, 1000]),
    st.integers(1, 3),
    st.sampled_from([None, 2, 3, 5]),
)
def test_merges_are_the_librarys(words: dict[str, int], merges: int, least: int, most_bytes: int | None) -> None:
    assert our_merges(words, merges, least, most_bytes) == library_merges(words, merges, least, most_bytes)


@pytest.mark.parametrize("word", ["aaaa", "aaaaa", "aaaaaaaaaaaaaaa", "abababa", "aabaabaab", "baaab"])
def test_repeated_letters_are_merged_from_the_left(word: str) -> None:
    assert our_merges({word: 2}, 20) == library_merges({word: 2}, 20, 1, None)


def test_tables_that_grow_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = {
        "".join(map(chr, rng.integers(97, 123, size))): int(rng.integers(1, 9)) for size in rng.integers(2, 20, 5000)
    }
    roomy = our_merges(words, 4000)
    rooms = []
    make = merges_module._Pairs.of
    monkeypatch.setattr(merges_module, "_FIRST_PAIRS", 1 << 14)
    monkeypatch.setattr(merges_module._Pairs, "of", lambda room: rooms.append(room) or make(room))
    assert our_merges(words, 4000) == roomy == library_merges(words, 4000, 1, None)
    assert len(rooms) > 2


def test_counts_have_64_bits() -> None:
    words = {"ab": 2**40, "cd": 2**40 + 1, "ef": 3 * 2**31, "gh": 2**31}
    order = {byte: place for place, byte in enumerate(byte_order().tolist())}
    expected = [(order[ord(word[0])], order[ord(word[1])]) for word in ("cd", "ab", "ef", "gh")]
    assert our_merges(words, 10) == expected
    assert our_merges(words, 10, least=2**40 + 1) == expected[:1]


def test_a_word_may_be_long() -> None:
    letters = "".join(np.random.default_rng(1).choice(list("ACGT"), 30_000))
    assert our_merges({letters: 3}, 300) == library_merges({letters: 3}, 300, 1, None)


def test_progress_and_no_words() -> None:
    said: list[tuple[int, int]] = []
    found = learn_merges(
        pa.array([], pa.binary()), np.zeros(0, np.int64), 5, progress=lambda done, total: said.append((done, total))
    )
    assert found.shape == (0, 2)
    assert said == [(0, 5)]


def test_a_slice_of_a_column_is_read_as_such() -> None:
    whole = pa.array([b"zzz", b"abab", b"cd", b"zz"], pa.binary())
    counts = np.array([2, 1], np.int64)
    assert learn_merges(whole.slice(1, 2), counts, 5).tolist() == our_merges_list({"abab": 2, "cd": 1})


def our_merges_list(words: dict[str, int]) -> list[list[int]]:
    return [list(pair) for pair in our_merges(words, 5)]


def test_byte_order_is_the_librarys() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for place, byte in enumerate(byte_order().tolist()):
        if byte < 0x80:
            assert vocabulary.pre_tokenize_str(chr(byte))[0][0] == letters[place]
    assert sorted(byte_order().tolist()) == list(range(256))
