"""`bench train`: the real loop and the peers see the same work; refusals; the command."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from gristmill.bench import train as bench
from gristmill.bench.train import D12, QUICKSTART, SHAPES, bench_train, table
from gristmill.bench.train_peers import PEERS, train_peer
from gristmill.cli import app
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

TINY = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=24,
    max_seq_len=16, tie_embeddings=True,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", (lambda: TINY, 4, 16))


def test_the_quickstarts_shape_is_the_recipes():
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "quickstart.yaml").read_text())
    base = recipe["base"]
    expected = ModelConfig(vocab_size=recipe["tokenizer"]["vocab_size"], **base["model"])
    assert expected == QUICKSTART
    assert SHAPES["quickstart"][1:] == (base["training"]["batch_size"], base["sequence_length"])


def test_d12_has_the_parameters_of_the_published_measurement():
    assert round(D12.num_parameters / 1e6) == 110
    assert {name: round(make().num_parameters / 1e6) for name, (make, _, _) in SHAPES.items()} == {
        "135m": 135,
        "d12": 110,
        "1.2b": 1236,
        "quickstart": 1,
    }


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_learns_from_the_same_weights_as_we_do(peer, tiny):
    pytest.importorskip(peer)
    report = bench_train("tiny", [peer], precision="fp32", steps=15, device="cpu")
    ours, theirs = report["rows"]
    assert (ours["name"], theirs["name"]) == ("gristmill", peer)
    assert ours["last_loss"] < ours["first_loss"]
    assert theirs["last_loss"] < theirs["first_loss"]
    if peer == "transformers":  # it has our weights: the same loss, and the same fifteen steps of AdamW with clipping
        assert theirs["first_loss"] == pytest.approx(ours["first_loss"], abs=1e-5)
        assert theirs["last_loss"] == pytest.approx(ours["last_loss"], abs=1e-4)


def test_rounds_are_taken_by_turns_and_the_best_counts(tiny):
    said = []
    report = bench_train("tiny", [], precision="fp32", steps=10, rounds=2, device="cpu", say=said.append)
    (row,) = report["rows"]
    assert row["tokens_per_second"] == max(row["rounds"])
    assert len(row["rounds"]) == 2
    measured = [f"gristmill: {rate:,} tokens/s" for rate in row["rounds"]]
    assert [line.partition(";")[0] for line in said] == [
        "gristmill, round 1 of 2", measured[0], "gristmill, round 2 of 2", measured[1],
    ]  # fmt: skip
    assert row["mfu"] is row["memory_bytes"] is None  # a CPU
    assert "gristmill" in table(report)


def test_a_rate_is_the_median_stretch_without_the_first(monkeypatch, tiny):
    setting = bench.settle("tiny", None, None, "fp32", "auto", 10, "cpu", "auto")
    rows = {}
    bench._add(rows, ("gristmill", [4.0, 3.0], [99.0, 2.0, 1.0, 4.0], None), setting)
    assert rows["gristmill"].rounds == [round(4 * 16 * bench.EVERY / 2.0)]


def test_a_peers_stretches_begin_after_the_first_step():
    pytest.importorskip("transformers")
    ids = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    losses, seconds = train_peer(
        "transformers", Decoder(TINY).init_weights(0), ids[:, :-1], ids[:, 1:], 15, 5, "fp32", torch.float32,
        torch.device("cpu"),
    )  # fmt: skip
    assert (len(losses), len(seconds)) == (4, 3)  # steps 1, 5, 10, 15
    assert all(value > 0 for value in seconds)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": "smolm2-135m"}, "did you mean 'smollm2-135m'"),
        ({"peers": ["nanogpt"]}, "the peers are transformers, litgpt"),
        ({"steps": 9}, "at least 10"),
        ({"precision": "int3"}, "int3"),
        ({"precision": "fp16", "weights": "bf16"}, "weights: bf16 cannot be multiplied in fp16"),
        ({"precision": "fp32", "compile": "all"}, "'blocks' or 'model'"),
    ],
)
def test_what_is_not_there_is_refused(options, says, tiny):
    with pytest.raises(GristmillError, match=says):
        bench_train(**{"shape": "tiny", "peers": [], "device": "cpu"} | options)


def test_the_command_writes_what_it_prints(tiny, tmp_path):
    out = tmp_path / "report.json"
    command = ["bench", "train", "--shape", "tiny", "--steps", "10", "--device", "cpu", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert json.loads(result.stdout) == report
    assert report["weights"] == "fp32"
    assert report["rows"][0]["name"] == "gristmill"


def test_a_shape_that_is_not_known_is_told_all_that_are() -> None:
    with pytest.raises(GristmillError, match=r"known are 135m, d12, 1\.2b, quickstart, gristmill-5m"):
        bench_train("tiny", [])
    with pytest.raises(GristmillError, match=r"did you mean 'quickstart'\?"):
        bench_train("quikstart", [])
