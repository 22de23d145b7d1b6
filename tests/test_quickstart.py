"""What the README promises of `make run`, on the real recipe: minutes long, so only `make test-slow` runs it. Training
is shortened: a processor without bfloat16 takes over ten minutes for all of it."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gristmill.artifact import verify
from gristmill.pipeline import run, status

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
SMALL = (
    "base.training.steps=60",
    "base.training.checkpoint_every=20",
    "base.validate_every=60",
    "sft.tasks=4000",
    "sft.training.steps=120",
    "dpo.prompts=400",
    "dpo.training.batch_size=2",
    "dpo.training.steps=4",
    "evaluation.tasks=40",
)

SHORTER = ("--set", "base.training.steps=450", "--set", "sft.training.steps=320", "--set", "dpo.training.steps=30")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def gristmill(*arguments, **options):
    """Run the command line as a user does: in a process of its own, with torch's own number of threads."""
    return subprocess.run([sys.executable, "-m", "gristmill", *map(str, arguments)], text=True, **options)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart") / "run"
    gristmill("run", RECIPE, "--run", directory, *SHORTER, check=True)
    return directory


def test_every_artifact_is_whole_and_a_second_run_finds_all_fresh(quickstart):
    for stage in status(quickstart)["stages"]:
        assert stage["state"] == "fresh"
        verify(quickstart / "artifacts" / stage["name"])
    again = gristmill("run", RECIPE, "--run", quickstart, *SHORTER, check=True, capture_output=True)
    assert again.stderr.count("fresh") == 10
    assert "gristmill chat" in again.stdout


def test_the_base_model_beats_gzip_on_held_out_text(quickstart):
    report = json.loads((quickstart / "artifacts" / "evaluation" / "report.json").read_text())
    for measured in (report["bits_per_byte"]["all"], *report["bits_per_byte"]["domains"].values()):
        assert measured["models"]["base"]["value"] < measured["gzip"], report["bits_per_byte"]


def test_sft_answers_held_out_tasks_that_base_does_not(quickstart):
    report = json.loads((quickstart / "artifacts" / "evaluation" / "report.json").read_text())
    assert report["tasks"]["tasks"] >= 500
    assert report["tasks"]["differences"]["sft - base"]["low"] > 0


@pytest.mark.parametrize("stage", ["base", "sft", "dpo"])
def test_transformers_loads_the_models_with_equal_logits(quickstart, stage):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import gristmill as package

    directory = quickstart / "artifacts" / stage
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = package.load_model(directory)
    ids = AutoTokenizer.from_pretrained(directory)("In the beginning God created", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= 1e-4


def test_the_openai_client_streams_a_chat(quickstart):
    from openai import OpenAI

    server = subprocess.Popen(
        [sys.executable, "-m", "gristmill", "serve", str(quickstart), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(120, server.kill)
    timer.start()
    try:
        lines = iter(server.stdout.readline, "")
        url = next(word for line in lines for word in line.split() if word.startswith("http://127.0.0.1"))
        client = OpenAI(base_url=url.rstrip("/.").removesuffix("/v1") + "/v1", api_key="none")
        model = client.models.list().data[0].id
        question = [{"role": "user", "content": "Swap these two words: river stone"}]
        pieces = client.chat.completions.create(
            model=model, messages=question, stream=True, temperature=0, max_tokens=12
        )
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        whole = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=12)
        assert streamed == whole.choices[0].message.content
        assert streamed.strip()
    finally:
        timer.cancel()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small") / "undisturbed"
    arguments = [item for override in SMALL for item in ("--set", override)]
    gristmill("run", RECIPE, "--run", directory, *arguments, check=True)
    return {stage["name"]: stage["hash"] for stage in status(directory)["stages"]}


def test_killed_in_dedup_in_pretraining_and_in_quantization_the_hashes_are_the_same(undisturbed, tmp_path):
    """Three kills in one run: at the first progress of `corpus`, after step 35 of `base`, at the start of `int8`."""
    program = f"""
import os, signal, sys
from gristmill.pipeline import run
def kill(event):
    here = (event["stage"], event["type"]) == (sys.argv[1], sys.argv[2])
    if here and event.get("step", 99) >= 35:
        os.kill(os.getpid(), signal.SIGKILL)
run({str(RECIPE)!r}, {str(tmp_path / "run")!r}, overrides={SMALL!r}, on_event=kill)
"""
    for stage, event in (("corpus", "progress"), ("base", "metric"), ("int8", "progress")):
        killed = subprocess.run([sys.executable, "-c", program, stage, event])
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "run" / "artifacts" / stage).exists()
    arguments = [item for override in SMALL for item in ("--set", override)]
    gristmill("run", RECIPE, "--run", tmp_path / "run", *arguments, check=True)
    assert {stage["name"]: stage["hash"] for stage in status(tmp_path / "run")["stages"]} == undisturbed


def test_a_run_in_this_process_finds_the_other_ones_work_fresh(quickstart):
    events = []
    run(quickstart, on_event=events.append)
    assert {event["type"] for event in events} == {"run_started", "stage_skipped", "run_finished"}
