"""`gristmill scaling` from text to report: killed and continued, and by two processes."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill import pipeline
from gristmill.artifact import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
RECIPE = """
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
    {hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 8, intermediate_size: 64,
      max_seq_len: 16}
  sequence_length: 16
  training: {steps: 1, batch_size: 8, learning_rate: 0.01, warmup_steps: 10, checkpoint_every: 10, device: cpu,
    precision: fp32, stability: {skip_spikes: false}}
  validation_tokens: 1024
"""
RUNGS = ["h1-r0.5", "h1-r2", "h2-r0.5", "h2-r2", "h4-r0.5", "h4-r2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a tokenizer and tokens of made-up text."""
    home = tmp_path_factory.mktemp("scaling")
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulmnrstkp", k=rng.randint(2, 7))) for _ in range(300)] + ["the", "of", "and"] * 30
    (home / "books").mkdir()
    for number in range(20):
        lines = [" ".join(rng.choices(words, k=12)).capitalize() + f" {rng.randrange(10_000)}." for _ in range(30)]
        (home / "books" / f"{number}.txt").write_text("\n".join(lines))
    (home / "text.yaml").write_text(RECIPE % (home / "books"))
    pipeline.run(home / "text.yaml", home / "run", last="tokens")
    return home / "run"


def command(run: Path, *options: str) -> list[str]:
    sizes = ["--heads", "1,2,4", "--tokens-per-parameter", "0.5,2", "--inference-tokens", "1e6"]
    return ["-m", "gristmill", "scaling", str(run), *sizes, *options]


def start(arguments, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True, **how)


def finish(process):
    said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    return said


def losses(run):
    report = json.loads((run / "scaling" / "report.json").read_text())
    return {one["name"]: one["loss"] for one in report["models"]}


def test_a_killed_ladder_goes_on_to_its_report(run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    models = cut / "scaling" / "models"
    process = start(command(cut))
    while not list(models.glob(".h4-r0.5.partial/_scratch/checkpoints/[!.]*/state.json")):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    done = {name: read_manifest(models / name).started for name in RUNGS if (models / name).exists()}
    assert set(done) == {"h1-r0.5", "h1-r2", "h2-r0.5", "h2-r2"}
    assert not (cut / "scaling" / "report.json").exists()
    out, said = finish(start(command(cut, "--json"), stdout=subprocess.PIPE))
    report = json.loads(out)
    assert {name: read_manifest(models / name).started for name in done} == done, "finished rungs stay as they are"
    assert "resumed after step" in said
    assert report == json.loads((cut / "scaling" / "report.json").read_text())
    assert (cut / "scaling" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(losses(cut)) == RUNGS
    assert "h4-r2 (6 of 6): 31,232 multiplied parameters (31,392 in all)" in said
    out, _ = finish(start(command(cut), stdout=subprocess.PIPE))
    assert "L(N, D) = E + A/N^alpha + B/D^beta" in out
    assert f"written to {cut}/scaling/report.json" in out

    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    finish(start([*torchrun, *command(whole)], stdout=subprocess.PIPE))
    for name in RUNGS:
        assert read_manifest(whole / "scaling" / "models" / name).figures["processes"] == 2
    together, alone = losses(whole), losses(cut)
    assert together == pytest.approx(alone, rel=0.01)
    assert together["h4-r0.5"] == pytest.approx(alone["h4-r0.5"], abs=1e-3)  # before rounding has grown over many steps
