"""Text to ids and back: lossless, special strings are letters, streams emit whole characters."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import HARD_TEXTS, VOCAB_SIZE

from gristmill.errors import GristmillError
from gristmill.tokenizer.fertility import fertility
from gristmill.tokenizer.tokenizer import Tokenizer, check_same

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
# Strings in which the borders of pre-tokens, and what looks like them, are frequent.
TANGLED = st.lists(
    st.sampled_from(
        [
            "a",
            "Z",
            "é",
            "ſ",
            "'",
            "'s",
            "'LL",
            " ",
            "  ",
            "\n",
            "\r",
            "\t",
            "\x1c",
            "\u3000",
            "1",
            "٣",
            ".",
            "-",
            "_",
            "漢",
        ]
    ),
    max_size=40,
).map("".join)
IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60)


@settings(deadline=None)
@given(text=TEXT)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_round_trip_of_hard_texts(any_directory: Path, text: str) -> None:
    tokenizer = Tokenizer.load(any_directory)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.special_ids.isdisjoint(ids)


def test_encode_batch_is_encode(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(HARD_TEXTS) == [tokenizer.encode(text) for text in HARD_TEXTS]
    assert tokenizer.encode_batch([]) == []


@settings(deadline=None)
@given(text=TEXT)
def test_token_bytes_sum_to_the_length_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_token_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes.dtype == np.int64
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert set(np.flatnonzero(tokenizer.token_bytes == 0)) == tokenizer.special_ids


def test_lone_surrogates_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    text = "a\ud800b\udfff\ud83d\ude00"
    assert tokenizer.encode(text) == tokenizer.encode("a\ufffdb\ufffd\ufffd\ufffd")
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]


@settings(deadline=None)
@given(ids=IDS)
def test_decode_equals_the_library(tokenizer: Tokenizer, directory: Path, ids: list[int]) -> None:
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


def test_decode_of_special_and_unused_ids(tokenizer: Tokenizer) -> None:
    ids = [0, *tokenizer.encode("grain"), 4, VOCAB_SIZE, VOCAB_SIZE + 100]
    assert tokenizer.decode(ids) == "grain"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|bos|>grain<|im_end|>"
    assert tokenizer.decode(np.array(ids)) == "grain"


@settings(deadline=None)
@given(ids=IDS, skip=st.booleans())
def test_stream_joins_to_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = tokenizer.stream(skip_special_tokens=skip)
    pushed = [stream.push(id) for id in ids]
    assert "".join(pushed) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text=TEXT)
def test_stream_never_breaks_a_character(tokenizer: Tokenizer, text: str) -> None:
    """Of valid text each push gives the next characters that are whole, and all that are."""
    stream = tokenizer.stream()
    emitted, received = "", b""
    for id in tokenizer.encode(text):
        received += tokenizer._id_to_bytes[id]
        emitted += stream.push(id)
        assert text.startswith(emitted)
        assert len(received) - len(emitted.encode()) < 4
    assert emitted == text
    assert stream.finish() == ""


def test_stream_ends_a_broken_character(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer._id_to_bytes.index("🌾".encode()[:1])
    stream = tokenizer.stream()
    assert stream.push(first_byte) == ""
    assert stream.push(tokenizer.encode("a")[0]) == "\ufffda"
    assert stream.push(first_byte) == ""
    assert stream.finish() == "\ufffd"


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_array(pa.array(texts, pa.large_string()))
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


def test_an_array_of_texts_has_the_same_ids(any_directory: Path) -> None:
    tokenizer = Tokenizer.load(any_directory)
    for _ in range(2):  # new pre-tokens, and the same ones again
        assert encoded(tokenizer, HARD_TEXTS) == [tokenizer.encode(text) for text in HARD_TEXTS]


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(TANGLED, TEXT))
def test_an_array_of_tangled_text(any_directory: Path, text: str) -> None:
    tokenizer = _loaded(any_directory)
    assert encoded(tokenizer, [text]) == [tokenizer.encode(text)]


def test_an_array_with_every_space_like_character(any_directory: Path) -> None:
    """Which characters count as white space must not differ between the compiled kernel and the pre-tokenizer."""
    tokenizer = _loaded(any_directory)
    kinds = ("Zs", "Zl", "Zp", "Cc", "Cf")
    spaces = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in kinds]
    texts = [f"x{space} y.{space}  'll" for space in spaces]
    assert encoded(tokenizer, texts) == tokenizer.encode_batch(texts)


def test_encode_array_of_little(tokenizer: Tokenizer) -> None:
    ids, offsets = tokenizer.encode_array(pa.array([None, "", "a", None], pa.string()))
    assert (ids.tolist(), offsets.tolist()) == (tokenizer.encode("a"), [0, 0, 0, 1, 1])
    ids, offsets = tokenizer.encode_array(pa.array([], pa.string()))
    assert (ids.tolist(), offsets.tolist()) == ([], [0])


def test_ids_beyond_the_vocabulary_are_named(tokenizer: Tokenizer) -> None:
    tokenizer.check_ids([[0, VOCAB_SIZE - 1]], "the prompt")
    tokenizer.check_ids([], "nothing")
    for wrong in (VOCAB_SIZE, -1):
        with pytest.raises(GristmillError, match=rf"the prompt holds the token id {wrong}; .* go from 0 to 639"):
            tokenizer.check_ids(np.array([3, wrong]), "the prompt")


def test_another_tokenizer_is_named(tokenizer: Tokenizer, directory: Path) -> None:
    check_same(tokenizer, tokenizer.hash, "the model")
    with pytest.raises(GristmillError, match=rf"the model was made with .* \(hash abc\) than {directory} \(hash"):
        check_same(tokenizer, "abc", "the model")


def test_fertility_counts(tokenizer: Tokenizer) -> None:
    texts = ["two words", "水車 turns\n"]
    counts = fertility(tokenizer, texts)
    assert (counts.words, counts.bytes) == (4, 9 + 13)
    assert counts.tokens == sum(len(tokenizer.encode(text)) for text in texts)
    assert counts.tokens_per_word == counts.tokens / 4
    assert counts.bytes_per_token == 22 / counts.tokens
    assert fertility(tokenizer, []).tokens_per_word == 0


_LOADED: dict[Path, Tokenizer] = {}


def _loaded(directory: Path) -> Tokenizer:
    if directory not in _LOADED:
        _LOADED[directory] = Tokenizer.load(directory)
    return _LOADED[directory]
