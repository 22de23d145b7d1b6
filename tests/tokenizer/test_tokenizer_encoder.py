"""The compiled encoder against the `tokenizers` library: equal ids for every kind of vocabulary it takes."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hard_text import HARD_TEXTS, hard_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gristmill.tokenizer import encoder as encoder_module
from gristmill.tokenizer.encoder import Encoder, byte_letters
from gristmill.tokenizer.kernel import reference
from gristmill.tokenizer.pretokenize import Pattern, build_pretokenizer

PATTERNS = [Pattern("gpt2"), Pattern("gpt2", 2), Pattern("gpt4"), Pattern("gpt4", 2), Pattern("qwen2")]
PATTERNS += [Pattern("smollm")]
SPECIALS = ["<|bos|>", "<|eos|>", "The"]  # one that a pre-token can be
FEW_LETTERS = st.text(st.sampled_from("ab"), min_size=90, max_size=400)  # many merges, equal ranks, one pre-token


@cache
def trained(pattern: Pattern) -> str:
    """tokenizer.json of a vocabulary of 700, with tokens from code, prose, blanks, runs and other scripts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = build_pretokenizer(pattern.name, pattern.digits)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(3)
    runs = ["".join(rng.choices("ab", k=40)) for _ in range(20)]
    backend.train_from_iterator([inspect.getsource(textwrap)[:9000], *HARD_TEXTS * 3, *runs], trainer)
    return backend.to_str()


def ignoring_merges(state: dict[str, Any]) -> None:
    """As Llama 3's: what is in the vocabulary is one token, even where no merges lead to it."""
    vocab = state["model"]["vocab"]
    state["model"]["ignore_merges"] = True
    for token in ("Ġbrown", "ĠÐ¼ÑĭÑģÐ»ÑĮ", "quick", "ĊĊĊĊĊĊĊ", "a" * 255, "b" * 256, "b" * 4096, "no bytes"):
        vocab.setdefault(token, len(vocab))


def in_another_order(state: dict[str, Any]) -> None:
    """Ids that are no ranks: shuffled, far apart."""
    vocab = state["model"]["vocab"]
    ids = random.Random(7).sample(range(3, 100_000), len(vocab))
    for token, number in zip(vocab, ids, strict=True):
        if token not in SPECIALS:
            vocab[token] = number


def merges_twice(state: dict[str, Any]) -> None:
    """Merges that come again later have the later rank."""
    merges = state["model"]["merges"]
    state["model"]["merges"] = [*merges, *merges[10:60:7]]


def plain(state: dict[str, Any]) -> None:
    state["model"]["unk_token"] = "<|eos|>"  # never needed: all bytes are in the vocabulary
    state["model"]["fuse_unk"] = True
    state["model"]["dropout"] = 0.0
    state["model"]["continuing_subword_prefix"] = state["model"]["end_of_word_suffix"] = ""
    state["post_processor"] = json.loads(processors.ByteLevel(trim_offsets=True).__getstate__())


def lacking_bytes(state: dict[str, Any]) -> None:
    """As SmolLM's, which lacks the bytes that its training text lacked: each is one unknown token."""
    model, missing = state["model"], set("ĀaðÃ\u00c3Ċ")
    model["unk_token"] = "<|eos|>"
    vocab = model["vocab"].items()
    model["vocab"] = {token: id for token, id in vocab if token in SPECIALS or not missing & set(token)}
    model["merges"] = [[a, b] for a, b in model["merges"] if not missing & set(a + b)]


CHANGES = [plain, ignoring_merges, in_another_order, merges_twice, lacking_bytes]


@cache
def pair_of(pattern: Pattern, change: Callable[[dict[str, Any]], None]) -> tuple[Tokenizer, Encoder]:
    state = json.loads(trained(pattern))
    change(state)
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = True
    encoder = Encoder.of(backend)
    assert encoder is not None
    return backend, encoder


def encoded(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    ids, offsets = encoder.encode(pa.array(texts, pa.string()))
    assert ids.dtype == np.uint32
    assert offsets.dtype == np.int64
    assert (len(offsets), offsets[0], offsets[-1]) == (len(texts) + 1, 0, len(ids))
    return [part.tolist() for part in np.split(ids, offsets[1:-1])] if texts else []


def expected_ids(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_hard_texts_have_the_ids_of_the_library(pattern: Pattern, change: Any) -> None:
    backend, encoder = pair_of(pattern, change)
    expected = expected_ids(backend, HARD_TEXTS)
    assert encoded(encoder, HARD_TEXTS) == expected
    assert encoded(encoder, HARD_TEXTS[::-1]) == expected[::-1]
    assert [encoded(encoder, [text])[0] for text in HARD_TEXTS] == expected
    code = inspect.getsource(textwrap)
    assert encoded(encoder, [code]) == expected_ids(backend, [code])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(hard_text(), FEW_LETTERS), max_size=4), st.sampled_from(PATTERNS), st.sampled_from(CHANGES))
def test_any_text_has_the_ids_of_the_library(texts: list[str], pattern: Pattern, change: Any) -> None:
    backend, encoder = pair_of(pattern, change)
    assert encoded(encoder, texts) == expected_ids(backend, texts)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(FEW_LETTERS, min_size=1, max_size=4))
def test_any_merges_give_the_ids_of_the_library_and_of_the_reference(seed: int, texts: list[str]) -> None:
    """Merges drawn at random, so that tokens come about in several ways and low ranks after high ones."""
    rng = random.Random(seed)
    vocab = {letter: number for number, letter in enumerate(byte_letters())}
    tokens, merges = ["a", "b"], []
    for _ in range(30):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if [left, right] not in merges and len(left + right) < 20:
            merges.append([left, right])
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                tokens.append(left + right)
    rng.shuffle(merges)
    state = json.loads(trained(Pattern("gpt2")))
    state["added_tokens"], state["model"]["vocab"], state["model"]["merges"] = [], vocab, merges
    backend = Tokenizer.from_str(json.dumps(state))
    encoder = Encoder.of(backend)
    assert encoder is not None
    found = encoded(encoder, texts)
    assert found == expected_ids(backend, texts)
    ranks = {(vocab[a], vocab[b]): (rank, vocab[a + b]) for rank, (a, b) in enumerate(merges)}
    assert found == [reference.merged([vocab[letter] for letter in text], ranks) for text in texts]


def test_special_tokens_are_never_found_in_text() -> None:
    _, encoder = pair_of(Pattern("gpt4"), plain)
    vocab = json.loads(trained(Pattern("gpt4")))["model"]["vocab"]
    ids = encoded(encoder, ["<|bos|><|eos|>The<|bos|>"])[0]
    assert not {vocab[token] for token in SPECIALS} & set(ids)


def test_what_it_remembers_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "KNOWN_SLOTS", 1 << 9)
    backend, large = pair_of(Pattern("qwen2"), plain)
    encoder = Encoder.of(backend)
    assert encoder is not None
    texts = [f"{'word' * (number % 40)}é{number} w{number % 300} {chr(0x4E00 + number)}" for number in range(2000)]
    for _ in range(2):
        for start in range(0, len(texts), 100):
            part = texts[start : start + 100]
            assert encoded(encoder, part) == encoded(large, part)
            slots, stored, ids = encoder._known.used.tolist()
            assert slots <= 1 << 8
            assert max(stored, ids) <= 1 << 11
    assert encoded(encoder, texts) == expected_ids(backend, texts)


@pytest.mark.parametrize("slots", [2, 4, 16])
def test_pieces_that_are_alike_but_for_zeros_at_their_end(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told apart even where they stand side by side in the table."""
    monkeypatch.setattr(encoder_module, "KNOWN_SLOTS", slots)
    backend, _ = pair_of(Pattern("gpt2"), plain)
    encoder = Encoder.of(backend)
    assert encoder is not None
    texts = ["\x00" * length for length in (3, 1, 2, 5, 4, 8, 7, 6, 16, 9, 15, 17)] * 2
    assert encoded(encoder, texts) == expected_ids(backend, texts)


def test_columns_of_every_shape() -> None:
    backend, encoder = pair_of(Pattern("qwen2"), plain)
    expected = expected_ids(backend, HARD_TEXTS)
    for kind in (pa.string(), pa.large_string()):
        ids, offsets = encoder.encode(pa.array(HARD_TEXTS, kind).slice(7, 50))
        assert [part.tolist() for part in np.split(ids, offsets[1:-1])] == expected[7:57]
    ids, offsets = encoder.encode(pa.array([None, "a", None, "", "b", None]))
    assert np.diff(offsets).tolist() == [0, 1, 0, 0, 1, 0]
    for empty in ([], [""], ["", ""], [None]):
        ids, offsets = encoder.encode(pa.array(empty, pa.string()))
        assert (ids.tolist(), offsets.tolist()) == ([], [0] * (len(empty) + 1))


def test_many_more_ids_than_was_reckoned_with() -> None:
    """Every character many ids, in one pre-token after the other."""
    backend, encoder = pair_of(Pattern("gpt2"), plain)
    texts = ["\U000f0001" * 3000, "\U000f0002 " * 20_000]
    assert encoded(encoder, texts) == expected_ids(backend, texts)


@pytest.mark.parametrize("size", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["20 kB", "1 MB"])
@pytest.mark.parametrize("run", ["a", "b", "ab", "é", " ", "\n", "=", "漢"])
def test_long_runs(run: str, size: int) -> None:
    backend, encoder = pair_of(Pattern("gpt4"), plain)
    text = run * (size // len(run))
    assert encoded(encoder, [text]) == expected_ids(backend, [text])


@pytest.mark.parametrize("size", [16, 17, 255, 256, 257, 4095, 4096, 4097])
def test_long_tokens_are_taken_whole(size: int) -> None:
    """The vocabulary has 256 and 4,096 times b, to which no merges lead."""
    backend, encoder = pair_of(Pattern("qwen2"), ignoring_merges)
    texts = ["b" * size, " " + "b" * size + " b", "b" * size]
    assert encoded(encoder, texts) == expected_ids(backend, texts)


def drop_a_byte(state: dict[str, Any]) -> None:
    del state["model"]["vocab"]["Ā"]
    state["model"]["merges"] = []


def fuse_unknown(state: dict[str, Any]) -> None:
    lacking_bytes(state)
    state["model"]["fuse_unk"] = True


def too_long_a_token(state: dict[str, Any]) -> None:
    ignoring_merges(state)
    state["model"]["vocab"]["b" * 5000] = 5000


def set_model(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["model"].update(values)


def set_top(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(values)


@pytest.mark.parametrize(
    "change",
    [
        drop_a_byte,
        fuse_unknown,
        too_long_a_token,
        set_model(dropout=0.1),
        set_model(byte_fallback=True),
        set_model(continuing_subword_prefix="##", merges=[]),
        set_model(end_of_word_suffix="</w>", merges=[]),
        set_top(normalizer={"type": "NFC"}),
        set_top(pre_tokenizer=None),
        set_top(pre_tokenizer={"type": "Whitespace"}),
        set_top(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, added_tokens=[]),
    ],
)
def test_what_is_not_understood_is_left_to_the_library(change: Any) -> None:
    state = json.loads(trained(Pattern("gpt2")))
    assert Encoder.of(Tokenizer.from_str(json.dumps(state))) is not None
    change(state)
    assert Encoder.of(Tokenizer.from_str(json.dumps(state))) is None


def test_what_else_is_left_to_the_library() -> None:
    def backend() -> Tokenizer:
        return Tokenizer.from_str(trained(Pattern("gpt2")))

    padding, truncating, adding, normalizing = backend(), backend(), backend(), backend()
    padding.enable_padding(length=4)
    truncating.enable_truncation(4)
    adding.add_tokens([AddedToken("<think>", special=False)])
    normalizing.normalizer = normalizers.Lowercase()
    for changed in (padding, truncating, adding, normalizing):
        assert Encoder.of(changed) is None
    added = backend()
    added.add_special_tokens(["<|more|>"])
    assert Encoder.of(added) is not None
