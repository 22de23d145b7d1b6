"""Every rule removes what it should, keeps what it should, and is named as documented."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gristmill.data.config import CodeRules, DomainRules, PageRules, QualityRules, RepetitionRules, RuleSet
from gristmill.data.rules import judge
from gristmill.data.textbatch import TextBatch

GOOD = " ".join(["the", "mill", "and", "stone", "river"] * 12)  # 60 words, two stop words, no symbol


def reason(text: str, rules: RuleSet) -> str | None:
    """The reason given within a batch of other documents, which must not matter."""
    texts = ["", text, "another text, with the words to be read"]
    return judge(TextBatch(texts), rules, texts)[1]


def quality(**fields: float) -> RuleSet:
    return RuleSet(quality=QualityRules(**fields), repetition=None)


def page(**fields: object) -> RuleSet:
    return RuleSet(quality=None, repetition=None, page=PageRules(**fields))


def code(**fields: float) -> RuleSet:
    return RuleSet(quality=None, repetition=None, code=CodeRules(**fields))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("min_words", "the mill and the stone"),
        ("min_mean_word_length", "the and " + "a b c d " * 20),
        ("max_mean_word_length", "the and " + "millstones-and-water " * 60),
        ("max_symbol_ratio", GOOD + " #" * 7),
        ("max_symbol_ratio", GOOD + "... wheat… rye..." * 4),
        ("max_bullet_lines", "\n".join("- " + line + " corn" for line in [GOOD] * 10)),
        ("max_bullet_lines", "\n".join("  • " + GOOD for _ in range(10))),
        ("max_ellipsis_lines", "\n".join([GOOD, GOOD + "...", GOOD + "…"])),
        ("min_alphabetic_words", GOOD + " 123" * 20),
        ("min_stop_words", " ".join(["mill", "stone", "river", "the"] * 15)),
    ],
)
def test_gopher_quality(rule: str, text: str) -> None:
    assert reason(text, quality()) == f"gopher_quality:{rule}"


def test_gopher_quality_keeps_good_text_at_the_very_thresholds() -> None:
    assert reason(GOOD, quality()) is None
    assert reason(GOOD, quality(min_words=60, max_words=60)) is None
    assert reason(GOOD, quality(min_words=61)) == "gopher_quality:min_words"
    assert reason(GOOD, quality(max_words=59)) == "gopher_quality:max_words"
    assert reason(GOOD + " #" * 6, quality()) is None  # 6 of 66
    nine_of_ten = "\n".join(["- " + GOOD] * 9 + [GOOD])
    assert reason(nine_of_ten, quality()) is None
    assert reason(GOOD + " 1" * 15, quality()) is None  # 60 of 75 words have a letter


def test_mean_word_length_counts_characters_not_bytes() -> None:
    text = "the and " + "éééééééé " * 60  # 8 characters, 16 bytes
    assert reason(text.strip(), quality()) is None


def test_letters_outside_ascii_are_letters_and_dashes_are_not() -> None:
    assert reason("the and " + "река " * 60 + "ö", quality()) is None
    assert reason("the and " + "река " * 60 + "— " * 20 + "ö", quality()) == "gopher_quality:min_alphabetic_words"


ROWS = "\n".join(f"row {i} w{i * 7} x{i * i} y{i * 3} z{i * 11}" for i in range(60))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("max_duplicate_lines", "\n".join(["x"] * 4 + [GOOD + str(i) for i in range(3)])),
        ("max_duplicate_paragraphs", "\n\n".join(["x"] * 4 + [ROWS[i : i + 90] for i in (0, 90, 180)])),
        ("max_duplicate_line_characters", "\n".join(["a long line that is here again"] * 2 + ["b", "c", "d"])),
        ("max_top_ngram_2", " ".join(f"grist mill w{i}" for i in range(30))),
        ("max_duplicate_ngrams_5", (ROWS[:700] + " and then " + ROWS[:700] + ROWS[700:]).replace("\n", " ")),
    ],
)
def test_gopher_repetition(rule: str, text: str) -> None:
    assert reason(text, RuleSet(quality=None)) == f"gopher_repetition:{rule}"


def test_repetition_thresholds_are_parameters() -> None:
    text = " ".join(f"grist mill w{i}" for i in range(30))
    lenient = RepetitionRules(max_top_ngram={2: 0.9}, max_duplicate_ngrams={})
    assert reason(text, RuleSet(quality=None, repetition=lenient)) is None


SENTENCES = "\n".join(f"This is the sentence number {i} of a page about mills." for i in range(8))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("forbidden_phrases", SENTENCES + "\nLorem Ipsum dolor."),
        ("min_sentences", "One. Two! Three? And four.\nFive is not ended, 3.14 is no end"),
        (
            "min_terminal_punctuation",
            "\n".join([SENTENCES.replace("\n", " ")] + [f"a line about mills without an end {i}" for i in range(9)]),
        ),
        ("max_short_lines", SENTENCES[:110] + " A. B. C." + "\nshort one, with words in it" * 9),
        ("max_duplicate_line_characters", "\n".join([SENTENCES] * 2)),
        (
            "max_newlines_per_word",
            "\n".join(f"{i}-millstone-in-the-river, turning-turning. X." for i in range(9)) + "\n\n\n\n" * 9 + "end.",
        ),
    ],
)
def test_page_rules(rule: str, text: str) -> None:
    assert reason(text, page()) == f"page:{rule}"


def test_page_rules_keep_a_page_of_sentences() -> None:
    assert reason(SENTENCES, page()) is None
    assert reason('"Quoted." (He said.) One. Two. Three.', page()) is None


PYTHON = "\n".join(f"def mill_{i}(stone):\n    return stone.grind({i})\n" for i in range(10))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("min_words", "import os"),
        ("max_line_characters", PYTHON + "\nx = '" + "mill" * 300 + "'"),
        ("max_mean_line_characters", "\n".join("mill = " + "stone + " * 20 for _ in range(10))),
        ("min_alphabetic_characters", "{}[]();:<>!= a\n" * 30),
        (
            "max_digit_characters",
            "\n".join(f"row_of_the_table_of_stones = [{i * 123456789}, 11112222, 33334444]" for i in range(10)),
        ),
        ("max_hexadecimal_lines", "\n".join(f"    '\\x{i:02x}' # letter of the table" for i in range(16, 40))),
    ],
)
def test_code_rules(rule: str, text: str) -> None:
    assert reason(text, code()) == f"code:{rule}"


def test_code_rules_keep_code() -> None:
    assert reason(PYTHON, code()) is None


def test_domains_have_their_rules_and_unknown_ones_the_others() -> None:
    rules = DomainRules()
    assert rules.of("code").quality is None
    assert rules.of("code").code is not None
    assert rules.of("web").page is not None
    assert rules.of("poems") is rules.other
    assert reason(PYTHON, rules.of("code")) is None
    assert str(reason(PYTHON, rules.of("books"))).startswith("gopher_")


def test_a_reason_does_not_depend_on_the_batch(prose: Callable[..., str]) -> None:
    rules = DomainRules().of("web")
    texts = [prose(seed, 30 + 10 * seed, 20 + 30 * seed) for seed in range(20)]
    together = judge(TextBatch(texts), rules, texts)
    alone = [judge(TextBatch([text]), rules, [text])[0] for text in texts]
    assert together == alone
    assert len(set(together)) > 1
