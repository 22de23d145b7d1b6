"""The compiled kernel against its plain reference: every statistic, the shingles, the signatures."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.data import kernel
from gristmill.data.clean.text import clean
from gristmill.data.config import DomainRules, NearDuplicateConfig, QualityRules, RuleSet
from gristmill.data.kernel import characters, columns, hashes, layout, reference, repetition, scan, shingling
from gristmill.data.kernel.jit import compiled
from gristmill.data.ngram import words

STOP_WORDS = ("the", "be", "é", "的", "und", "..")
RULES = DomainRules(other=RuleSet(quality=QualityRules(stop_words=STOP_WORDS)), packaged_languages=False)
NEAR = NearDuplicateConfig(bands=3, rows=4)
STATISTICS = [c.name for c in columns.STATISTICS if c.name not in ("forbidden_phrases", "bad_words")]

# Characters that some rule looks at, in every length of UTF-8, and words that repeat.
NASTY = st.text(
    st.sampled_from(
        "aB3_#{}.-–•…!?。！।।\"')”»]\\x0uF漢かハ́é\u00c9ßЖǅ\u0e01\u0e34\u200d🙂\U00020000\U000e0100\x00 \t\n\n"
    ),
    max_size=60,
)
WORDS = st.lists(
    st.sampled_from(
        ["the", "be", "mill", "É", "стон", "--", "3.14", "end.", "”No!”", "0x1F", "\\u00e9", "\n", "\n\n", "...", "•"]
    ),
    max_size=90,
).map(" ".join)
FEW = st.lists(st.sampled_from(["a", "bb", "\n"]), max_size=80).map(" ".join)
TEXT = st.one_of(NASTY, WORDS, FEW, st.text(max_size=40)).map(clean)


def measured(
    texts: list[str], near: NearDuplicateConfig | None = NEAR, kind: pa.DataType | None = None
) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pydict(
        {
            "text": pa.array(texts, kind or pa.string()),
            "domain": pa.array(["notes"] * len(texts), pa.string()),
            "language": pa.array(["en"] * len(texts), pa.string()),
        }
    )
    return kernel.measure_step(RULES, near).apply(batch)


def check(texts: list[str], batch: pa.RecordBatch) -> None:
    rows = batch.to_pylist()
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        expected = reference.statistics(text, STOP_WORDS)
        assert set(expected) == set(STATISTICS)
        assert {name: row[name] for name in expected} == {
            name: value if isinstance(value, int) else np.float32(value) for name, value in expected.items()
        }
        assert row["digest"] == hashlib.blake2b(text.encode(), digest_size=16).digest()
        signature = None if not reference.tokens(text) else np.array(reference.signature(text, 5, 12), "<u4").tobytes()
        assert row["signature"] == signature


@settings(max_examples=250, deadline=None)
@given(st.lists(TEXT, max_size=5))
@example(["", "a", "\x00", "A" * 5000])
@example(["one two three four five one two three four five", "a b a b a b"])
@example(["   indented\n\nindented\n\nindented"])
@example(["No. Yes! “So?” he said. 3.14 e.g. so... And", "他说。好！」不？？是", "है। और"])
def test_every_statistic_equals_the_reference(texts: list[str]) -> None:
    check(texts, measured(texts))


def test_statistics_of_real_text_equal_the_reference() -> None:
    """This file, its package and prose of many lengths: long words, long lines, thousands of n-grams."""
    sources = sorted(Path(reference.__file__).parent.glob("*.py"))
    texts = [clean(path.read_text(encoding="utf-8")) for path in sources]
    draw = random.Random(1)
    texts += [
        " ".join(draw.choices(["mill", "stone", "the", "река", "水", "x" * 300], k=k)) for k in (1, 5, 49, 700, 6000)
    ]
    check(texts, measured(texts))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_any_string_column_is_read_where_it_stands(kind: pa.DataType) -> None:
    texts = ["", "over here", "the mill, the stone", "é" * 40, "", "end"]
    whole = measured(texts, kind=kind)
    check(texts, whole)
    column = pa.array(texts, kind)
    laid_out = layout.texts_of(column.slice(2, 3))
    strings = [bytes(laid_out.data[a:b]).decode() for a, b in zip(laid_out.offsets, laid_out.offsets[1:], strict=False)]
    assert strings == texts[2:5]
    sliced = kernel.measure_step(RULES, NEAR).apply(whole.select(["text", "domain", "language"]).slice(2, 3))
    assert sliced.to_pylist() == whole.slice(2, 3).to_pylist()
    chunked = pa.chunked_array([column[:2], column[2:]])
    for a, b in zip(kernel.shingles(chunked), kernel.shingles(column), strict=True):
        assert (a == b).all()


def test_the_bytes_are_not_copied() -> None:
    column = pa.array(["some text", "more"])
    assert layout.texts_of(column).data.ctypes.data == column.buffers()[2].address


def test_a_null_is_an_empty_text() -> None:
    laid_out = layout.texts_of(pa.array(["a", None, "b"]))
    assert np.diff(laid_out.offsets).tolist() == [1, 0, 1]
    assert len(layout.texts_of(pa.array([], pa.string()))) == 0
    assert layout.texts_of(pa.nulls(2, pa.string())).size == 0


def test_a_document_is_measured_alike_in_every_batch(
    monkeypatch: pytest.MonkeyPatch, prose: Callable[..., str]
) -> None:
    texts = ["", *(prose(seed, 20 + 60 * seed) for seed in range(12)), "a b", "水を飲む"]
    together = measured(texts).to_pylist()
    assert [measured([text]).to_pylist()[0] for text in texts] == together
    monkeypatch.setattr("gristmill.data.kernel.measure.PART_BYTES", 700)
    monkeypatch.setattr(hashes, "PART_BYTES", 700)
    assert measured(texts).to_pylist() == together


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=4), st.integers(1, 6))
def test_shingles_and_ngrams_equal_the_reference(texts: list[str], n: int) -> None:
    column = pa.array(texts, pa.string())
    sets, offsets = kernel.shingles(column, n)
    ordered, places = hashes.ngrams_of(layout.texts_of(column), n, short=False)
    for d, text in enumerate(texts):
        found = [reference.ngram_hash(gram) for gram in reference.ngrams(text, n)]
        assert sets[offsets[d] : offsets[d + 1]].tolist() == sorted(set(found))
        whole = found if len(reference.tokens(text)) >= n else []
        assert ordered[places[d] : places[d + 1]].tolist() == whole


def test_signatures_of_many_shingles(prose: Callable[..., str]) -> None:
    """More n-grams than are hashed at a time, and a text without any."""
    texts = [prose(1, 9000, 100_000), "", "漢字"]
    found = kernel.signatures(pa.array(texts), 5, 7)
    assert found.tolist() == [reference.signature(text, 5, 7) for text in texts]
    assert found[1].tolist() == [0xFFFFFFFF] * 7


def test_malformed_text_is_measured_without_reaching_past_it() -> None:
    """Lead bytes at the very end, stray continuation bytes, code points that do not exist."""
    parts = [b"\xf0", b"\xe2\x80", b"ab \x80\xbf\xff", b"\xf7\xbf\xbf\xbf x", b"\xc3"]
    draw = random.Random(0)
    parts += [draw.randbytes(50) for _ in range(200)]
    column = pa.array(parts, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
    names = pa.array(["other"] * len(column))
    batch = pa.RecordBatch.from_arrays([text, names, names], ["text", "domain", "language"])
    result = kernel.measure_step(RULES, NEAR).apply(batch).drop_columns(["text"])
    for part, row in zip(parts, result.to_pylist(), strict=True):
        assert 0 <= row["words"] <= len(part)
        assert 0 < row["characters"] <= len(part)


def test_equal_hashes_mean_equal_words() -> None:
    words = [f"{a}{b}{c}{d}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh" for d in "abcdefgh"]
    words += ["a" * n for n in range(1, 300) if n != 4] + ["\0" * n for n in range(1, 30)]
    laid_out = layout.texts_of(pa.array(words))
    found = {scan.hash_bytes(laid_out.data, a, b) for a, b in zip(laid_out.offsets, laid_out.offsets[1:], strict=False)}
    assert len(found) == len(words)


def test_unicode_words_of_the_tokens() -> None:
    assert reference.tokens("“Don’t” stop: naïve_café, A1; हिन्दी — 漢字かな 한국어") == (
        ["don", "t", "stop", "naïve_café", "a1", "हिन्दी", "漢", "字", "か", "な", "한국어"]
    )


def is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] == "Z" or character in "\0\ufeff"


@pytest.mark.parametrize(
    ("table", "bit", "holds"),
    [
        (scan.classes, scan.LETTER, str.isalpha),
        (scan.classes, scan.CAPITAL, str.isupper),
        (scan.classes, scan.MARK, characters.MARKS.__contains__),
        (scan.classes, scan.TERMINAL, characters.TERMINAL.__contains__),
        (scan.classes, scan.CLOSING, reference.is_closing),
        (scan.classes, scan.DIGIT, "0123456789".__contains__),
        (shingling.classes, shingling.TOKEN, reference.is_token),
        (shingling.classes, shingling.SINGLE, reference.is_single),
        (shingling.classes, shingling.CAPITAL, "ABCDEFGHIJKLMNOPQRSTUVWXYZ".__contains__),
        (words._classes, words._WORD, reference.is_token),
        (words._classes, words._SINGLE, reference.is_single),
        (words._classes, words._BLANK, is_blank),
        (words._classes, words._TERMINAL, characters.TERMINAL.__contains__),
        (words._classes, words._CLOSING, reference.is_closing),
        (words._classes, words._ABRUPT, "。．！？｡".__contains__),
    ],
)
def test_the_tables_agree_with_the_predicates(
    table: Callable[[], np.ndarray], bit: int, holds: Callable[[str], bool]
) -> None:
    """Of every code point there is, and of those that malformed text seems to hold."""
    found = table() & bit != 0
    expected = np.fromiter(map(holds, map(chr, range(0x110000))), bool, 0x110000)
    assert np.flatnonzero(found[:0x110000] != expected).tolist() == []
    assert not found[0x110000:].any()


def test_letters_are_folded_as_python_folds_them() -> None:
    expected = [
        ord("0") if unicodedata.category(c) == "Nd" else ord(c.lower()) if len(c.lower()) == 1 else ord(c)
        for c in map(chr, range(1 << 17))
    ]
    assert words._folded().tolist() == expected
    assert all(c.lower() == c for c in map(chr, range(1 << 17, 0x110000)))


def test_columns_are_those_documented() -> None:
    batch = measured(["a text"], near=None)
    assert batch.schema.names == ["text", "domain", "language", *(column.name for column in columns.COLUMNS)]
    assert [batch.schema.field(column.name).type for column in columns.COLUMNS] == [c.type for c in columns.COLUMNS]
    assert batch.column("signature").null_count == 1
    empty = measured([])
    assert empty.num_rows == 0
    assert empty.schema == batch.schema


def test_one_compilation_serves_every_column() -> None:
    """Otherwise `warm_up` would leave work to every worker."""
    kernel.warm_up()
    for kind in (pa.string(), pa.large_string()):
        for texts in ([], [""], ["a text", "水"]):
            batch = measured(texts, kind=kind)
            measured_again = kernel.measure_step(RULES, NEAR).apply(batch.slice(len(texts) // 2))
            assert measured_again.num_rows == len(texts) - len(texts) // 2
            kernel.shingles(pa.array(texts, kind), 3)
    passes: list[Any] = [
        scan.words,
        scan.stop_words,
        scan.hash_bytes,
        scan.lines,
        scan.paragraphs,
        repetition.repeated_units,
    ]
    passes += [repetition.repeated_ngrams, shingling.tokens, shingling.ngrams, shingling.minima]
    assert [len(function.signatures) for function in passes] == [1] * 10


def test_where_machine_code_cannot_be_kept_it_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    make = numba.njit

    def read_only(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return make(**options)

    monkeypatch.setattr(numba, "njit", read_only)
    assert compiled(lambda x: x + 1)(2) == 3
