"""Every rule removes what it should, keeps what it should, and is named as documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from document_tables import first_reasons
from gristmill.data import kernel, rules
from gristmill.data.config import (
    C4Rules,
    CodeRules,
    DomainRules,
    FineWebRules,
    LanguageThresholds,
    Limit,
    NearDuplicateConfig,
    QualityRules,
    RepetitionRules,
    RuleSet,
    WebRuleSet,
)
from gristmill.data.rules import effective_rules, language_settings, measure_key, rules_for
from gristmill.errors import GristmillError

GOOD = " ".join(["the", "mill", "and", "stone", "river"] * 12)  # 60 words, two stop words, no symbol


def measured(
    texts: list[str],
    config: DomainRules,
    domains: list[str] | None = None,
    languages: list[str] | None = None,
    flags: list[str] | None = None,
) -> pa.RecordBatch:
    columns = {
        "text": texts,
        "domain": domains or ["notes"] * len(texts),
        "language": languages or ["en"] * len(texts),
        "flags": flags or [""] * len(texts),
    }
    return kernel.measure_step(config, None).apply(pa.RecordBatch.from_pydict(columns))


def reason(text: str, held: RuleSet, flags: str = "") -> str | None:
    """The reason given within a batch of other documents, which must not matter."""
    config = DomainRules(other=held)
    texts = ["", text, "another text, with the words to be read"]
    return first_reasons(measured(texts, config, flags=["", flags, ""]), rules_for(config))[1]


def quality(**fields: Any) -> RuleSet:
    return RuleSet(quality=QualityRules(**fields), repetition=None)


def c4(**fields: Any) -> RuleSet:
    return RuleSet(quality=None, repetition=None, c4=C4Rules(**fields))


def fineweb(**fields: Any) -> RuleSet:
    return RuleSet(quality=None, repetition=None, fineweb=FineWebRules(**fields))


def code(**fields: Any) -> RuleSet:
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
        ("curly_bracket", SENTENCES + "\nvar x = {};"),
        ("min_sentences", "One. Two! Three? And four, 3.14 is no end\n"),
    ],
)
def test_c4_rules(rule: str, text: str) -> None:
    assert reason(text, c4()) == f"c4:{rule}"


def test_c4_rules_keep_a_page_of_sentences() -> None:
    assert reason(SENTENCES, c4()) is None
    assert reason('"Quoted." (He said.) One. Two. Three', c4()) is None
    assert reason(SENTENCES + " {", c4(curly_bracket=False)) is None
    assert reason(SENTENCES + " lorem ipsum", c4(forbidden_phrases=())) is None


def test_bad_words_are_whole_words_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("grit\n\nmill STONE\n")
    held = c4(bad_words=str(path))
    assert reason(SENTENCES + "\nIt is Grit!", held) == "c4:bad_words"
    assert reason(SENTENCES + "\nA mill-stone.", held) == "c4:bad_words"
    assert reason(SENTENCES + "\nGritty millstones, stone mill.", held) is None
    with pytest.raises(GristmillError, match=r"corpus\.rules\.other\.c4\.bad_words: cannot read .*missing\.txt"):
        reason(SENTENCES, c4(bad_words=str(tmp_path / "missing.txt")))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            "min_terminal_punctuation",
            "\n".join([SENTENCES.replace("\n", " ")] + [f"a line about mills without an end {i}" for i in range(9)]),
        ),
        ("max_short_lines", SENTENCES[:110] + " A. B. C." + "\nshort one, with words in it" * 9),
        ("max_char_duplicates", "\n".join([SENTENCES] * 2)),
        (
            "max_newlines_per_word",
            "\n".join(f"{i}-millstone-in-the-river, turning-turning. X." for i in range(9)) + "\n\n\n\n" * 9 + "end.",
        ),
    ],
)
def test_fineweb_rules(rule: str, text: str) -> None:
    assert reason(text, fineweb()) == f"fineweb:{rule}"


def test_fineweb_options() -> None:
    quotes = "\n".join(f'He said: "This is line number {i} of the mill"' for i in range(9))
    assert reason(quotes, fineweb()) == "fineweb:min_terminal_punctuation"
    assert reason(quotes, fineweb(quotation_marks=True)) is None
    assert reason(SENTENCES, fineweb()) is None
    assert reason(SENTENCES, fineweb(short_line_characters=60)) == "fineweb:max_short_lines"


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


def test_code_that_a_program_wrote_goes_and_copies_of_projects_stay() -> None:
    assert reason(PYTHON, code(), flags="generated") == "code:generated"
    assert reason(PYTHON, code(), flags="generated,vendored") == "code:generated"
    assert reason(PYTHON, code(generated="keep"), flags="generated,vendored") is None
    assert reason(PYTHON, code(vendored="drop"), flags="generated,vendored") == "code:generated"
    assert reason(PYTHON, code(vendored="drop"), flags="vendored") == "code:vendored"
    assert reason(PYTHON, code(vendored="drop"), flags="vendored-not") is None


def test_limits_of_ones_own() -> None:
    held = RuleSet(quality=None, repetition=None, limits={"uppercase_lines": Limit(max=0.5), "words": Limit(min=3)})
    assert reason("SHOUTING ALL OVER\nTHE PAGE\nand not", held) == "limits:uppercase_lines"
    assert reason("two words", held) == "limits:words"
    assert reason("three small words", held) is None
    for name in ("charm", "rule_language"):
        with pytest.raises(GristmillError, match=f"no column of numbers '{name}'"):
            reason("text", RuleSet(quality=None, repetition=None, limits={name: Limit(min=1)}))


def test_rules_of_the_next_batch_are_of_its_rows() -> None:
    """What is known of one batch's domains and languages is not taken for another's."""
    config = DomainRules()
    held = rules_for(config)
    first = measured([PYTHON] * 3, config, ["code", "docs", "code"])
    second = measured([PYTHON] * 3, config, ["docs", "docs", "code"])
    for _ in range(2):
        assert first_reasons(first, held) == [None, "gopher_quality:min_words", None]
        assert first_reasons(second, held) == ["gopher_quality:min_words", "gopher_quality:min_words", None]


def test_domains_have_their_rules_and_unknown_ones_the_others() -> None:
    config = DomainRules()
    assert config.of("poems") is config.other
    domains = ["code", "books", "web", "docs", "poems"]
    found = first_reasons(measured([PYTHON] * 5, config, domains), rules_for(config))
    assert found == [None, *["gopher_quality:min_words"] * 4]
    long_lines = "\n".join(["mill = " + "stone + " * 20] * 3)
    both = first_reasons(measured([long_lines] * 2, config, ["code", "docs"]), rules_for(config))
    assert both == ["code:max_mean_line_characters", "gopher_quality:min_alphabetic_words"]


def test_a_reason_does_not_depend_on_the_batch(prose: Callable[..., str]) -> None:
    config = DomainRules()
    texts = [prose(seed, 30 + 10 * seed, 20 + 30 * seed) for seed in range(20)]
    domains = [("web", "books", "code")[seed % 3] for seed in range(20)]
    together = first_reasons(measured(texts, config, domains), rules_for(config))
    alone = [
        first_reasons(measured([text], config, [domain]), rules_for(config))[0]
        for text, domain in zip(texts, domains, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 1


def test_rules_read_what_they_say(prose: Callable[..., str]) -> None:
    """A rule is given the columns that it names and no others."""
    config = DomainRules(web=WebRuleSet(fineweb=FineWebRules(quotation_marks=True)))
    batch = measured([prose(1), "x"], config, ["web", "code"])
    for rule in rules_for(config):
        assert rule.broken(batch.select(rule.reads)).shape == (2,)
    names = [rule.reason for rule in rules_for(config)]
    assert names[0] == "code:generated"
    assert "fineweb:max_newlines_per_word" in names


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of packaged languages with German and Finnish."""
    (tmp_path / "de.yaml").write_text(
        "stop_words: [und, die, der]\nmax_mean_word_length: 12\nmin_words: 3\nmax_top_ngram: {2: 0.5}\n"
    )
    (tmp_path / "fi.yaml").write_text("max_mean_word_length: 14\n")
    (tmp_path / "xx.yaml").write_text("max_word_length: 14\n")
    monkeypatch.setattr(rules, "LANGUAGES", tmp_path)
    rules.packaged_thresholds.cache_clear()
    yield tmp_path
    rules.packaged_thresholds.cache_clear()


def test_thresholds_of_a_language(shipped: Path) -> None:
    """The recipe's for the language, the recipe's for the domain, the shipped ones, the default: in this order."""
    config = DomainRules(
        other=RuleSet(quality=QualityRules(min_words=60)),
        languages={"de": LanguageThresholds(max_symbol_ratio=0.3, max_top_ngram={3: 0.4})},
    )
    german = effective_rules(config, "notes", "de")
    assert german.quality is not None
    assert german.repetition is not None
    assert german.quality.max_symbol_ratio == 0.3
    assert german.quality.min_words == 60  # changed by the recipe
    assert german.quality.max_mean_word_length == 12
    assert german.quality.min_mean_word_length == 3
    assert german.quality.stop_words == ("und", "die", "der")
    assert german.repetition.max_top_ngram == {2: 0.5, 3: 0.4, 4: 0.16}
    assert effective_rules(config, "docs", "de").quality.min_words == 3  # type: ignore[union-attr]
    assert effective_rules(config, "notes", "en") == config.other
    assert effective_rules(config, "notes", "fi").quality.stop_words == ()  # type: ignore[union-attr]
    assert effective_rules(config, "code", "de").quality is None
    changed = language_settings(config, [("notes", "de"), ("notes", "en"), ("code", "en")])
    assert list(changed) == ["notes"]
    assert list(changed["notes"]) == ["de"]
    assert changed["notes"]["de"]["quality"]["min_words"] == 60
    without = config.model_copy(update={"packaged_languages": False})
    assert effective_rules(without, "notes", "de").quality.max_mean_word_length == 10  # type: ignore[union-attr]
    with pytest.raises(GristmillError, match=r"xx\.yaml is no file of language thresholds"):
        effective_rules(config, "notes", "xx")


def test_each_document_is_held_to_its_language(shipped: Path) -> None:
    config = DomainRules()
    german = "die Mühle und der Müllermeister mahlt das Windmühlenkornmehl " * 4
    finnish = "mylly jauhaa viljaa myllynkiviensä välissä ja jokivesi pyörittää vesipyörää " * 8
    texts = [german, german, finnish, german.replace("die", "x").replace("und", "x")]
    batch = measured(texts, config, languages=["de", "en", "fi-FI", "de"])
    assert batch.column("rule_language").to_pylist() == ["de", "en", "fi", "de"]
    assert batch.column("stop_words").to_pylist() == [3, 0, None, 1]
    held = [rule for rule in rules_for(config) if rule.reason.startswith("gopher_quality")]
    found = first_reasons(batch, held)
    assert found == [None, "gopher_quality:min_words", None, "gopher_quality:min_stop_words"]


def test_a_sure_detection_decides_the_language() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "text": ["x"] * 5,
            "domain": ["web"] * 5,
            "language": ["en", "en", "pt_BR", "", "und"],
            "detected_language": pa.array(["de", "de", None, "fr", None]),
            "language_score": pa.array([0.9, 0.4, None, 0.9, None], pa.float32()),
        }
    )
    result = kernel.measure_step(DomainRules(), None).apply(batch)
    assert result.column("rule_language").to_pylist() == ["de", "en", "pt", "fr", "en"]


def test_the_measure_key_changes_with_the_measurement_only(tmp_path: Path) -> None:
    config, near = DomainRules(), NearDuplicateConfig()
    key = measure_key(config, near)
    lenient = DomainRules(other=RuleSet(quality=QualityRules(min_words=1)), web=WebRuleSet(c4=C4Rules(min_sentences=1)))
    assert measure_key(lenient, NearDuplicateConfig(threshold=0.9, bands=14, rows=8)) == key
    bad = tmp_path / "bad.txt"
    bad.write_text("grit\n")
    others = [
        measure_key(config, None),
        measure_key(config, NearDuplicateConfig(ngram=3)),
        measure_key(DomainRules(other=RuleSet(quality=QualityRules(stop_words=("mill",)))), near),
        measure_key(DomainRules(languages={"de": LanguageThresholds(stop_words=("und",))}), near),
        measure_key(DomainRules(web=WebRuleSet(fineweb=FineWebRules(short_line_characters=40))), near),
        measure_key(DomainRules(web=WebRuleSet(c4=C4Rules(forbidden_phrases=("mill",)))), near),
        measure_key(DomainRules(web=WebRuleSet(c4=C4Rules(bad_words=str(bad)))), near),
    ]
    bad.write_text("chaff\n")
    others.append(measure_key(DomainRules(web=WebRuleSet(c4=C4Rules(bad_words=str(bad)))), near))
    assert len({key, *others}) == 9


def test_a_share_at_the_very_threshold_breaks_nothing() -> None:
    """Shares are float32 columns: 6 of 60 is not above 0.1, whatever 0.1 becomes."""
    for part in range(1, 200):
        for whole in (3, 7, 10, 60, 200):
            share, threshold = np.array([part / whole]).astype(np.float32), np.array([part / whole])
            assert not rules.above(share, threshold).any()
            assert not rules.below(share, threshold).any()
