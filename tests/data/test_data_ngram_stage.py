"""Perplexity in stage `corpus`: the reference model, the step, and head, middle and tail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from document_tables import first_reasons
from gristmill.data.config import PerplexityConfig
from gristmill.data.ngram import (
    load_model,
    perplexity_cuts,
    perplexity_rules,
    perplexity_step,
    train_ngram,
    train_reference,
    words,
)
from gristmill.data.schema import document_id
from gristmill.errors import GristmillError

Documents = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


@pytest.fixture
def documents(prose: Callable[..., str]) -> Documents:
    """40 books and 40 pages in batches of 7."""
    rows = [
        {"id": document_id("s", f"{domain}{k}"), "text": prose(k, 60), "domain": domain}
        for k in range(40)
        for domain in ("books", "web")
    ]

    def batches(domains: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = [row for row in rows if row["domain"] in domains]
        return (pa.RecordBatch.from_pylist(wanted[k : k + 7]) for k in range(0, len(wanted), 7))

    return batches


def test_the_reference_is_trained_on_its_domains(documents: Documents, tmp_path: Path) -> None:
    config = PerplexityConfig(reference=("books",), order=2)
    figures = train_reference(config, documents, tmp_path / "m")
    assert figures["documents"] == 40
    books = [text for batch in documents(["books"]) for text in batch["text"].to_pylist()]
    train_ngram(books, 2, tmp_path / "same")
    assert (tmp_path / "m").read_bytes() == (tmp_path / "same").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_large_reference_is_thinned_evenly(documents: Documents, tmp_path: Path) -> None:
    total = sum(len(t) for batch in documents(["books", "web"]) for t in batch["text"].to_pylist())
    config = PerplexityConfig(reference=("books", "web"), order=2, max_training_bytes=total // 2)
    figures = train_reference(config, documents, tmp_path / "a")
    assert 20 < figures["documents"] < 60
    assert train_reference(config, documents, tmp_path / "b") == figures
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_model_that_is_named_is_taken(documents: Documents, tmp_path: Path) -> None:
    train_ngram(["the mill by the river"] * 3, 2, tmp_path / "m.arpa")
    train_reference(PerplexityConfig(model=str(tmp_path / "m.arpa")), documents, tmp_path / "m")
    taken = load_model(tmp_path / "m")
    assert taken.perplexity("the mill") == pytest.approx(load_model(tmp_path / "m.arpa").perplexity("the mill"))


def test_mistakes_are_named(documents: Documents, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="name a model, or under reference"):
        train_reference(PerplexityConfig(), documents, tmp_path / "m")
    with pytest.raises(GristmillError, match="no document is in papers; name domains of what"):
        train_reference(PerplexityConfig(reference=("papers",)), documents, tmp_path / "m")
    with pytest.raises(GristmillError, match=r"corpus\.perplexity\.model: nowhere: No such"):
        train_reference(PerplexityConfig(model="nowhere"), documents, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantiles": (0.7, 0.3)}, "the smaller one first"),
        ({"quantiles": (-0.1, 0.3)}, "shares from 0 to 1"),
        ({"quantiles": (0.5, 1.5)}, "shares from 0 to 1"),
        ({"quantiles": (float("nan"), 0.5)}, "shares from 0 to 1"),
        ({"model": "m.arpa", "reference": ("books",)}, "nothing would be trained on reference"),
    ],
)
def test_settings_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerplexityConfig(**fields)
    PerplexityConfig(quantiles=(0, 1))
    PerplexityConfig(quantiles=(0.5, 0.5))


def test_what_workers_share_is_made_with_the_step(tmp_path: Path) -> None:
    train_ngram(["the mill"] * 3, 2, tmp_path / "m")
    tables = (words._classes, words._folded)
    for table in tables:
        table.cache_clear()
    model = load_model(tmp_path / "m")
    perplexity_step(PerplexityConfig(), model)
    assert [table.cache_info().currsize for table in tables] == [1, 1]
    assert "_vocabulary" in vars(model)


def test_the_step_scores_documents(tmp_path: Path) -> None:
    train_ngram(["the mill stands by the river ."] * 5 + ["a mill grinds corn ."], 3, tmp_path / "m")
    batch = pa.record_batch(
        {
            "text": ["The mill stands by the river.", "zxq wvu qqq", "", "the mill", "The mill grinds corn."],
            "domain": ["web", "web", "web", "code", "docs"],
        }
    )
    found = perplexity_step(PerplexityConfig(), tmp_path / "m").apply(batch)["perplexity"]
    assert found.type == pa.float32()
    values = found.to_pylist()
    assert values[2] is None
    assert values[3] is None
    assert values[0] < values[4] < values[1]
    assert values[0] == pytest.approx(load_model(tmp_path / "m").perplexity("the mill stands by the river ."))


def test_quantiles_are_of_each_language() -> None:
    scores = pa.array([1, 2, 3, 4, 5, 6, 10, 20, None, 7, 7, 7], pa.float32())
    languages = pa.array(["en"] * 6 + ["fr"] * 3 + ["de"] * 3)
    cuts = perplexity_cuts(scores, languages, (1 / 3, 2 / 3))
    assert cuts == {"de": (7, 7), "en": (2, 4), "fr": (10, 20)}
    rules = perplexity_rules(PerplexityConfig(drop=("head", "middle", "tail")), cuts)
    found = first_reasons(pa.record_batch({"perplexity": scores, "rule_language": languages}), rules)
    buckets = [None if reason is None else reason.removeprefix("perplexity:") for reason in found]
    assert buckets[:6] == ["head", "head", "middle", "middle", "tail", "tail"]
    assert buckets[6:9] == ["head", "middle", None]
    assert buckets[9:] == ["head"] * 3  # equal scores stay together


def test_quantiles_do_not_depend_on_the_order() -> None:
    random = np.random.default_rng(0)
    scores = random.lognormal(5, 1, 500).astype(np.float32)
    languages = np.array(["en", "fr"])[random.integers(2, size=500)]
    cuts = perplexity_cuts(pa.array(scores), pa.array(languages), (0.2, 0.7))
    order = random.permutation(500)
    mixed, beside = (pa.chunked_array([column[order[:200]], column[order[200:]]]) for column in (scores, languages))
    assert perplexity_cuts(mixed, beside, (0.2, 0.7)) == cuts
    for language in ("en", "fr"):
        own = scores[languages == language]
        assert (own <= cuts[language][0]).mean() == pytest.approx(0.2, abs=1 / len(own))
        assert (own <= cuts[language][1]).mean() == pytest.approx(0.7, abs=1 / len(own))


def test_rules_drop_buckets() -> None:
    batch = pa.record_batch(
        {"perplexity": pa.array([1, 5, 9, None, 9], pa.float32()), "rule_language": ["en", "en", "en", "en", "xx"]}
    )
    rules = perplexity_rules(PerplexityConfig(drop=("tail", "head")), {"en": (2, 6)})
    assert [rule.reason for rule in rules] == ["perplexity:head", "perplexity:tail"]
    assert rules[0].broken(batch).tolist() == [True, False, False, False, False]
    assert rules[1].broken(batch).tolist() == [False, False, True, False, False]
    assert perplexity_rules(PerplexityConfig(), {}) == []
