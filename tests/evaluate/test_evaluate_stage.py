"""The stage as a whole: the report against independent sums, shorter recipes, resuming, and mistakes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.evaluate import stage
from gristmill.evaluate.bpb import bits_per_byte
from gristmill.evaluate.config import EvaluateConfig
from gristmill.evaluate.intervals import paired_difference
from gristmill.evaluate.stage import evaluate
from gristmill.evaluate.summary import render
from gristmill.evaluate.tasks import make_tasks
from gristmill.evaluate.text import ValidationText
from gristmill.tokenizer.store import TokenStore
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.load import load_model

CONFIG = EvaluateConfig(
    tokens_per_domain=210, tokens_per_document=20, window=32, stride=16, tasks=20, max_tokens=4, prompt_tokens=5
)
MakeRun = Callable[..., StageRun]


def report_of(run: StageRun) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run.out / "report.json").read_text())
    return report


def test_bits_per_byte_and_gzip_are_over_the_same_bytes(small_run: dict[str, Path], stage_run: MakeRun) -> None:
    run = stage_run(small_run)
    figures = evaluate(CONFIG, run)
    scores = report_of(run)["bits_per_byte"]
    model, tokenizer = load_model(small_run["base"]), Tokenizer.load(small_run["base"])
    store = TokenStore.open(small_run["tokens"])
    totals = [0.0, 0]
    everything = b""
    for domain in ("books", "code"):
        tokens, starts = store.tokens("validation", domain), store.offsets("validation", domain)
        pieces = [tokens[start:end][: CONFIG.tokens_per_document] for start, end in pairwise(starts)]
        ids = np.concatenate(pieces)[: CONFIG.tokens_per_domain].astype(np.int64)
        expected = bits_per_byte(model, ids, tokenizer.token_bytes, window=32, stride=16)
        found = scores["domains"][domain]
        text = tokenizer.decode(ids.tolist()).encode()
        everything += text
        totals = [totals[0] + expected.bits, totals[1] + expected.bytes]
        assert found["models"]["base"]["value"] == pytest.approx(expected.value, abs=2e-6)
        assert found["bytes"] == len(text) == expected.bytes
        assert found["gzip"] == pytest.approx(8 * len(gzip.compress(text, 9, mtime=0)) / len(text), abs=1e-6)
    assert len(everything) < sum(store.bytes("validation", domain) for domain in ("books", "code"))  # the limits cut
    assert scores["all"]["models"]["base"]["value"] == pytest.approx(totals[0] / totals[1], abs=2e-6)
    assert scores["all"]["gzip"] == pytest.approx(8 * len(gzip.compress(everything, 9, mtime=0)) / totals[1], abs=1e-6)
    assert figures["bits_per_byte_base"] == scores["all"]["models"]["base"]["value"]

    books, code = scores["domains"]["books"], scores["domains"]["code"]
    assert books["models"]["base"]["low"] < books["models"]["base"]["value"] < books["models"]["base"]["high"]
    assert code["models"]["base"]["low"] is None  # four documents are too few
    change = books["models"]["dpo"]["value"] - books["models"]["base"]["value"]
    assert books["differences"]["dpo - base"]["value"] == pytest.approx(change, abs=2e-6)
    assert "sft" not in books["models"]


def test_the_report_repeats_and_the_summary_shows_it(small_run: dict[str, Path], stage_run: MakeRun) -> None:
    runs = [stage_run(small_run, name) for name in ("first", "second")]
    figures = [evaluate(CONFIG, run) for run in runs]
    for name in ("report.json", "summary.txt"):
        assert (runs[0].out / name).read_bytes() == (runs[1].out / name).read_bytes()
    report = report_of(runs[0])
    assert "seconds" not in json.dumps(report)
    assert figures[0]["seconds_tasks_base"] > 0
    assert report["heldout_check"]["prompts_trained_on"] == {"sft": 2, "dpo": 1}
    assert [sample["prompt"] for sample in report["samples"]["continuations"]] == list(CONFIG.prompts)
    assert set(report["samples"]["tasks"][0]["replies"]) == {"base", "sft", "dpo"}
    assert report["models"]["base"]["file_bytes"] == (small_run["base"] / "model.safetensors").stat().st_size
    summary = (runs[0].out / "summary.txt").read_text()
    assert summary == render(report)
    assert f"{report['bits_per_byte']['domains']['code']['gzip']:.3f}" in summary
    assert f"{report['models']['base']['parameters']:,}" in summary


RIGHT = {"base": 1, "sft": 11, "dpo": 14}


class ScriptedLLM:
    """Answers the first `right` tasks and says "no idea" to the others."""

    def __init__(self, right: int):
        self.answers = [task.answer for task in make_tasks(20, 0, "heldout")[:right]]

    def chat(self, conversations: list[Any], params: Any, on_progress: Any = None) -> list[Any]:
        padding = ["no idea"] * (len(conversations) - len(self.answers))
        return [SimpleNamespace(text=text) for text in self.answers + padding]

    def generate(self, prompts: list[str], params: Any) -> list[Any]:
        return [SimpleNamespace(text=" ...") for _ in prompts]


def script(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put `ScriptedLLM` in the engine's place; the list fills with the names of the models that are loaded."""
    loaded: list[str] = []

    def load(directory: Path, **options: Any) -> Any:
        loaded.append(directory.name)
        return load_model(directory, **options)

    monkeypatch.setattr(stage, "load_model", load)
    monkeypatch.setattr(stage, "LLM", SimpleNamespace(from_model=lambda *args, **kw: ScriptedLLM(RIGHT[loaded[-1]])))
    return loaded


def test_accuracies_and_paired_differences(
    small_run: dict[str, Path], stage_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch)
    run = stage_run(small_run)
    figures = evaluate(CONFIG, run)
    scores = report_of(run)["tasks"]
    assert {name: model["correct"] for name, model in scores["models"].items()} == RIGHT
    assert figures["accuracy_dpo"] == 0.7
    sft, dpo = [i < 11 for i in range(20)], [i < 14 for i in range(20)]
    change = scores["differences"]["dpo - sft"]
    found = (change["difference"], change["low"], change["high"])
    assert found == pytest.approx(paired_difference(dpo, sft), abs=1e-6)
    assert list(scores["differences"]) == ["sft - base", "dpo - sft"]
    assert "14/20  70.0 %" in (run.out / "summary.txt").read_text()


def test_a_cut_stage_goes_on_with_the_model_it_was_at(
    small_run: dict[str, Path], stage_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = script(monkeypatch)
    whole = stage_run(small_run, "whole")
    evaluate(CONFIG, whole)
    assert loaded == ["base", "sft", "dpo"]

    cut = stage_run(small_run, "cut")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "answer_tasks", _dies_at(3, stage.answer_tasks))
        with pytest.raises(KeyboardInterrupt):
            evaluate(CONFIG, cut)
    loaded.clear()
    evaluate(CONFIG, cut)
    assert loaded == ["dpo"]
    assert (cut.out / "report.json").read_bytes() == (whole.out / "report.json").read_bytes()


def _dies_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1, call + 1))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


def test_a_shorter_recipe_is_evaluated_as_far_as_it_goes(small_run: dict[str, Path], stage_run: MakeRun) -> None:
    inputs = {name: small_run[name] for name in ("base", "corpus", "tokens")}
    run = stage_run(inputs)
    evaluate(CONFIG.model_copy(update={"bits_per_byte_models": ("dpo",), "shown_tasks": 0, "prompts": ()}), run)
    report = report_of(run)
    assert list(report["tasks"]["models"]) == ["base"]
    assert report["tasks"]["differences"] == {}
    assert report["bits_per_byte"]["all"]["models"] == {}
    assert "Samples" not in (run.out / "summary.txt").read_text()


def test_mistakes_name_what_is_wrong(small_run: dict[str, Path], stage_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="base, sft, dpo, int8"):
        evaluate(CONFIG, stage_run({name: small_run[name] for name in ("corpus", "tokens")}))
    with pytest.raises(GristmillError, match=r"evaluation.window \(256\)"):
        evaluate(EvaluateConfig(tasks=1), stage_run(small_run))
    with pytest.raises(ValueError, match="stride"):
        EvaluateConfig(window=16, stride=17)

    other = tmp_path / "other"
    shutil.copytree(small_run["dpo"], other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(GristmillError, match="was made with another tokenizer or chat template"):
        evaluate(CONFIG, stage_run({**small_run, "dpo": other}))

    leaked = tmp_path / "leaked"
    shutil.copytree(small_run["sft"], leaked)
    task = make_tasks(CONFIG.tasks, CONFIG.seed, "heldout")[7]
    with open(leaked / "dataset.jsonl", "a") as file:
        file.write(json.dumps({"prompt": task.prompt}) + "\n")
    with pytest.raises(GristmillError, match=rf"line 3 .*{task.id}"):
        evaluate(CONFIG, stage_run({**small_run, "sft": leaked}))


def test_tokens_of_another_corpus_are_refused(small_run: dict[str, Path], stage_run: MakeRun, tmp_path: Path) -> None:
    """The bytes that gzip gets must be those that the model reads."""
    import pyarrow.parquet as pq

    corpus = tmp_path / "corpus" / "documents"
    corpus.mkdir(parents=True)
    table = pq.read_table(small_run["corpus"] / "documents" / "part-00000.parquet")
    pq.write_table(table.slice(0, len(table) // 2 + 3), corpus / "part-00000.parquet")
    with pytest.raises(GristmillError, match="packed from another corpus"):
        evaluate(CONFIG, stage_run({**small_run, "corpus": tmp_path / "corpus"}))


def test_sums_by_document_leave_out_what_nothing_predicts() -> None:
    text = ValidationText(np.arange(6), np.array([0, 4, 6]), np.array([2, 3, 0, 1, 0, 5]), b"")
    assert text.by_document(np.array([100.0, 1.0, 100.0, 2.0, 100.0, 4.0])).tolist() == [3.0, 4.0]
    assert text.by_document(text.sizes).tolist() == [4, 5]
