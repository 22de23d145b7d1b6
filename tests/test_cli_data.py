"""The verbs of the data stages on a small recipe: report, sample, mix, and training the models of filters."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from gristmill import cli
from gristmill.cli import main

RECIPE = """
name: small
collected:
  books: {{enabled: false}}
  web: {{enabled: false}}
  docs: {{enabled: false}}
  code: {{enabled: false}}
  paths:
    - {{path: {text}/good, domain: good}}
    - {{path: {text}/bad, domain: bad}}
corpus: {{}}
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, standard output, standard error) of one call."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gristmill", *map(str, arguments)])
        monkeypatch.setattr(cli, "_show_traceback", [False])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def text(tmp_path):
    """A directory of good prose and one of price lists, twelve files each."""
    for kind in ("good", "bad"):
        (tmp_path / "text" / kind).mkdir(parents=True)
    for number in range(12):
        prose = [
            f"The miller of village {number} has to wait with the others for the water of the river, line {i}."
            for i in range(12)
        ]
        (tmp_path / "text" / "good" / f"{number}.txt").write_text("\n".join(prose))
        prices = [f"BUY NOW {number}{i} cheap offer {i * 7} only $ {i}.99 click" for i in range(30)]
        (tmp_path / "text" / "bad" / f"{number}.txt").write_text("\n".join(prices))
    return tmp_path / "text"


@pytest.mark.parametrize("verb", ["collect", "clean", "report", "mix", "sample", "train-ngram", "train-classifier"])
def test_help_has_an_example(call, verb):
    code, out, _ = call("data", verb, "--help")
    assert code == 0
    assert f"Example: gristmill data {verb}" in out


def test_from_text_to_report_and_sample(call, text, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(text=text))
    run = tmp_path / "run"
    assert call("data", "collect", recipe, "--run", run, "--workers", 1)[0] == 0
    rules = ["--set", "corpus.rules.other.repetition=null", "--set", "corpus.near_duplicates=null"]
    assert call("data", "clean", recipe, "--run", run, "--workers", 1, *rules)[0] == 0
    code, out, _ = call("data", "report", run, "--out", tmp_path / "report")
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["step", "removed"]
    assert any(line.startswith("gopher_quality:") for line in out.splitlines())
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!doctype html>")
    code, out, _ = call("data", "report", run, "--out", tmp_path / "report", "--json")
    report = json.loads(out)
    assert report["funnel"][0]["left"]["documents"] == 24
    code, _, err = call("data", "report", run, "--exact", "--out", tmp_path / "report")
    assert (code, "--tokenizer" in err) == (1, True)
    assert call("data", "sample", run, "--documents", 5, "--out", tmp_path / "sample.parquet")[0] == 0
    assert sum(pq.read_table(tmp_path / "sample.parquet")["copies"].to_pylist()) == 5
    code, _, err = call("data", "sample", run, "--out", tmp_path / "sample.parquet")
    assert (code, "either --tokens or --documents" in err) == (1, True)


def test_models_are_trained_and_taken_by_a_recipe(call, text, tmp_path):
    ngram, classifier = tmp_path / "prose.ngram", tmp_path / "quality.bin"
    assert call("data", "train-ngram", "--text", text / "good", "--order", 3, "--out", ngram)[0] == 0
    assert call("data", "train-classifier", "--good", text / "good", "--bad", text / "bad", "--out", classifier)[0] == 0
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(text=text))
    run = tmp_path / "run"
    models = [f"corpus.perplexity.model={ngram}", f"corpus.classifier.model={classifier}"]
    rules = ["corpus.rules.other.quality=null", "corpus.rules.other.repetition=null", "corpus.near_duplicates=null"]
    settings = [part for value in (*models, *rules) for part in ("--set", value)]
    assert call("run", recipe, "--run", run, "--until", "corpus", "--workers", 1, *settings)[0] == 0
    rows = pq.read_table(run / "artifacts" / "corpus" / "documents").to_pylist()
    good, bad = ([row for row in rows if row["domain"] == domain] for domain in ("good", "bad"))
    assert min(row["quality_score"] for row in good) > max(row["quality_score"] for row in bad)
    assert max(row["perplexity"] for row in good) < min(row["perplexity"] for row in bad)


def test_weights_from_proxy_runs(call, tmp_path):
    shares = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.6, 0.8]
    ratios = [f"r{i},{share},{1 - share:.1f}" for i, share in enumerate(shares)]
    losses = [f"r{i},{2 + (share - 0.6) ** 2}" for i, share in enumerate(shares)]
    (tmp_path / "ratios.csv").write_text("\n".join(["run,books,web", *ratios]))
    (tmp_path / "metrics.csv").write_text("\n".join(["run,loss", *losses]))
    out = tmp_path / "weights.json"
    found = call(
        "data", "mix", "--ratios", tmp_path / "ratios.csv", "--metrics", tmp_path / "metrics.csv", "--out", out
    )
    assert found[0] == 0
    assert sum(json.loads(out.read_text())["weights"].values()) == pytest.approx(1)
    (tmp_path / "metrics.csv").write_text("run,loss\nr0,2.0\n")
    code, _, err = call(
        "data", "mix", "--ratios", tmp_path / "ratios.csv", "--metrics", tmp_path / "metrics.csv", "--out", out
    )
    assert code == 1
    assert "too few" in err
