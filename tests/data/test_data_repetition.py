"""Gopher's repetition measures of texts whose shares can be worked out by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest

from gristmill.data import kernel
from gristmill.data.config import DomainRules


def measured(*texts: str) -> list[dict[str, float]]:
    columns = {"text": list(texts), "domain": ["books"] * len(texts), "language": ["en"] * len(texts)}
    rows: list[dict[str, float]] = (
        kernel.measure_step(DomainRules(), None).apply(pa.RecordBatch.from_pydict(columns)).to_pylist()
    )
    return rows


def test_duplicate_ngrams_count_what_was_met_before() -> None:
    # The second five words are a 5-gram met before: 5 of the 19 characters.
    (row,) = measured("a b c d e a b c d e")
    assert row["duplicate_5gram"] == pytest.approx(5 / 19)
    assert row["duplicate_6gram"] == 0


def test_the_scan_goes_on_behind_a_repeated_ngram() -> None:
    # 30 times "a": the 5-gram at 1 was met at 0, then those at 6, 11, 16, 21: 25 characters of 59. A scan that did not
    # jump would count 125.
    (row,) = measured(" ".join("a" * 30))
    assert row["duplicate_5gram"] == pytest.approx(25 / 59)
    assert row["duplicate_10gram"] == pytest.approx(20 / 59)


def test_the_top_ngram_counts_its_blanks_and_all_its_occurrences() -> None:
    (row,) = measured("to be or not to be")
    assert row["top_2gram"] == pytest.approx(2 * len("to be") / 18)
    assert row["top_3gram"] == pytest.approx(len("to be or") / 18)  # none occurs twice: the first


def test_of_equally_frequent_ngrams_the_first_counts() -> None:
    (row,) = measured("a b x longer words y a b z longer words")
    assert row["top_2gram"] == pytest.approx(2 * len("a b") / 39)


def test_ngrams_do_not_see_line_ends() -> None:
    rows = measured("one two\nthree one\n\ntwo three", "one two three one two three")
    assert rows[0]["top_3gram"] == pytest.approx(2 * len("one two three") / 28)
    assert rows[1]["top_3gram"] == pytest.approx(2 * len("one two three") / 27)


def test_lines_and_paragraphs_that_stood_before() -> None:
    (row,) = measured("ab\ncd\n\nab\ncd\n\nab")
    assert row["duplicate_lines"] == pytest.approx(3 / 5)
    assert row["duplicate_line_characters"] == pytest.approx(6 / 16)
    assert row["char_duplicates"] == pytest.approx(6 / 10)
    assert row["duplicate_paragraphs"] == pytest.approx(1 / 3)  # "ab" alone is a paragraph of its own
    assert row["duplicate_paragraph_characters"] == pytest.approx(5 / 16)


def test_characters_are_code_points() -> None:
    (row,) = measured("éé\néé")
    assert row["duplicate_line_characters"] == pytest.approx(2 / 5)


def test_repeats_in_different_documents_do_not_count() -> None:
    text = "one two three four five six seven"
    for row in measured(text, text):
        assert row["duplicate_5gram"] == row["duplicate_lines"] == 0
        assert row["top_2gram"] == pytest.approx(len("one two") / len(text))


def test_a_text_without_words_repeats_nothing() -> None:
    (row,) = measured("")
    assert {value for name, value in row.items() if name.startswith(("top", "duplicate"))} == {0}
