"""The fastText classifier: its files and scores against fastText's, its training, and how it is judged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.data.classifier import Classifier, classifier_rules, classifier_step, train_classifier_files
from gristmill.data.classifier.evaluation import area_under_curve, evaluate
from gristmill.data.classifier.examples import Examples, gather, pieces
from gristmill.data.classifier.fasttext_file import read_fasttext, write_fasttext
from gristmill.data.classifier.stage import train_for_stage
from gristmill.data.classifier.train import fit
from gristmill.data.config import ClassifierConfig, ClassifierTraining
from gristmill.errors import GristmillError

SMALL = ClassifierTraining(
    dimensions=4, buckets=4096, min_count=1, learning_rate=0.5
)  # so few examples want a high rate
TELLING = ("the", "of", "and", "to")


def sentence(seed: int, good: bool, words: int = 80) -> str:
    """Good text has function words, bad text has numbers; all else they share."""
    source = random.Random(seed)
    marks = TELLING if good else ("17", "0x3f", "--", "|")
    found = [source.choice(marks) if source.random() < 0.4 else f"word{source.randrange(300)}" for _ in range(words)]
    return " ".join(found)


def rows(good: bool, sources: int = 4, each: int = 25) -> pa.RecordBatch:
    start = 0 if good else 100_000
    texts = [sentence(start + k, good) for k in range(sources * each)]
    names = [f"{'good' if good else 'bad'} {k // each}" for k in range(sources * each)]
    return pa.record_batch({"text": pa.array(texts, pa.large_string()), "source": names})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classifier")
    for good in (True, False):
        with (directory / f"{good}.jsonl").open("w") as file:
            for row in rows(good).to_pylist():
                file.write(json.dumps(row) + "\n")
    config = ClassifierConfig(training=SMALL, evaluate=False)
    train_classifier_files([directory / "True.jsonl"], [directory / "False.jsonl"], directory / "q.bin", config)
    return directory / "q.bin"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"word_ngrams": 1},
        {"word_ngrams": 3},
        {"character_ngrams": (2, 4)},
        {"character_ngrams": (1, 1), "word_ngrams": 1, "min_count": 3},
        {"buckets": 999_983, "dimensions": 2},
    ],
)
def test_fasttext_scores_as_we_do(options: dict, tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext")
    examples = gather([rows(True)], [rows(False)], 1000, 4096)
    model = fit(examples.texts, examples.labels, ("bad", "good"), SMALL.model_copy(update=options))
    write_fasttext(tmp_path / "m.bin", model)
    theirs = fasttext.load_model(str(tmp_path / "m.bin"))
    own = Classifier.load(tmp_path / "m.bin")
    texts = [
        *examples.texts.to_pylist()[::9],
        "größe 水車 the",
        "unseen",
        "",
        "the </s> of",
        "__label__good 17 17",
        " \t\nx\vy",
    ]
    scores = own.scores(texts)
    for text, score in zip(texts, scores, strict=True):
        expected = dict(zip(*theirs.predict(text.replace("\n", " "), 2), strict=True))
        assert score == pytest.approx(expected["__label__good"] - 1e-5, abs=2e-6)  # fastText adds 1e-5
    assert np.ptp(scores) > 0.3


def test_it_tells_good_from_bad(trained: Path) -> None:
    classifier = Classifier.load(trained)
    good = classifier.scores([sentence(seed, True) for seed in range(500, 540)])
    bad = classifier.scores([sentence(seed, False) for seed in range(500, 540)])
    assert area_under_curve(good, bad) > 0.99


def test_scores_do_not_depend_on_the_batch(trained: Path) -> None:
    classifier = Classifier.load(trained)
    texts = [sentence(seed, seed % 2 == 0, words=seed) for seed in range(1, 40)]
    alone = [classifier.scores([text])[0] for text in texts]
    np.testing.assert_array_equal(classifier.scores(pa.array(["x", *texts]).slice(1)), alone)


def test_training_is_repeatable(trained: Path, tmp_path: Path) -> None:
    """In whatever order the examples come, and one that comes twice counts once."""
    good, bad = rows(True), rows(False)
    mixed = good.take(pa.array(np.random.default_rng(0).permutation(len(good))))
    config = ClassifierConfig(training=SMALL, evaluate=False)
    from gristmill.data.classifier import train_classifier

    train_classifier([mixed.slice(50), good.slice(0, 10), mixed.slice(0, 50)], [bad], config, tmp_path / "q.bin")
    assert (tmp_path / "q.bin").read_bytes() == trained.read_bytes()


def test_the_file_is_read_as_it_was_written(trained: Path) -> None:
    model = read_fasttext(trained)
    assert model.labels == ["bad", "good"]
    assert model.arguments.dim == 4
    assert model.inputs.shape == (len(model.words) + 4096, 4)
    assert model.word_counts == sorted(model.word_counts, reverse=True)
    assert b"</s>" in model.words


def test_unseen_words_add_nothing(trained: Path) -> None:
    model = read_fasttext(trained)
    touched = np.any(model.inputs != 0, axis=1)
    assert touched[: len(model.words)].all()
    assert 0 < touched[len(model.words) :].mean() < 1


def test_rare_labels_weigh_as_much() -> None:
    """With 1 good example in 20 the scores still fall on both sides of a half."""
    texts = [sentence(k, k % 20 == 0) for k in range(400)]
    labels = np.array([k % 20 == 0 for k in range(400)]).astype(np.int64)
    classifier = Classifier(fit(pa.array(texts, pa.large_string()), labels, ("bad", "good"), SMALL))
    good = classifier.scores([sentence(seed, True) for seed in range(1000, 1030)])
    bad = classifier.scores([sentence(seed, False) for seed in range(1000, 1030)])
    assert np.median(good) > 0.5 > np.median(bad)


def test_area_under_curve_counts_pairs() -> None:
    good, bad = np.array([0.9, 0.5, 0.5], np.float32), np.array([0.5, 0.1], np.float32)
    assert area_under_curve(good, bad) == pytest.approx((2 + 1.5 + 1.5) / 6)
    assert area_under_curve(bad, good) == pytest.approx(1 - 5 / 6)


def test_sources_are_held_out_whole() -> None:
    """Each source has a word of its own that gives it away, and nothing else tells good from bad. Held out by source,
    the classifier is worth nothing, though it knows every example that it was trained on."""
    texts, labels, sources = [], [], []
    for label in (0, 1):
        for number in range(6):
            for k in range(10):
                seed = 1000 * label + 50 * number + k
                texts.append(sentence(seed, good=True) + f" mark{label}{number}" * 20)
                labels.append(label)
                sources.append(f"{label}-{number}")
    examples = Examples(pa.array(texts, pa.large_string()), np.array(labels), sources)
    known = Classifier(fit(examples.texts, examples.labels, ("bad", "good"), SMALL)).scores(texts)
    assert area_under_curve(known[60:], known[:60]) > 0.95
    figures = evaluate(examples, SMALL)
    assert figures["auc"] < 0.85
    assert figures["auc_interval"][0] < figures["auc"] < figures["auc_interval"][1]
    assert set(figures["sources"]) == set(sources)


def test_figures_of_an_honest_task() -> None:
    figures = evaluate(gather([rows(True)], [rows(False)], 1000, 4096), SMALL)
    assert figures["auc"] > 0.99
    assert len(figures["fold_auc"]) == 4
    assert {row["label"] for row in figures["sources"].values()} == {"good", "bad"}
    assert sum(row["examples"] for row in figures["sources"].values()) == 200


def test_one_source_cannot_be_held_out() -> None:
    figures = evaluate(gather([rows(True, sources=1)], [rows(False)], 1000, 4096), SMALL)
    assert figures["auc"] is None


def test_examples_are_chosen_evenly() -> None:
    big, small = rows(True, sources=1, each=90), rows(True, sources=1, each=10)
    small = small.set_column(1, "source", pa.array(["small"] * 10))
    found = gather([big, small], [rows(False)], 40, 4096)
    good = [source for source, label in zip(found.sources, found.labels, strict=True) if label == 1]
    assert {source: good.count(source) for source in set(good)} == {"small": 10, "good 0": 30}
    assert sum(found.labels == 0) == 40


@pytest.mark.parametrize("size", [256, 1000])
def test_pieces_hold_the_text(size: int) -> None:
    text = sentence(3, True, 400) + " über größe 水車 " * 50
    found = list(pieces(text, size))
    assert all(200 <= len(piece) <= size for piece in found)
    assert " ".join(piece.decode() for piece in found).split() == text.split()[: sum(len(p.split()) for p in found)]
    assert sum(map(len, found)) > 0.9 * len(text.encode()) - size
    assert next(pieces("水" * 1000, size)).decode() == "水" * (size // 3)


def test_the_step_and_its_rule(trained: Path) -> None:
    batch = pa.record_batch({"text": [sentence(900, True), sentence(901, False)]})
    found = classifier_step(trained).apply(batch)
    assert found.schema.field("quality_score").type == pa.float32()
    (rule,) = classifier_rules(ClassifierConfig(min_score=0.5))
    assert rule.reason == "classifier:min_score"
    assert rule.broken(found).tolist() == [False, True]
    assert classifier_rules(ClassifierConfig()) == []


def test_a_classifier_for_the_stage(tmp_path: Path) -> None:
    def documents(domains: Sequence[str]) -> list[pa.RecordBatch]:
        return [rows(domain == "books") for domain in domains]

    (tmp_path / "more.txt").write_text(sentence(7, False, 2000))
    config = ClassifierConfig(
        good=("books",), bad=("web",), bad_files=(str(tmp_path / "more.txt"),), training=SMALL, evaluate=False
    )
    figures = train_for_stage(config, documents, tmp_path / "m" / "q.bin")
    assert figures["examples"]["good"] == 100 < figures["examples"]["bad"]
    taken = ClassifierConfig(model=str(tmp_path / "m" / "q.bin"))
    train_for_stage(taken, documents, tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == (tmp_path / "m" / "q.bin").read_bytes()


def test_mistakes_are_named(tmp_path: Path, prose: Callable[..., str]) -> None:
    def nothing(domains: Sequence[str]) -> list[pa.RecordBatch]:
        return []

    with pytest.raises(GristmillError, match="domains under bad, or files under bad_files"):
        train_for_stage(ClassifierConfig(good=("books",)), nothing, tmp_path / "q.bin")
    with pytest.raises(GristmillError, match="no bad example"):
        train_for_stage(ClassifierConfig(good=("books",), bad=("web",)), nothing, tmp_path / "q.bin")
    with pytest.raises(GristmillError, match="nowhere does not exist"):
        train_classifier_files([tmp_path / "nowhere"], [tmp_path], tmp_path / "q.bin")
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"no": 1}\n')
    with pytest.raises(GristmillError, match=r"x\.jsonl, line 2"):
        train_classifier_files([tmp_path / "x.jsonl"], [tmp_path / "x.jsonl"], tmp_path / "q.bin")


def test_the_same_text_on_both_sides(tmp_path: Path) -> None:
    good, bad = rows(True), rows(False)
    with pytest.raises(GristmillError, match="every bad example is a good one too"):
        gather([good], [good], 1000, 4096)
    with pytest.raises(GristmillError, match="every good example is a bad one too"):
        gather([good.slice(0, 9)], [bad, good], 1000, 4096)
    gather([good], [bad, good.slice(0, 9)], 1000, 4096)


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    for name, good in (("good.txt", True), ("bad.txt", False)):
        (tmp_path / name).write_text(sentence(7, good, 2000))
    config = ClassifierConfig(training=SMALL)
    found = train_classifier_files([tmp_path / "good.txt"], [tmp_path / "bad.txt"], tmp_path / "q.bin", config)
    assert found["auc"] is None
    assert "each side needs two sources" in found["note"]
    with pytest.raises(GristmillError, match="is a directory"):
        train_classifier_files([tmp_path / "good.txt"], [tmp_path / "bad.txt"], tmp_path, config)


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        (ClassifierTraining, {"character_ngrams": (3, 2)}, "the longest no fewer"),
        (ClassifierTraining, {"character_ngrams": (0, 2)}, "1 character or more"),
        (ClassifierTraining, {"character_ngrams": (-1, -1)}, "1 character or more"),
        (ClassifierConfig, {"model": "q.bin", "good": ("books",)}, "nothing would be trained on good:"),
        (ClassifierConfig, {"model": "q.bin", "bad_files": ("a",), "good_files": ("b",)}, "on good_files, bad_files:"),
    ],
)
def test_settings_that_cannot_be(settings: type, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_a_classifier_without_the_label_is_refused(tmp_path: Path) -> None:
    examples = gather([rows(True)], [rows(False)], 1000, 4096)
    write_fasttext(tmp_path / "m.bin", fit(examples.texts, examples.labels, ("spam", "ham"), SMALL))
    assert Classifier.load(tmp_path / "m.bin", label="ham").labels == ["spam", "ham"]
    for load in (lambda path: Classifier.load(path, label="good"), classifier_step):
        with pytest.raises(
            GristmillError, match=r"m\.bin has no label __label__good, but __label__spam, __label__ham;"
        ):
            load(tmp_path / "m.bin")


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\0" * 100, (793712314).to_bytes(4, "little") + b"\x0c\0\0\0"])
def test_a_broken_model_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(GristmillError, match=r"m\.bin is no fastText model"):
        Classifier.load(tmp_path / "m.bin")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_torn_model_is_named(share: float, trained: Path, tmp_path: Path) -> None:
    content = trained.read_bytes()
    (tmp_path / "torn.bin").write_bytes(content[: int(share * len(content))])
    with pytest.raises(GristmillError, match=r"torn\.bin is no fastText model"):
        Classifier.load(tmp_path / "torn.bin")
    with pytest.raises(GristmillError, match="No such file"):
        Classifier.load(tmp_path / "nowhere.bin")
