"""The toxicity score: sentences, rules, a stand-in for the packaged judge, a trained classifier."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from document_tables import first_reasons
from gristmill.data import toxicity
from gristmill.data.classifier.predict import Classifier
from gristmill.data.config import ToxicityConfig
from gristmill.data.toxicity import toxicity_rules, toxicity_step, worst_sentences
from gristmill.errors import GristmillError


def rude(sentences: list[str]) -> np.ndarray:
    return np.array([0.995 if "rude" in sentence else 0.1 * ("bad" in sentence) for sentence in sentences])


def test_the_worst_sentence_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def score(sentences: list[str]) -> np.ndarray:
        asked.append(sentences)
        return rude(sentences)

    texts = ["Fine. A bad one! Fine", "...", "Very rude\nand fine.", "Fine", "", "x" * 900 + " rude"]
    monkeypatch.setattr(toxicity, "_AT_ONCE", 3)
    assert worst_sentences(texts, score) == pytest.approx([0.1, 0, 0.995, 0, 0, 0.995])
    everything = [sentence for part in asked for sentence in part]
    assert len(everything) == len(set(everything))  # each once
    assert max(map(len, asked)) == 3


def test_step_and_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("profanity_check")
    package.predict_prob = rude  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "profanity_check", package)
    batch = pa.RecordBatch.from_pydict({"text": ["So rude. Fine.", "bad", "fine"]})
    result = toxicity_step(ToxicityConfig()).apply(batch)
    assert result.schema.field("toxicity_score").type == pa.float32()
    assert result["toxicity_score"].to_pylist() == pytest.approx([0.995, 0.1, 0])
    assert first_reasons(result, toxicity_rules(ToxicityConfig())) == ["toxicity:max_score", None, None]
    assert first_reasons(result, toxicity_rules(ToxicityConfig(max_score=0.05)))[1] == "toxicity:max_score"


def test_a_trained_classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"absent\.bin"):
        toxicity_step(ToxicityConfig(model=str(tmp_path / "absent.bin")))

    class StandIn:
        def scores(self, texts: pa.Array) -> np.ndarray:  # how good each text is
            return np.array([0.9 if "kind" in text else 0.2 for text in texts.to_pylist()], np.float32)

    monkeypatch.setattr(Classifier, "load", lambda path, label: StandIn())
    step = toxicity_step(ToxicityConfig(model="toxic.bin"))
    scores = step.apply(pa.RecordBatch.from_pydict({"text": ["a kind mill", "a vile mill"]}))["toxicity_score"]
    assert scores.to_pylist() == pytest.approx([0.1, 0.8])


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(GristmillError, match=r"gristmill\[toxicity\]"):
        toxicity_step(ToxicityConfig())


def test_the_packaged_judge() -> None:
    pytest.importorskip("profanity_check")
    batch = pa.RecordBatch.from_pydict(
        {"text": ["You are a stupid idiot and I hate you.", "Have a nice day, my friend."]}
    )
    insult, greeting = toxicity_step(ToxicityConfig()).apply(batch)["toxicity_score"].to_pylist()
    assert insult > 0.99
    assert greeting < 0.2
