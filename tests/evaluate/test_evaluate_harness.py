"""Benchmarks from files to report: descriptions, items, examples, the command line, the training loop."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill import cli
from gristmill.errors import GristmillError
from gristmill.evaluate.benchmarks.config import LastWord, MultipleChoice, Schema
from gristmill.evaluate.benchmarks.descriptions import find_benchmarks
from gristmill.evaluate.benchmarks.harness import Settings, measure, prepare, report
from gristmill.evaluate.benchmarks.items import read_items
from gristmill.evaluate.benchmarks.known import KNOWN, describe
from gristmill.evaluate.benchmarks.loop import benchmarks_in_loop
from gristmill.evaluate.benchmarks.prompts import examples_of, pairs
from gristmill.evaluate.benchmarks.table import render
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.load import load_model

PARITY = Path(__file__).parents[2] / "benchmarks" / "lm_eval_parity.py"
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [
        {
            "query": f"Question: what does mill {n} grind?",
            "choices": ["corn", "the wheel", "nothing at all"],
            "gold": n % 3,
        }
        for n in range(7)
    ],
    "arc_challenge": [{"query": f"Question: {n}?", "choices": ["again", "büt ünïcode"], "gold": 0} for n in range(5)],
    "winogrande": [
        {"context_options": [f"{n} The miller", f"{n} The wheel"], "continuation": "turned.", "gold": 1}
        for n in range(5)
    ],
    "lambada_openai": [{"context": f"Chapter {n}. The miller ground the", "continuation": "corn"} for n in range(6)],
    "svamp": [{"context": f"{n} and {n}?", "answer": str(2 * n), "chain_of_thought": ""} for n in range(5)],
    "gsm8k_test": [{"question": f"{n}?", "answer": f"So it is.\n#### {n},000"} for n in range(5)],
}


@pytest.fixture(scope="module")
def evals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evals")
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return directory


@pytest.fixture(scope="module")
def model(small_run: dict[str, Path]) -> Any:
    return load_model(small_run["base"]), Tokenizer.load(small_run["base"])


def small_replies(path: Path) -> list[Any]:
    """The benchmarks of a directory with replies that fit into the tiny model's context."""
    found = find_benchmarks([path])
    return [one.model_copy(update={"max_tokens": 12}) if one.kind == "generation" else one for one in found]


def measured(evals: Path, model: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
    chosen = Settings(**settings)
    prepared = [prepare(one, model[1], model[0].config, chosen) for one in small_replies(evals)]
    found = measure(*model, prepared, chosen)
    return found, report(found, chosen)


def test_all_kinds_come_to_one_report(evals: Path, model: Any) -> None:
    found, result = measured(evals, model)
    assert {name: (one["kind"], one["items"]) for name, one in result["benchmarks"].items()} == {
        "arc_challenge": ("multiple_choice", 5), "arc_easy": ("multiple_choice", 7), "gsm8k_test": ("generation", 5),
        "lambada_openai": ("last_word", 6), "svamp": ("generation", 5), "winogrande": ("schema", 5),
    }  # fmt: skip
    assert result["benchmarks"]["arc_easy"]["chance"] == pytest.approx(1 / 3, abs=1e-6)
    for one in result["benchmarks"].values():
        for figure in one["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    arcs = [one.quoted.value for one in found if one.prepared.benchmark.average == "arc"]
    assert result["averages"]["arc"]["value"] == pytest.approx(sum(arcs) / 2, abs=1e-6)
    text = render(result)
    assert text.count("accuracy_bytes*") == 2
    assert "mean of 2" in text
    assert measured(evals, model)[1] == result  # the same to the last digit


def test_a_limit_takes_the_first_items_and_changes_no_example(evals: Path, model: Any) -> None:
    whole, _ = measured(evals, model, num_fewshot=2)
    some, result = measured(evals, model, limit=3, num_fewshot=2)
    for all_items, few in zip(whole, some, strict=True):
        assert few.prepared.groups == all_items.prepared.groups[:3]
        assert few.prepared.prompts == all_items.prepared.prompts[:3]
    assert result["benchmarks"]["arc_easy"]["of"] == 7


def test_examples_are_other_items_and_depend_on_the_seed(evals: Path) -> None:
    (benchmark,) = find_benchmarks([evals / "arc_easy.jsonl.gz"])
    benchmark = benchmark.model_copy(update={"num_fewshot": 3})
    pool = read_items(Path(benchmark.file), benchmark)
    for number, item in enumerate(pool):
        shown = examples_of(benchmark, number, pool, own=True, seed=0)
        assert len(set(shown)) == 3
        assert item not in shown
    seeds = [examples_of(benchmark, 0, pool, own=True, seed=seed) for seed in range(5)]
    assert any(shown != seeds[0] for shown in seeds)
    with pytest.raises(GristmillError, match="num_fewshot \\(7\\) is more than the 6 other items"):
        examples_of(benchmark.model_copy(update={"num_fewshot": 7}), 0, pool, own=True, seed=0)


def test_the_text_of_an_item_with_an_example(evals: Path) -> None:
    (benchmark,) = find_benchmarks([evals / "arc_easy.jsonl.gz"])
    benchmark = benchmark.model_copy(update={"instruction": "Answer these.\n\n"})
    first, second, *_ = read_items(Path(benchmark.file), benchmark)
    asked = pairs(benchmark, first, [second], chat=False)
    assert [pair.continuation for pair in asked] == ["corn", "the wheel", "nothing at all"]
    assert asked[0].context == (
        "Answer these.\n\nQuestion: what does mill 1 grind?\nAnswer: the wheel\n\n"
        "Question: what does mill 0 grind?\nAnswer: "
    )


def test_descriptions_in_yaml(evals: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["arc_easy"]))
    (tmp_path / "tasks.yaml").write_text(
        "benchmarks:\n"
        "  - {kind: multiple_choice, name: mine, file: mine.jsonl, metric: tokens, num_fewshot: 1, average: all}\n"
        f"  - {{kind: schema, name: other, file: {evals / 'winogrande.jsonl.gz'}, fewshot_file: mine.jsonl}}\n"
    )
    mine, other = find_benchmarks([tmp_path / "tasks.yaml"])
    assert isinstance(mine, MultipleChoice)
    assert (mine.metric, mine.num_fewshot, mine.file) == ("tokens", 1, str(tmp_path / "mine.jsonl"))
    assert isinstance(other, Schema)
    assert (other.file, other.fewshot_file) == (str(evals / "winogrande.jsonl.gz"), str(tmp_path / "mine.jsonl"))
    with pytest.raises(GristmillError, match="2 benchmarks are named 'mine'"):
        find_benchmarks([tmp_path / "tasks.yaml", tmp_path / "mine.jsonl"])


@pytest.mark.parametrize("name", KNOWN)
def test_known_files_have_descriptions(name: str) -> None:
    found = describe(Path(f"{name}.jsonl.gz"), {})
    assert (found.name, found.kind) == (name, KNOWN[name]["kind"])


def test_unknown_files_are_known_by_their_fields(tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"context": "a b", "continuation": "c"}\n' * 2)
    (found,) = find_benchmarks([tmp_path])
    assert isinstance(found, LastWord)
    assert found.name == "words"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "holds no items"),
        ("a.jsonl", '{"context": "a", "continuation": "b"}\n', "holds 1 items"),
        ("a.jsonl", '{"prompt": "a"}\n', "its items have the fields prompt"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 0}\n{"query": "", "choices": ["b", "c"], "gold": 2}',
         "line 2: gold must be a whole number from 0 to 1, not 2"),
        ("a.jsonl", '{"query": "a", "choices": ["b"], "gold": 0}\n', "choices must be a list of two"),
        ("a.jsonl", '{"query": " ", "choices": ["b", "c"], "gold": 0}\n', "query must be a text that is not empty"),
        ("a.jsonl", '{"context_options": ["b", 3], "continuation": "x", "gold": 0}', "context_options must be a text"),
        ("a.jsonl.gz", "no gzip", "cannot be read"),
        ("a.txt", "{}", "is no benchmark"),
        ("a.yaml", "benchmarks: []", "benchmarks: Tuple should have at least 1 item"),
        ("a.yaml", "benchmarks: [{kind: schema, name: x, file: y, shots: 3}]", "shots: Extra inputs"),
        ("a.yaml", "benchmarks: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_files_that_are_no_benchmark_are_refused_by_name(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(GristmillError, match=said) as caught:
        for benchmark in find_benchmarks([tmp_path / name]):
            read_items(Path(benchmark.file), benchmark)
    assert str(tmp_path / name) in str(caught.value)


def test_a_limit_of_one_has_no_standard_error(evals: Path, model: Any) -> None:
    with pytest.raises(GristmillError, match="limit is 1"):
        measured(evals, model, limit=1)


def test_a_tokenizer_of_another_model_is_refused(evals: Path, model: Any) -> None:
    smaller = model[0].config.model_copy(update={"vocab_size": 30})
    (benchmark,) = find_benchmarks([evals / "arc_easy.jsonl.gz"])
    with pytest.raises(GristmillError, match=r"arc_easy: its text has the token id .* and the model only 30 ids"):
        prepare(benchmark, model[1], smaller)


def test_an_answer_that_cannot_be_scored_is_told_with_its_benchmark(model: Any, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"context": "a", "continuation": "corn " * 300}) + "\n")
    with open(tmp_path / "long.jsonl", "a") as file:
        file.write(json.dumps({"context": "a", "continuation": "b"}) + "\n")
    (benchmark,) = find_benchmarks([tmp_path / "long.jsonl"])
    with pytest.raises(
        GristmillError, match=r"^long: an answer of .* longer than the 128 that the model reads: ' corn"
    ):
        prepare(benchmark, model[1], model[0].config)


def test_in_the_loop_every_evaluation_sees_the_same_items(evals: Path, model: Any) -> None:
    decoder, tokenizer = model
    names = ("arc_easy", "arc_challenge", "winogrande", "lambada_openai")
    evaluate = benchmarks_in_loop([evals / f"{name}.jsonl.gz" for name in names], 4, tokenizer, decoder.config)
    decoder.train()
    figures = evaluate(decoder, 10)
    assert decoder.training
    kinds = ("benchmark", "benchmark_stderr")
    expected = {f"{kind}/{name}" for name in names for kind in kinds} | {"benchmark_perplexity/lambada_openai"}
    assert set(figures) == expected
    assert evaluate(decoder, 20) == figures
    found, _ = measured(evals, model, limit=4)
    whole = {f"benchmark/{one.prepared.benchmark.name}": one.quoted.value for one in found}
    assert {name: whole[f"benchmark/{name}"] for name in names} == {
        name: figures[f"benchmark/{name}"] for name in names
    }
    assert not any(parameter.grad is not None for parameter in decoder.parameters())


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["gristmill", "evaluate", *map(str, arguments)])
    monkeypatch.setattr(cli, "_show_traceback", [False])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    evals: Path,
    small_run: dict[str, Path],
    tmp_path: Path,
) -> None:
    tasks = ["--tasks", evals / "arc_easy.jsonl.gz", "--tasks", evals / "lambada_openai.jsonl.gz"]
    code, out, _ = call(monkeypatch, capsys, small_run["base"], *tasks, "--limit", 4, "--json", "--out", tmp_path / "o")
    assert code == 0
    result = json.loads(out)
    assert list(result["benchmarks"]) == ["arc_easy", "lambada_openai"]
    assert (result["model"], result["protocol"]["dtype"]) == (str(small_run["base"]), "float32")
    assert json.loads((tmp_path / "o" / "report.json").read_text()) == result
    records = [json.loads(line) for line in (tmp_path / "o" / "arc_easy.jsonl").read_text().splitlines()]
    assert [record["gold"] for record in records] == [0, 1, 2, 0]
    code, out, _ = call(monkeypatch, capsys, small_run["base"], *tasks, "--limit", 4)
    assert (code, "accuracy_bytes*" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL"], "is a model, no recipe and no run: name the benchmarks to measure with --tasks"),
        (["MODEL", "--limit", "4"], "--limit has no effect without --tasks"),
        (["MODEL", "--tasks", "EVALS", "--set", "a=1"], "--set has no effect with --tasks"),
        (["MODEL", "--tasks", "nowhere.jsonl"], "there is no benchmark nowhere.jsonl"),
        (["nowhere", "--tasks", "EVALS"], "nowhere does not exist"),
        (["MODEL", "--tasks", "EVALS", "--fewshot", "9"], "num_fewshot (9) is more than the"),
        (["MODEL", "--tasks", "EVALS", "--out", "/proc/none"], "--out /proc/none cannot be written"),
    ],
)
def test_mistakes_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], evals: Path, small_run: dict[str, Path],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    places = {"MODEL": str(small_run["base"]), "EVALS": str(evals)}
    code, _, err = call(monkeypatch, capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == 1
    assert said in err


@pytest.mark.slow
def test_lm_eval_gives_the_same(evals: Path, small_run: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    spec = importlib.util.spec_from_file_location("lm_eval_parity", PARITY)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for benchmark in small_replies(evals):
        if benchmark.name != "gsm8k_test":
            assert script.compare(small_run["base"], benchmark, 5) == 0, capsys.readouterr().out
