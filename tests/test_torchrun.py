"""The command line under torchrun: one process leads, the others join where a model is trained, all end together."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from pydantic import BaseModel

from gristmill import pipeline
from gristmill.artifact import build, read_manifest
from gristmill.errors import GristmillError
from gristmill.events import StageLog, read_events
from gristmill.train.parallel import team as team_module
from gristmill.train.parallel.launch import Launch
from gristmill.train.parallel.team import Team

pytestmark = pytest.mark.distributed
PROGRAM = Path(__file__).parent / "torchrun_program.py"
RECIPE = """
name: tiny
collected: {local: [{path: nowhere, domain: books}]}
corpus: {}
tokenizer: {vocab_size: 400}
tokens: {}
base:
  model:
    {hidden_size: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8, intermediate_size: 8, max_seq_len: 8}
  sequence_length: 8
  training: {steps: 30, batch_size: 4, learning_rate: 0.01, device: cpu}
"""
SFT = "sft: {tasks: 8, training: {steps: 1, batch_size: 4, learning_rate: 0.1}, replay_sequences: 2}\n"


class Nothing(BaseModel):
    pass


@pytest.fixture
def run(tmp_path):
    """A run directory whose stages before `base` are done."""
    directory = tmp_path / "run"

    def write(config, run):
        (run.out / "file.txt").write_text("x")
        return {}

    directory.mkdir()
    (directory / "recipe.yaml").write_text(RECIPE)
    for name in ("tokenizer", "tokens"):
        target = directory / "artifacts" / name
        target.parent.mkdir(exist_ok=True)
        how = {"inputs": {}, "seed": 1, "fingerprint": "f", "log": StageLog.silent()}
        build(target, kind=name, stage=name, function=write, config=Nothing(), **how)
    return directory


def launch(arguments, count=2):
    """That many processes of a command line, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(started):
    """(exit codes, standard errors) of processes."""
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def start(run, told, count=2, verb="pretrain"):
    return finish(launch([PROGRAM, verb, run, told], count))


def messages(texts):
    return [line for text in texts for line in text.splitlines() if line.startswith("gristmill:")]


def test_torchrun_trains_with_all_processes_and_writes_with_one(run):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*torchrun, PROGRAM, "pretrain", run, "whole"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(run / "artifacts" / "base")
    assert manifest.figures == {"processes": 2, "sum": 3.0, "rank": 0}
    assert list(manifest.files) == ["model.txt"], "what the other process wrote is gone"
    assert (run / "artifacts" / "base" / "model.txt").read_text() == "0 of 2"
    events = list(read_events(run / "events.jsonl"))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["message"] for event in events if event["type"] == "note"] == ["trained by process 0"]
    assert not pipeline.is_running(run)


def test_an_error_in_another_process_ends_all_with_its_own_words(run):
    codes, said = start(run, "other fails")
    assert codes == [1, 1]
    assert messages(said) == ["gristmill: process 1: loader: rows.bin is torn"]
    failed = [event for event in read_events(run / "events.jsonl") if event["type"] == "run_failed"]
    assert [event["error"] for event in failed] == ["process 1: loader: rows.bin is torn"]
    assert not (run / "artifacts" / "base").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("all fail", "the loss is not finite"),
        ("main fails", "cannot write a checkpoint: the disk is full"),
        ("main fails with work under way", "the loss is not finite"),
        ("other has a defect", "process 1: a defect in gristmill: KeyError"),
        ("other dies", "another of the 2 processes ended without a word"),
    ],
)
def test_whatever_goes_wrong_is_said_once(run, told, said):
    codes, texts = start(run, told)
    assert codes[0] == 1
    assert codes[1] == (-9 if told == "other dies" else 1)
    assert len(messages(texts)) == 1, texts
    assert said in messages(texts)[0]
    assert not pipeline.is_running(run), "the lock is free"
    codes, texts = start(run, "whole")
    assert codes == [0, 0], texts
    assert read_manifest(run / "artifacts" / "base").figures["processes"] == 2


@pytest.mark.slow
def test_a_batch_that_the_processes_cannot_share_is_refused_before_any_work(run):
    codes, said = start(run, "whole", count=3)
    assert codes[0] == 1
    (line,) = messages(said)
    assert "base.training.batch_size (4) is not a multiple of the 3 processes" in line
    assert not (run / "events.jsonl").exists()


@pytest.mark.slow
def test_other_verbs_are_the_main_process_s(run):
    codes, said = start(run, "whole", verb="status")
    assert codes == [0, 0]
    assert messages(said) == []


TEXT_RECIPE = """
name: text
collected:
  books: {enabled: false}
  web: {enabled: false}
  docs: {enabled: false}
  code: {enabled: false}
  local: [{path: %s, domain: books}]
corpus: {min_validation_works: 2}
tokenizer: {vocab_size: 400}
tokens: {}
base:
  model:
    {hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 16, intermediate_size: 48,
      max_seq_len: 32}
  sequence_length: 32
  training: {steps: 120, batch_size: 4, learning_rate: 0.005, checkpoint_every: 10, device: cpu, precision: fp32}
  validate_every: 60
  validation_tokens: 512
"""


def losses(run):
    return [entry["loss"] for entry in json.loads((run / "artifacts" / "base" / "training.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero3"])
def test_a_killed_run_goes_on_and_ends_where_one_process_would(kind, tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulmnrstkp", k=rng.randint(2, 7))) for _ in range(300)] + ["the", "of", "and"] * 30
    (tmp_path / "books").mkdir()
    for number in range(20):
        lines = [" ".join(rng.choices(words, k=12)).capitalize() + f" {rng.randrange(10_000)}." for _ in range(30)]
        (tmp_path / "books" / f"{number}.txt").write_text("\n".join(lines))
    recipe, alone, together = tmp_path / "text.yaml", tmp_path / "alone", tmp_path / "together"
    recipe.write_text(TEXT_RECIPE % (tmp_path / "books"))
    pipeline.run(recipe, alone, last="tokens")
    shutil.copytree(alone, together)
    # Alone with as many gradients to add up: then with ddp nothing is left to differ, not even rounding.
    pipeline.run(recipe, alone, first="base", last="base", overrides=["base.training.micro_batch_size=2"])
    command = ["-m", "gristmill", "pretrain", together, "--set", f"base.training.parallel.data={kind}"]
    started = launch(command)
    partial = together / "artifacts" / ".base.partial"
    while not list(partial.glob("_scratch/checkpoints/*/state.json")):
        assert all(process.poll() is None for process in started), finish(started)
    started[1].kill()
    codes, said = finish(started)
    assert codes == [1, -9], said
    assert "another of the 2 processes ended without a word" in messages(said)[0]
    codes, said = finish(launch(command))
    assert codes == [0, 0], said
    notes = [event["message"] for event in read_events(together / "events.jsonl") if event["type"] == "note"]
    assert any("resumed after step" in note for note in notes), notes
    assert losses(together) == (losses(alone) if kind == "ddp" else pytest.approx(losses(alone), abs=1e-3))


def pair(monkeypatch, patience=5.0):
    monkeypatch.setattr(team_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(team_module, "YIELD_SECONDS", patience)
    store = dist.HashStore()
    return [Team(Launch(rank, 2, rank, 2), store) for rank in range(2)]


def test_calls_arrive_in_order_until_the_others_are_let_go(monkeypatch):
    main, other = pair(monkeypatch)
    got = []
    listening = threading.Thread(target=lambda: got.extend(other.calls()))
    listening.start()
    main.call(stage="base")
    main.call(stage="sft", directory="runs/tiny")
    main.dismiss()
    listening.join(timeout=10)
    assert got == [{"stage": "base"}, {"stage": "sft", "directory": "runs/tiny"}]
    main.call(stage="dpo")  # a second run in one program
    main.dismiss()
    assert list(other.calls()) == [{"stage": "dpo"}]


def test_the_main_process_speaks_for_the_others(monkeypatch):
    main, other = pair(monkeypatch)
    said = []
    failing = threading.Thread(target=lambda: other.fail("torn", lambda text: said.append(("other", text))))
    failing.start()
    main.fail("process 1: torn", lambda text: said.append(("main", text)))
    failing.join(timeout=10)
    assert said == [("main", "process 1: torn")]


def test_another_process_speaks_where_the_main_one_does_not(monkeypatch):
    _, other = pair(monkeypatch, patience=0.01)
    said = []
    other.fail("torn", said.append)
    assert said == ["process 1: torn"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("[gloo] Timed out waiting 3600000ms for recv operation to complete", "has not answered for 60 minutes"),
        ("wait timeout after 3600000ms, keys: /default_pg/0//1//cpu//0/1", "has not answered for 60 minutes"),
        ("[gloo] Connection closed by peer [127.0.0.1]:34490", "ended without a word"),
    ],
)
def test_a_process_that_hangs_is_told_from_one_that_ended(monkeypatch, error, said):
    monkeypatch.setattr(team_module, "start_processes", lambda device, store: None)
    main, _ = pair(monkeypatch)
    with pytest.raises(GristmillError, match=f"another of the 2 processes {said}"), main.training("cpu"):
        raise RuntimeError(error)
    with pytest.raises(RuntimeError, match="shapes differ"), main.training("cpu"):
        raise RuntimeError("shapes differ")


def test_what_processes_cannot_share_is_refused_before_any_stage_runs(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pipeline, "dismiss_others", lambda: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + SFT)
    with pytest.raises(GristmillError, match=r"sft\.replay_sequences \(2\) is not a multiple of the 4 processes"):
        pipeline.run(recipe, tmp_path / "run")


def test_stages_that_train_are_marked():
    assert [stage.name for stage in pipeline.STAGES if stage.trains] == ["base", "sft", "dpo"]
