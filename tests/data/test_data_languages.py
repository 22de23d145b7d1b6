"""The files of thresholds by language: every one is read, says what it should, and fits its language."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gristmill.data.config import DomainRules
from gristmill.data.config.rules import LanguageThresholds, RepetitionRules
from gristmill.data.rules import LANGUAGES, effective_rules

CODES = sorted(path.stem for path in LANGUAGES.glob("*.yaml"))
UNSPACED = ("ja", "th", "zh")
SENTENCES = {
    "ar": "ذهب الرجل إلى السوق مع أخيه في الصباح",
    "cs": "Starý mlýn stojí na kopci a jeho kolo se točí",
    "de": "Die alte Mühle steht auf dem Hügel und das Rad dreht sich nicht",
    "en": "The old mill stands by the river and grinds with the force of water",
    "es": "El viejo molino está en la colina y la rueda no se mueve",
    "fi": "Vanha mylly on mäen päällä ja se jauhaa viljaa, mutta ei öisin",
    "fr": "Le vieux moulin est sur la colline et la roue ne tourne pas",
    "hi": "पुरानी चक्की नदी के किनारे पर है और अनाज पीसती है",
    "it": "Il vecchio mulino è sulla collina e la ruota non gira",
    "ko": "그 오래된 방앗간은 언덕 위에 있는 것은 사실이다",
    "nl": "De oude molen staat op de heuvel en het wiel draait niet",
    "pl": "Stary młyn stoi na wzgórzu i koło się nie obraca",
    "pt": "O velho moinho fica na colina e a roda não gira",
    "ru": "Старая мельница стоит на холме и колесо не вращается",
    "sv": "Den gamla kvarnen står på kullen och hjulet snurrar inte",
    "tr": "Eski değirmen bir tepede ve bu çark dönmüyor",
    "uk": "Старий млин стоїть на пагорбі і колесо не крутиться",
    "vi": "Cối xay cũ là của làng và không có người ở trong",
}


@pytest.mark.parametrize("code", CODES)
def test_file_is_valid_and_names_its_source(code: str) -> None:
    raw = (LANGUAGES / f"{code}.yaml").read_text(encoding="utf-8")
    thresholds = LanguageThresholds.model_validate(yaml.safe_load(raw))
    assert "arXiv" in raw.splitlines()[0]
    if code not in UNSPACED:
        words = thresholds.stop_words
        assert words is not None
        assert len(set(words)) == len(words) >= 8
        assert all(word == word.lower().strip() and " " not in word for word in words)
    if code != "en":
        assert set(thresholds.max_top_ngram or {}) == {2, 3, 4}
        assert set(thresholds.max_duplicate_ngrams or {}) == {5, 6, 7, 8, 9, 10}


def test_published_values_of_french() -> None:
    french = LanguageThresholds.model_validate(yaml.safe_load((LANGUAGES / "fr.yaml").read_text(encoding="utf-8")))
    assert (french.min_mean_word_length, french.max_mean_word_length) == (2, 11)
    assert (french.min_alphabetic_words, french.min_terminal_punctuation) == (0.812, 0.1)
    assert french.max_newlines_per_word == 0.185
    assert french.max_top_ngram == {2: 0.161, 3: 0.149, 4: 0.134}
    assert french.min_language_score is None  # another classifier's


@pytest.mark.parametrize("code", sorted(SENTENCES))
def test_stop_words_are_found_in_a_plain_sentence(code: str) -> None:
    quality = effective_rules(DomainRules(), "docs", code).quality
    assert quality is not None
    words = set(SENTENCES[code].lower().split())
    assert len(words & set(quality.stop_words)) >= quality.min_stop_words


def test_every_language_asked_for_is_there() -> None:
    wanted = "en de fr es it pt nl pl ru uk cs sv tr ar zh ja ko hi vi fi".split()
    assert set(wanted) <= set(CODES)


@pytest.mark.parametrize("code", UNSPACED)
def test_languages_without_blanks_are_not_held_to_words(code: str) -> None:
    quality = effective_rules(DomainRules(), "docs", code).quality
    assert quality is not None
    assert quality.min_words == 1
    assert quality.max_mean_word_length == 1000
    assert quality.min_stop_words == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PT", "name it `pt`"),
        ("pt-BR", "name it `pt`"),
        ("Portuguese", "its code, such as `pt`"),
        ("", "'' is no code"),
    ],
)
def test_languages_are_named_by_the_codes_of_the_corpus(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainRules.model_validate({"languages": {name: {"min_words": 3}}})
    DomainRules.model_validate({"languages": {"pt": {"min_words": 3}, "nds": {"min_words": 3}}})


def test_a_language_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "nds.yaml"
    path.write_text("stop_words: [un, de, dat]\nmax_mean_word_length: 11\n")
    config = DomainRules.model_validate({"languages": {"nds": str(path)}})
    assert config.languages["nds"].max_mean_word_length == 11
    assert DomainRules.model_validate(config.model_dump(mode="json")) == config  # the values, not the path
    path.write_text("max_mean_word_lenght: 11\n")
    with pytest.raises(ValueError, match=r"languages\.nds\.max_mean_word_lenght"):
        DomainRules.model_validate({"languages": {"nds": str(path)}})
    with pytest.raises(ValueError, match=r"cannot read the thresholds in nowhere\.yaml"):
        DomainRules.model_validate({"languages": {"nds": "nowhere.yaml"}})
    with pytest.raises(ValueError, match="n-grams of 7 words are not measured; n is one of 2, 3, 4"):
        RepetitionRules(max_top_ngram={7: 0.1})
