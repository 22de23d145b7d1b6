"""The planner of the page over HTTP: the same figures as the command line, and each error beside its input."""

import json
import shlex
import threading

import pytest
import typer
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from gristmill.cli import app as command_line
from gristmill.cli.plan import plan_app
from gristmill.page import planner
from gristmill.page.app import make_app
from gristmill.page.planner_fields import fields
from gristmill.page.planner_form import Answer, Question
from gristmill.page.planner_questions import QUESTIONS
from gristmill.plan.quantity import Quantity


@pytest.fixture(scope="module")
def asked():
    with TestClient(make_app(None), base_url="http://127.0.0.1") as client:
        yield client


def quantities(answer: dict) -> dict[str, float]:
    sections = [section for section in answer["sections"] if section["kind"] == "quantities"]
    return {item["id"]: item["value"] for section in sections for item in section["items"]}


@pytest.mark.parametrize(
    ("question", "inputs"),
    [
        ("model", {}),
        ("model", {"model": "deepseek-v3", "seq_len": "32,768", "dtype": "fp8"}),
        ("model", {"model": "llama-3-8b", "set": "num_kv_heads=4 max_seq_len=16384"}),
        ("memory", {"model": "gristmill-135m", "micro_batch_size": "32", "accumulate": "yes", "seq_len": "2048"}),
        ("memory", {"lora_rank": "16", "base": "nf4", "targets": "q,v", "device": "rtx-4090"}),
        ("memory", {"device": "", "tensor": "4", "pipeline": "2", "micro_batches": "8", "sequence_parallel": "no"}),
        ("memory", {"method": "dpo", "offload": "disk", "disk_bandwidth": "3e9", "processes": "8"}),
        ("roofline", {"device": "h200", "batch": "64", "dtype": "int4", "kv": "fp8", "seq_len": "8192"}),
        ("serve", {"weights": "int4", "concurrency": "48", "tensor": "2", "ttft": "0.3", "cached_prompt_share": "0.4"}),
        ("fleet", {"rate": "20", "requests": "60", "autoscale": "8", "prefix_tokens": "64", "tpot": ""}),
        ("train", {"processes": "8", "tokens": "160e9", "batch_tokens": "4194304", "parallel": "zero3", "mfu": "0.45"}),
        ("train", {"model": "llama-3-70b", "processes": "64", "tensor": "8", "pipeline": "4", "usd_per_hour": "2,3"}),
        ("layout", {"model": "mixtral-8x7b", "devices": "16", "seq_len": "4096", "precision": "fp8"}),
        ("gpus", {"device": "h100-sxm l4", "price": "l4=0.5,0.9", "weights": "bf16,int4", "tpot": "0.06"}),
        ("cost", {"requests_per_day": "1e6", "slice": "chat:60%:cache=-30% bulk:40%:batch=-50%", "tensor": "2"}),
    ],
)
def test_the_page_and_the_command_that_it_names_say_the_same(asked, question, inputs):
    answer = asked.get(f"/api/plan/{question}", params=inputs)
    assert answer.status_code == 200, answer.text
    command = shlex.split(answer.json()["command"])
    assert command[:3] == ["gristmill", "plan", question]
    printed = CliRunner().invoke(command_line, [*command[1:], "--json"], catch_exceptions=False)
    expected = {row["id"]: row["value"] for row in json.loads(printed.stdout)["quantities"]}
    assert quantities(answer.json()) == pytest.approx(expected, rel=1e-12)


# What only a terminal has: how answers are printed, files that are read, second names, and what other questions ask.
NOT_IN_FORMS = {
    "--json", "--plots", "--markdown", "--trace", "--table", "--law", "--slices", "--compile",
    "--data", "--zero", "--inference", "--sequences", "--kv",
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_form_has_the_inputs_of_its_command(question):
    command = typer.main.get_command(plan_app).commands[question]
    options = [set(option.opts) for option in command.params if option.param_type_name == "option"]
    form = {f"--{field.name.replace('_', '-')}" for field in QUESTIONS[question].all_fields if field.option != ""}
    assert form <= set().union(*options)
    assert [names for names in options if not names & (form | NOT_IN_FORMS)] == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_has_a_form_and_an_answer_from_its_defaults(asked, question):
    form = next(form for form in asked.get("/api/plan").json()["questions"] if form["name"] == question)
    assert form["fields"]
    assert all(field["label"] and field["help"] for field in form["fields"])
    given = {field["name"]: field["default"] for field in form["fields"]}
    few = {"requests": "40"} if question == "fleet" else {}
    answer = asked.get(f"/api/plan/{question}", params=given | few)
    assert answer.status_code == 200, answer.text
    assert answer.json()["sections"] == asked.get(f"/api/plan/{question}", params=few).json()["sections"]
    for section in answer.json()["sections"]:
        for item in section["items"] if section["kind"] == "quantities" else ():
            assert item["shown"]
            assert item["formula"]
            assert item["label"] in ("computed", "measured", "cited")
        for plot in section["plots"] if section["kind"] == "plots" else ():
            assert all(len(curve["x"]) == len(curve["y"]) > 0 for curve in plot["curves"])


@pytest.mark.parametrize(
    ("question", "inputs", "field", "words"),
    [
        ("model", {"model": "lama-3-8b"}, "model", "did you mean 'llama-3-8b'"),
        ("model", {"model": ""}, "model", "is empty"),
        ("model", {"model": "run"}, "model", "no model shape is called"),
        ("model", {"model": "/etc/passwd"}, "model", "no model shape is called"),
        ("model", {"seq_len": "0"}, "seq_len", "at least 1, not 0"),
        ("model", {"seq_len": "-4096"}, "seq_len", "at least 1"),
        ("model", {"seq_len": "4k"}, "seq_len", "must be a number"),
        ("model", {"seq_len": "1.5"}, "seq_len", "whole number"),
        ("model", {"seq_len": "1e400"}, "seq_len", "finite"),
        ("model", {"dtype": "bf17"}, "dtype", "did you mean 'bf16'"),
        ("model", {"sequence": "1"}, "", "no input 'sequence'"),
        ("model", {"set": "num_kv_head=4"}, "set", "did you mean 'num_kv_heads'"),
        ("model", {"set": "num_kv_heads=5"}, "set", "num_kv_heads"),
        ("memory", {"seq_len": "9000"}, "seq_len", "more than the model's max_seq_len"),
        ("memory", {"weights": "bf16", "precision": "fp32"}, "weights", "cannot be multiplied"),
        ("memory", {"accumulate": "maybe"}, "accumulate", "yes or no"),
        ("memory", {"tensor": "3"}, "tensor", "does not divide 32 attention heads"),
        ("memory", {"lora_rank": "16", "targets": "r"}, "targets", "'r'"),
        ("roofline", {"batch": "0"}, "batch", "at least 1"),
        ("roofline", {"device": "h20"}, "device", "did you mean h200"),
        ("serve", {"acceptance": "1.5"}, "acceptance", "at most 1"),
        ("serve", {"tensor": "3"}, "tensor", "does not divide 32 attention heads"),
        ("serve", {"model": "llama-3-70b"}, "", "do not hold 141.1 GB"),
        ("serve", {"expert": "2"}, "expert", "needs a model with experts"),
        ("fleet", {"ttft": "", "tpot": ""}, "ttft", "or a number of replicas is needed"),
        ("fleet", {"percentile": "101"}, "percentile", "at most 100"),
        ("layout", {"devices": "12", "tensor": "8"}, "tensor", "does not divide 12 devices"),
        ("layout", {"zero": "4"}, "zero", "at most 3"),
        ("gpus", {"device": "h100-sxm l40"}, "device", "did you mean l40s"),
        ("gpus", {"price": "h100-sxm"}, "price", "expected ID=LOW,HIGH"),
        ("gpus", {"weights": "bf17"}, "weights", "use one of fp32, bf16"),
        ("cost", {"slice": "chat:60%"}, "slice", "1"),
        ("cost", {"usd_per_hour": "0"}, "usd_per_hour", "expected USD an hour"),
        ("cost", {"requests_per_day": "0"}, "requests_per_day", "above 0"),
        ("train", {"mfu": "1.2"}, "mfu", "at most 1"),
        ("train", {"mfu": "nan"}, "mfu", "finite"),
        ("train", {"tokens": "0"}, "tokens", "above 0"),
        ("train", {"batch_tokens": "7"}, "batch_tokens", "raise batch_tokens"),
        ("train", {"accelerator": "h100-sxn"}, "accelerator", "did you mean h100-sxm"),
    ],
)
def test_what_cannot_be_is_said_of_its_input(asked, question, inputs, field, words):
    answer = asked.get(f"/api/plan/{question}", params=inputs)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field
    assert words in answer.json()["message"]


def test_the_guides_rows_are_those_of_its_command_by_verdict(asked):
    answer = asked.get("/api/plan/guide", params={"only": "wrong", "id": "C* E*"}).json()
    printed = CliRunner().invoke(command_line, [*shlex.split(answer["command"])[1:], "--json"], catch_exceptions=False)
    rows = answer["sections"][0]["rows"]
    assert [row[0] for row in rows] == [row["id"] for row in json.loads(printed.stdout)]
    assert ["C2a", "160 MB = 152.6 MiB", "1.342 GB = 1.25 GiB", "wrong"] in [[row[0], *row[2:5]] for row in rows]
    assert asked.get("/api/plan/guide", params={"id": "Z9"}).json()["field"] == "id"


def test_a_question_that_there_is_not_is_404(asked):
    assert asked.get("/api/plan/weather").status_code == 404


def test_a_run_brings_its_own_model(finished_run):
    with TestClient(make_app(finished_run), base_url="http://127.0.0.1") as client:
        forms = client.get("/api/plan").json()
        assert forms["run"] == "quickstart"
        assert forms["questions"][0]["fields"][0]["default"] == "run"
        answer = client.get("/api/plan/model").json()
        assert quantities(answer)["kv_cache.reduction_factor"] == 2  # 4 heads, 2 of keys
        assert answer["command"] == f"gristmill plan model {finished_run}"
        chosen = client.get("/api/plan/model", params={"model": "llama-3-8b"}).json()
        assert quantities(chosen)["parameters.total"] == 8_030_261_248
        for question in QUESTIONS:  # whatever its size, no form begins with what its model cannot do
            few = {"requests": "40"} if question == "fleet" else {}
            answer = client.get(f"/api/plan/{question}", params=few)
            assert answer.status_code == 200, (question, answer.text)


def test_a_plot_has_the_figure_that_was_asked_for(asked):
    answer = asked.get("/api/plan/model", params={"seq_len": "3000"}).json()
    plots = next(section["plots"] for section in answer["sections"] if section["kind"] == "plots")
    cache = plots[0]["curves"]
    at = dict(zip(cache[0]["x"], cache[0]["y"], strict=True))
    assert at[3000] == quantities(answer)["kv_cache.sequence"]
    assert (cache[-1]["kind"], cache[-1]["x"], cache[-1]["y"]) == ("points", [3000], [at[3000]])


def test_a_simulation_is_given_up_after_a_while_and_is_asked_one_at_a_time(asked, monkeypatch):
    let_go = threading.Event()

    def answer(inputs):
        assert let_go.wait(30)
        return Answer((Quantity("fleet.replicas", inputs["processes"], "x", "as asked"),))

    slow = Question("slow", "Slow", "A simulation.", fields("processes"), answer, slow=True)
    monkeypatch.setitem(QUESTIONS, "slow", slow)
    monkeypatch.setattr(planner, "TIME_LIMIT_SECONDS", 0.01)
    given_up = asked.get("/api/plan/slow").json()
    assert given_up["field"] == ""
    assert "has taken 0.01 s" in given_up["message"]
    assert "another simulation" in asked.get("/api/plan/slow").json()["message"]
    let_go.set()
    assert planner._simulating.acquire(timeout=30)  # the thread has come to its end
    planner._simulating.release()
    monkeypatch.setattr(planner, "TIME_LIMIT_SECONDS", 30)
    assert quantities(asked.get("/api/plan/slow", params={"processes": "3"}).json()) == {"fleet.replicas": 3}
