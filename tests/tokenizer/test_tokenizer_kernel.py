"""Cutting and counting pre-tokens against the `tokenizers` library: every character, hard text, and fuzzing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hard_text import ALMOST_SPACE, HARD_TEXTS, WHITE_SPACE, every_character, hard_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gristmill.data.kernel.layout import texts_of
from gristmill.errors import GristmillError
from gristmill.tokenizer.kernel import classes, count, pretokens, reference
from gristmill.tokenizer.kernel.count import WordCounter
from gristmill.tokenizer.pretokenize import Pattern, build_pretokenizer, pattern_of, recognize

PATTERNS = [
    *(Pattern("gpt2", digits) for digits in (None, 1, 2, 3)),
    *(Pattern("gpt4", digits) for digits in (1, 2, 3)),
    Pattern("smollm"),
]
ANY_PATTERN = st.sampled_from(PATTERNS)


def cut(texts: list[str], pattern: Pattern) -> list[bytes]:
    laid_out = texts_of(pa.array(texts, pa.string()))
    data, found = laid_out.data.tobytes(), []
    for start, ends in pretokens.blocks(laid_out, pattern):
        for end in ends.tolist():
            found.append(data[start:end])
            start = end
    return found


def expected_cuts(texts: list[str], pattern: Pattern) -> list[bytes]:
    return [word for text in texts for word in reference.pretokens(text, pattern)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_hard_texts_are_cut_as_the_library_cuts_them(pattern: Pattern) -> None:
    for text in HARD_TEXTS:
        assert cut([text], pattern) == expected_cuts([text], pattern)
    assert cut(HARD_TEXTS, pattern) == expected_cuts(HARD_TEXTS, pattern)


@settings(max_examples=500, deadline=None)
@given(st.lists(hard_text(), max_size=3), ANY_PATTERN)
def test_any_text_is_cut_as_the_library_cuts_it(texts: list[str], pattern: Pattern) -> None:
    assert cut(texts, pattern) == expected_cuts(texts, pattern)


def test_the_classes_are_those_of_the_library() -> None:
    """`classes.txt` is what comes out of the installed library; `classes.write_ranges(found)` mends it if not."""
    texts = list(every_character(lambda character: character))

    def ranges(codes: list[int]) -> list[tuple[int, int]]:
        parts = np.split(np.array(codes), np.flatnonzero(np.diff(codes) != 1) + 1)
        return [(int(part[0]), int(part[-1])) for part in parts]

    def matched(pattern: str) -> list[int]:
        split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        return [ord(c) for text in texts for piece, _ in split.pre_tokenize_str(text) for c in piece]

    numbers = matched(r"\p{N}+")
    digits = pre_tokenizers.Digits(individual_digits=False)  # every other piece is of numbers, the second one first
    younger = {ord(c) for text in texts for piece, _ in digits.pre_tokenize_str(f"a{text}")[1::2] for c in piece}
    younger -= set(numbers)
    found = {
        "letter": ranges(matched(r"\p{L}+")),
        "number": ranges(numbers),
        "space": ranges(matched(r"\s+")),
        "digit": ranges(sorted(younger)),
    }
    assert classes.read_ranges() == found
    assert classes.FILE.read_text(encoding="ascii") == classes.write_ranges(found)
    assert {chr(code) for first, last in found["space"] for code in range(first, last + 1)} == set(WHITE_SPACE)
    assert not set(WHITE_SPACE) & set(ALMOST_SPACE)


FOLDED = [*range(0x3000), *range(0xA640, 0xABC0), *range(0xF900, 0x11000)]  # where letters with case are, and more


@pytest.mark.parametrize("codes", [FOLDED, pytest.param(range(0x110000), marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("letters", ["s", "t", "m", "d", "re", "ve", "ll"])
def test_what_case_folding_takes_for_the_letters_of_a_contraction(letters: str, codes: Sequence[int]) -> None:
    """Each letter replaced by every character: those with which the library still sees a contraction."""
    split = pre_tokenizers.Split(Regex(f"(?i:'{letters})"), behavior="removed", invert=True)
    for place, letter in enumerate(letters):
        before, behind = f"'{letters[:place]}", f"{letters[place + 1 :]}\x01"
        found = {
            piece[1 + place]
            for text in every_character(lambda c, a=before, b=behind: f"{a}{c}{b}", codes)
            for piece, _ in split.pre_tokenize_str(text)
        }
        assert found == {letter, letter.upper(), *("ſ" if letter == "s" else "")}


@pytest.mark.slow
@pytest.mark.single
@pytest.mark.parametrize("pattern", [Pattern("gpt2"), Pattern("gpt4"), Pattern("smollm")], ids=str)
def test_every_character_is_cut_as_the_library_cuts_it(pattern: Pattern) -> None:
    """Behind a letter, a blank and a digit, before a letter and a newline, and as if in a contraction."""
    for text in every_character(lambda c: f"a{c} {c}1{c}\n'{c}b"):
        assert cut([text], pattern) == expected_cuts([text], pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_one_character_of_each_range_is_cut_as_the_library_cuts_it(pattern: Pattern) -> None:
    """The first, the last and the neighbours of every range of characters: the table is used right."""
    ranges = [pair for of_name in classes.read_ranges().values() for pair in of_name]
    codes = sorted({code for first, last in ranges for code in (first - 1, first, last, last + 1)})
    text = "".join(f"a{c} {c}1{c}\n{c}-{c}{c}b" for c in map(chr, codes) if not 0xD800 <= ord(c) < 0xE000)
    assert cut([text], pattern) == expected_cuts([text], pattern)


def test_blocks_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Pattern("qwen2")
    whole = cut(HARD_TEXTS, pattern)
    for size in (1, 2, 7, 1000):
        monkeypatch.setattr(pretokens, "BLOCK", size)
        assert cut(HARD_TEXTS, pattern) == whole


def test_a_slice_and_large_strings_are_read_where_they_stand() -> None:
    column = pa.array(HARD_TEXTS, pa.large_string())
    counter = WordCounter(Pattern("gpt4"))
    counter.add(column.slice(20, 30))
    words, counts = counter.take()
    expected = reference.word_counts(HARD_TEXTS[20:50], Pattern("gpt4"))
    assert list(zip(words.to_pylist(), counts.tolist(), strict=True)) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(hard_text(), max_size=4), max_size=3), ANY_PATTERN)
def test_words_are_counted(batches: list[list[str]], pattern: Pattern) -> None:
    counter = WordCounter(pattern)
    for batch in batches:
        counter.add(pa.array(batch, pa.string()))
    words, counts = counter.take()
    assert words.type == pa.binary()
    assert counts.dtype == np.int64
    texts = [text for batch in batches for text in batch]
    assert list(zip(words.to_pylist(), counts.tolist(), strict=True)) == reference.word_counts(texts, pattern)


def test_a_counter_grows_and_is_empty_after_it_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "BLOCK", 16)
    monkeypatch.setattr(pretokens, "BLOCK", 16)
    monkeypatch.setattr(count, "_SLOTS", 64)
    monkeypatch.setattr(count, "_BYTES", 32)
    texts = [f"word{number} a-rather-long-word-that-is-stored-apart{'x' * (number % 50)}" for number in range(900)]
    texts += ["y" * 3000, "a\x00", "a", "a\x00\x00", "x" * 16, "x" * 17, "x" * 8, "x" * 9]
    counter = WordCounter(Pattern("gpt2"))
    empty = counter.held_bytes
    for _ in range(2):
        counter.add(pa.array([*texts, *texts]))
        assert counter.held_bytes > 10 * empty
        words, counts = counter.take()
        expected = reference.word_counts([*texts, *texts], Pattern("gpt2"))
        assert list(zip(words.to_pylist(), counts.tolist(), strict=True)) == expected
        assert counter.held_bytes == empty
    words, counts = counter.take()
    assert len(words) == len(counts) == 0


def test_words_that_are_alike_but_for_zeros_at_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told apart even where they stand side by side in the table, which is as small as can be here."""
    monkeypatch.setattr(count, "_SLOTS", 2)
    monkeypatch.setattr(pretokens, "BLOCK", 1)
    texts = ["\x00" * length for length in (3, 1, 2, 5, 4, 8, 7, 6, 16, 9, 15, 17, 10, 12, 11, 14, 13)] * 2
    counter = WordCounter(Pattern("gpt2"))
    counter.add(pa.array(texts))
    words, counts = counter.take()
    expected = reference.word_counts(texts, Pattern("gpt2"))
    assert list(zip(words.to_pylist(), counts.tolist(), strict=True)) == expected


def test_nulls_and_nothing_are_no_words() -> None:
    counter = WordCounter(Pattern("gpt4"))
    counter.add(pa.array([], pa.string()))
    counter.add(pa.array([None, "", "a", None]))
    words, counts = counter.take()
    assert (words.to_pylist(), counts.tolist()) == ([b"a"], [1])


def test_more_words_than_offsets_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "_MOST_BYTES", 1000)
    counter = WordCounter(Pattern("gpt4"))
    with pytest.raises(GristmillError, match="memory_bytes"):
        counter.add(pa.array(["long" * 300]))


def test_malformed_text_is_cut_somehow() -> None:
    """Arrow does not look whether strings are UTF-8; the kernel must stay inside its arrays, and lose no byte."""
    draw = np.random.default_rng(5)
    for size in range(1, 60):
        data = draw.choice(np.array([0xFF, 0xF8, 0xF4, 0xE2, 0xC3, 0x80, 0x27, 0x20, 0x61], np.uint8), size).tobytes()
        offsets = pa.py_buffer(np.array([0, size // 2, size], np.int32))
        column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(data))
        for pattern in PATTERNS:
            ends = [ends.tolist() for _, ends in pretokens.blocks(texts_of(column), pattern)]
            flat = [end for block in ends for end in block]
            assert flat == sorted(set(flat))
            assert flat[-1] == size
            counter = WordCounter(pattern)
            counter.add(column)
            assert sum(map(len, counter.take()[0].to_pylist())) <= size


def _backend(pre_tokenizer: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    return backend


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_are_recognized(pattern: Pattern) -> None:
    backend = _backend(build_pretokenizer(pattern.name, pattern.digits))
    assert recognize(backend) == pattern
    assert recognize(Tokenizer.from_str(backend.to_str())) == pattern
    if pattern != Pattern("smollm"):  # its numbers are not those of the regex
        split = pre_tokenizers.Split(Regex(pattern_of(pattern.name, pattern.digits)), behavior="isolated")
        behind = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        by_regex = pre_tokenizers.Sequence([split, behind])
        assert recognize(_backend(by_regex)) == pattern
        for text in HARD_TEXTS:
            pieces = [bytes(map(reference._BYTE_OF.__getitem__, p)) for p, _ in by_regex.pre_tokenize_str(text)]
            assert pieces == cut([text], pattern)


def test_names_of_patterns() -> None:
    assert Pattern("llama3") == Pattern("gpt4") == Pattern("qwen2", 3) == Pattern("gpt4", 3)
    assert Pattern("qwen2") == Pattern("gpt4", 1) == Pattern("llama3", 1) != Pattern("gpt4")
    assert Pattern("gpt2") != Pattern("gpt2", 1) != Pattern("smollm")
    assert Pattern("qwen2").name == "qwen2"
    assert "{1,3}" in pattern_of("llama3")
    assert "{1,2}" in pattern_of("qwen2", 2)
    assert pattern_of("gpt2").endswith(r"|\s+(?!\S)|\s+")
    for name, digits in (("gpt5", None), ("gpt4", 4), ("gpt2", 0), ("smollm", 3)):
        with pytest.raises(GristmillError):
            Pattern(name, digits)


def test_other_pretokenizers_are_not_recognized() -> None:
    from tokenizers import normalizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(pattern_of("gpt4")), behavior="isolated")
    without = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    others = [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        without,
        split,
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Sequence([split, plain]),
        pre_tokenizers.Sequence([without, split]),
        pre_tokenizers.Sequence([split, split, without]),
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), plain]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), without]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern_of("gpt4")), behavior="removed"), without]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern_of("gpt4")), "isolated", invert=True), without]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern_of("gpt4") + "|x"), behavior="isolated"), without]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(pattern_of("gpt4"), behavior="isolated"), without]),
    ]
    for other in others:
        assert recognize(_backend(other)) is None
    assert recognize(Tokenizer(models.BPE())) is None
    rewriting = _backend(plain)
    rewriting.normalizer = normalizers.NFC()
    assert recognize(rewriting) is None


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import subprocess
    import sys

    code = "import sys, gristmill.tokenizer.pretokenize, gristmill.tokenizer.encoder, gristmill.tokenizer.kernel, json;"
    code += (
        "print(json.dumps([name for name in ('numba', 'tokenizers', 'torch', 'transformers') if name in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
