"""Stage `corpus` with everything that is off by default: models that it trains, contamination, repeated paragraphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from document_tables import write_documents
from gristmill.artifact import Manifest, StageRun, build
from gristmill.data.config import CorpusConfig
from gristmill.data.corpus import read_documents
from gristmill.data.ngram import load_model
from gristmill.data.process import process
from gristmill.data.process.inputs import expand_paths
from gristmill.data.schema import Document
from gristmill.errors import GristmillError
from gristmill.events import StageLog

Make = Callable[..., StageRun]
Prose = Callable[..., str]
Tree = Callable[[Path], dict[str, str]]

QUESTION = "which of the many small mills along the quiet river first ground the winter wheat for all the town"
FOOTER = "This paragraph stands at the end of many documents, word for word, because they were all made by one program."
CLASSIFIER = {
    "good": ["books"],
    "bad": ["docs"],
    "evaluate": False,
    "min_score": 0.5,
    "training": {"dimensions": 4, "buckets": 1024, "learning_rate": 1.0, "epochs": 20},
}


@pytest.fixture
def source(prose: Prose, collected: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Books in one made-up language, web pages in another, in several row groups."""
    found = [Document(prose(seed, 120), "test", "books", "en", "x", f"book {seed}") for seed in range(150)]
    for seed in range(150):
        text = prose(seed + 5000, 120, vocabulary=300).replace("a", "ou").replace("e", "ai")
        text += f"\n\n{FOOTER}" if seed % 10 == 0 else ""
        text += f"\n{QUESTION.upper()}?" if seed == 77 else ""
        found.append(Document(text, "test", "docs", "en", "x", f"page {seed}"))
    with monkeypatch.context() as small:
        small.setattr("gristmill.data.schema.ROW_GROUP_ROWS", 60)
        return collected(found)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    sets = tmp_path / "quiz.jsonl"
    sets.write_text(json.dumps({"question": QUESTION}) + '\n{"question": "What is it?"}\n')
    return {
        "repeated_units": {"max_documents": 2},
        "contamination": {"sets": [str(sets)]},
        "perplexity": {"reference": ["books"], "order": 2, "quantiles": [0.2, 0.9], "drop": ["tail"]},
        "classifier": CLASSIFIER,
        "near_duplicates": None,
    }


def test_scores_and_reasons_of_all_of_them(source: Path, config: dict[str, Any], stage_run: Make) -> None:
    run = stage_run(collected=source)
    figures = process(CorpusConfig.model_validate(config), run)
    kept, removed = read_documents(run.out).to_pylist(), pq.read_table(run.out / "removed").to_pylist()
    by_name = {row["origin"]: row for row in [*kept, *removed]}
    assert by_name["page 77"]["reason"] == "contaminated:quiz"
    assert by_name["page 77"]["contaminated"] == "quiz#1"
    with_footer = [row["origin"] for row in by_name.values() if FOOTER in row["text"]]
    assert sorted(with_footer) == ["page 0", "page 10"]  # it stays in the first two

    scores = np.array([row["perplexity"] for row in by_name.values()])
    cut = np.sort(scores)[int(np.ceil(0.9 * len(scores))) - 1]
    reasons = {row["origin"]: row.get("reason") for row in by_name.values()}
    above = {name for name, row in by_name.items() if row["perplexity"] > cut} - {"page 77"}
    assert {name for name, reason in reasons.items() if reason == "perplexity:tail"} == above
    assert above
    assert all(name.startswith("page") for name in above)
    model = load_model(run.out / "models" / "perplexity.ngram")
    text = by_name["book 3"]["text"]
    assert model.perplexity(text) == pytest.approx(by_name["book 3"]["perplexity"], rel=1e-5)

    low = {name for name, row in by_name.items() if row["quality_score"] < 0.5} - {"page 77"} - above
    assert {name for name, reason in reasons.items() if reason == "classifier:min_score"} == low
    assert low
    assert sorted(path.name for path in (run.out / "models").iterdir()) == ["classifier.bin", "perplexity.ngram"]
    assert set(figures["models"]) == {"classifier.bin", "perplexity.ngram"}
    assert {"repeated_paragraphs", "contamination", "perplexity", "classifier"} <= set(figures["seconds_by_step"])
    report = json.loads((run.out / "report.json").read_text())
    assert report["evaluation_sets"] == {"quiz": {"items": 2, "too_short": 1}}
    order = [step["step"] for step in report["funnel"]]
    wanted = ["empty", "gopher_quality:min_words", "contaminated:quiz", "perplexity:tail", "classifier:min_score"]
    assert [name for name in order if name in wanted] == wanted


def test_two_workers_and_a_cut_run_make_the_same(
    source: Path, config: dict[str, Any], stage_run: Make, tree: Tree
) -> None:
    one, two = stage_run("one", collected=source), stage_run("two", {"workers": 2}, collected=source)
    settings = CorpusConfig.model_validate(config)
    process(settings, one)
    figures = process(settings, two)
    assert tree(two.out) == tree(one.out)
    (one.scratch / "models" / "classifier.bin").unlink()
    (one.scratch / "classifier.bin.json").unlink()
    (one.scratch / "repeated" / "found").unlink()
    (one.scratch / "units" / "0000001.npy").unlink()
    (one.scratch / "annotated" / "0000002.parquet").unlink()
    (one.scratch / "written" / "00000.json").unlink()
    (one.scratch / "perplexity.ngram.json").unlink()  # it was killed between a model and its figures
    again = process(settings, one)["models"]
    assert {name: found["bytes"] for name, found in again.items()} == {
        name: found["bytes"] for name, found in figures["models"].items()
    }
    assert tree(two.out) == tree(one.out)


def test_changed_cuts_take_the_annotations_and_the_models_that_are_there(
    source: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    documents = [Document(**{k: v for k, v in row.items() if k != "id"}) for row in read_documents(source).to_pylist()]

    def collect(config: Any, run: StageRun) -> dict[str, Any]:
        write_documents(run.out / "documents", documents)
        return {}

    common: dict[str, Any] = {"seed": 0, "log": StageLog.silent(), "workers": 1}
    place = tmp_path / "artifact"
    build(
        place,
        kind="collection",
        stage="c",
        function=collect,
        inputs={},
        fingerprint="",
        config=CorpusConfig(),
        **common,
    )

    def make(name: str, settings: dict[str, Any]) -> Manifest:
        checked = CorpusConfig.model_validate(settings)
        what = {"kind": "corpus", "stage": "corpus", "function": process, "inputs": {"collected": place}}
        return build(tmp_path / name, **what, config=checked, fingerprint=checked.model_dump_json(), **common)

    make("over", config)
    config["perplexity"] |= {"quantiles": [0.3, 0.5], "drop": ["head", "tail"]}
    config["classifier"] |= {"min_score": 0.0}
    config["contamination"] |= {"min_overlap": 1.0}
    over, fresh = make("over", config), make("fresh", config)
    assert over.figures["reused_annotations"]
    assert over.files == fresh.files
    assert over.figures["models"].keys() == fresh.figures["models"].keys()


def test_what_is_missing_is_named_before_any_work(
    source: Path, config: dict[str, Any], stage_run: Make, tmp_path: Path
) -> None:
    old = stage_run("old", collected=source)
    process(CorpusConfig.model_validate({"near_duplicates": {"ngram": 3}}), old)
    (tmp_path / "broken.json").write_text('{"books": -1}')
    for section, change, message in (
        ("near_duplicates", {"against": [str(tmp_path / "nothing")]}, "nothing holds no signatures"),
        ("near_duplicates", {"against": [str(source)]}, "collected holds no signatures"),
        ("near_duplicates", {"against": [str(old.out)]}, "old has signatures of 112 minima of 3-grams"),
        ("mixture", {"weights": str(tmp_path / "none.json")}, "none.json is no JSON file"),
        ("mixture", {"weights": str(tmp_path / "broken.json")}, "broken.json holds a negative weight"),
        ("contamination", {"sets": ["nowhere.jsonl"]}, "nowhere.jsonl"),
        ("toxicity", {"model": str(tmp_path / "none.bin")}, "none.bin"),
        ("perplexity", {"reference": ["poems"]}, "poems"),
    ):
        run = stage_run(section, collected=source)
        with pytest.raises(GristmillError, match=message):
            process(CorpusConfig.model_validate(config | {section: change}), run)
        assert not list(run.scratch.glob("annotated/*"))


def test_the_home_directory_is_known_in_all_paths_and_written_nowhere(
    source: Path, config: dict[str, Any], stage_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.json").write_text('{"books": 3, "docs": 1}')
    old = stage_run("old", collected=source)
    process(CorpusConfig(), old)
    config |= {"mixture": {"weights": "~/weights.json"}, "contamination": {"sets": ["~/quiz.jsonl"]}}
    config |= {"perplexity": None, "classifier": {"model": "~/judge.bin"}}
    judge = stage_run("judge", collected=source)
    process(CorpusConfig.model_validate(config | {"classifier": CLASSIFIER}), judge)
    (judge.out / "models" / "classifier.bin").rename(tmp_path / "judge.bin")
    run = stage_run("run", collected=source)
    process(CorpusConfig.model_validate(config), run)
    report = json.loads((run.out / "report.json").read_text())
    assert report["weights"] == {"books": 0.75, "docs": 0.25}
    assert "contaminated:quiz" in report["removed"]
    assert report["settings"]["contamination"]["sets"] == ["~/quiz.jsonl"]
    assert str(tmp_path) not in json.dumps(report["settings"])
    config |= {"near_duplicates": {"against": ["~/old"]}}
    with pytest.raises(GristmillError, match="no document is left"):
        process(CorpusConfig.model_validate(config), stage_run("against", collected=source))

    named = CorpusConfig.model_validate(
        {
            "classifier": {"good_files": ["~/a"], "bad_files": ["~/b", "/c"]},
            "perplexity": {"model": "~/d"},
            "toxicity": {"model": "~/e"},
            "names": {"model": "~/f"},
            "rules": {"web": {"c4": {"bad_words": "~/g", "forbidden_phrases": ["~/not a path"]}}},
        }
    )
    expanded = expand_paths(named).model_dump_json()
    assert expanded == named.model_dump_json().replace("~/", f"{tmp_path}/").replace(f"{tmp_path}/not", "~/not")


@pytest.mark.parametrize("redacted", [True, False])
def test_personal_data_stands_in_no_model(
    redacted: bool, prose: Prose, config: dict[str, Any], collected: Callable[..., Path], stage_run: Make
) -> None:
    texts = [f"{prose(seed, 120)}\nWrite to zyxann@zyxmill.org every day." for seed in range(30)]
    found = [Document(text, "test", "books", "en", "x", f"book {i}") for i, text in enumerate(texts)]
    found += [Document(prose(100 + i, 120, 300), "test", "docs", "en", "x", f"page {i}") for i in range(30)]
    run = stage_run(collected=collected(found))
    off = {} if redacted else {"privacy": None}
    process(CorpusConfig.model_validate(config | {"repeated_units": None, "contamination": None} | off), run)
    for name in ("perplexity.ngram", "classifier.bin"):
        content = (run.out / "models" / name).read_bytes()
        assert b"every" in content
        assert (b"zyxann" in content) != redacted, name
