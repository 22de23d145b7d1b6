"""Benchmarks while a model is pre-trained: measured at each validation, without a trace in the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gristmill import pipeline
from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.evaluate.benchmarks.harness import Settings, measure, prepare
from gristmill.evaluate.benchmarks.loop import check_benchmarks
from gristmill.events import EventLog, StageLog, read_events
from gristmill.recipe import check_ahead, load_recipe
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.train.config import PretrainConfig
from gristmill.weights.load import load_model

BASE = next(stage for stage in pipeline.STAGES if stage.name == "base")
ITEMS = {
    "mills": [
        {"query": f"What does mill {n} grind?", "choices": ["corn", "the wheel", "büt"], "gold": n % 3}
        for n in range(6)
    ],
    "words": [{"context": f"Chapter {n}. The miller ground the", "continuation": "corn"} for n in range(6)],
}
SHAPE = {
    "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 24,
    "max_seq_len": 64,
}  # fmt: skip
TRAINING = {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "device": "cpu"}


@pytest.fixture(scope="module")
def evals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evals")
    for name, rows in ITEMS.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def pretrained(small_run: dict[str, Path], out: Path, benchmarks: dict[str, Any] | None, **training: Any) -> Path:
    """A tiny model made by the pipeline's stage `base`, without its other stages."""
    config = PretrainConfig.model_validate(
        {"model": SHAPE, "sequence_length": 16, "training": TRAINING | training, "benchmarks": benchmarks}
        | {"validate_every": 2, "validation_tokens": 64}
    )
    log = EventLog(out / "events.jsonl")
    inputs = {"tokenizer": small_run["base"], "tokens": small_run["tokens"]}
    scratch = out / "_scratch"
    scratch.mkdir(parents=True)
    (out / "figures.json").write_text(
        json.dumps(pipeline._function(BASE)(config, StageRun(out, scratch, inputs, 1, StageLog(log, "base"))))
    )
    log.close()
    return out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_they_are_measured_at_each_validation(
    small_run: dict[str, Path], evals: Path, tmp_path: Path, precision: str
) -> None:
    asked = {"paths": [str(evals)], "limit": 4}
    out = pretrained(small_run, tmp_path / "with", asked, precision=precision)
    plain = pretrained(small_run, tmp_path / "without", None, precision=precision)
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    history = json.loads((out / "training.json").read_text())
    names = {f"{kind}/{name}" for name in ITEMS for kind in ("benchmark", "benchmark_stderr")}
    names.add("benchmark_perplexity/words")
    assert {entry["step"]: {key for key in entry if key.startswith("benchmark")} for entry in history} == {
        1: set(), 2: names, 4: names
    }  # fmt: skip
    logged = [event for event in read_events(out / "events.jsonl") if event["type"] == "metric"]
    last = history[-1]
    assert {name: logged[-1][name] for name in names} == {name: last[name] for name in names}
    assert json.loads((out / "figures.json").read_text())["benchmark/mills"] == last["benchmark/mills"]
    if precision == "fp32":
        model, tokenizer, settings = load_model(out), Tokenizer.load(out), Settings(limit=4)
        prepared = [prepare(one, tokenizer, model.config, settings) for one in check_benchmarks([evals])]
        for one in measure(model, tokenizer, prepared, settings):
            name = one.prepared.benchmark.name
            assert last[f"benchmark/{name}"] == pytest.approx(one.quoted.value, abs=1e-6)
        assert last["benchmark_perplexity/words"] == pytest.approx(one.judged.figures["perplexity"].value, rel=1e-4)


RECIPE = """
name: tiny
collected: {paths: [{path: nowhere, domain: books}]}
corpus: {}
tokenizer: {vocab_size: 400}
tokens: {}
base:
  model:
    {hidden_size: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8, intermediate_size: 8, max_seq_len: 8}
  sequence_length: 8
  training: {steps: 30, batch_size: 4, learning_rate: 0.01, device: cpu}
  benchmarks: {paths: [PATH]}
"""


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.jsonl", None, "give a file of items"),
        ("torn.jsonl", '{"context": "a", "continuation": "b"}\n{"context": "a"}\n', "line 2: continuation must be"),
        ("sums.jsonl", '{"context": "1 + 1?", "answer": "2"}\n' * 2, "replies are not generated while training"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_stage(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("PATH", str(tmp_path / name)))
    with pytest.raises(GristmillError, match=rf"base.benchmarks.paths: .*{name}.*{said}"):
        pipeline.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_ahead(load_recipe(recipe), ["corpus"])  # what is planned counts


def test_an_encoder_has_no_benchmarks() -> None:
    with pytest.raises(ValueError, match="benchmarks is for objective: causal"):
        PretrainConfig.model_validate(
            {"model": SHAPE | {"causal": False}, "sequence_length": 16, "training": TRAINING, "objective": "masked"}
            | {"benchmarks": {"paths": ["evals"]}}
        )
