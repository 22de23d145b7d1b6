"""`gristmill plan train` and `gristmill plan layout`: what they print, take from files, and refuse."""

import json
from pathlib import Path

import pytest

import command_line
from gristmill.model.presets import preset
from gristmill.plan.parameters import total_params
from gristmill.plan.scaling import Law


def call(monkeypatch, capsys, *arguments):
    return command_line.call(monkeypatch, capsys, "plan", *arguments)


@pytest.fixture
def planned(monkeypatch, capsys):
    """What a command prints with --json, and its figures by id."""

    def found(*arguments):
        code, out, err = call(monkeypatch, capsys, *arguments, "--json")
        assert code == 0, err
        printed = json.loads(out)
        return printed, {row["id"]: row for row in printed["quantities"]}

    return found


LAYOUT = ["--processes", 64, "--tensor", 8, "--pipeline", 4, "--parallel", "zero1", "--tokens", 1.4e12]


def test_a_run_in_a_layout(planned):
    printed, rows = planned("train", "llama-3-70b", *LAYOUT, "--interleaved", 2, "--batch-tokens", 2**21)
    value = {name: row["value"] for name, row in rows.items()}
    assert rows["time.device_share"]["label"] == "measured"
    assert value["time.device_share"] == 0.548
    parts = ("time.step_compute", "time.step_bubble", "time.step_exposed")
    assert value["time.step"] == pytest.approx(sum(value[part] for part in parts))
    assert value["time.tokens_per_second"] == pytest.approx(2**21 / value["time.step"])
    assert value["time.total"] == pytest.approx(1.4e12 / value["time.tokens_per_second"])
    m = 2**21 // 8192 // 2
    assert value["pipeline.bubble"] == pytest.approx(3 / (m + 3))
    assert value["pipeline.bubble_interleaved"] == pytest.approx(3 / (2 * m + 3))
    assert value["communication.tensor"] == pytest.approx(m * 20 * 4 * 2 * 7 / 8 * 8192 * 8192 * 2)
    assert "inside a node" in rows["communication.tensor"]["formula"]
    assert "between nodes" in rows["communication.data"]["formula"]
    assert value["communication.data_hidden"] < value["communication.data_seconds"]
    assert value["memory.zero1"] < value["memory.ddp"]
    assert "memory.zero3" not in value  # no such thing in a pipeline
    assert printed["settings"]["pipeline"] == 4


def test_llama_3_405b_takes_the_hours_that_its_card_states(planned):
    """30.84M hours of H100 (Llama 3.1's model card), for 15.6T tokens on 16,384 of them, restarts among them."""
    _, rows = planned("train", "llama-3.1-405b", "--processes", 16_384, "--tensor", 8, "--pipeline", 16,
                      "--interleaved", 8, "--parallel", "zero1", "--seq-len", 8192, "--batch-tokens", 2**24,
                      "--tokens", 15.6e12)  # fmt: skip
    hours = rows["time.device_hours"]["value"] * (1 + rows["checkpoint.lost_share"]["value"])
    assert hours == pytest.approx(30.84e6, rel=0.15)


def test_mfu_is_of_the_whole_run(planned):
    _, rows = planned("train", "llama-3-70b", *LAYOUT, "--mfu", 0.4)
    assert rows["time.utilization"]["value"] == pytest.approx(0.4)
    assert "time.device_share" not in rows
    assert rows["communication.tensor_seconds"]["value"] > 0


def test_sizes_lifetime_and_a_law_of_ones_own(planned, tmp_path):
    arguments = ["train", "llama-3-8b", "--tokens", 160e9, "--inference-tokens", 2e12]
    _, rows = planned(*arguments)
    best = rows["lifetime.params"]["value"], rows["lifetime.tokens"]["value"]
    assert best[0] < total_params(preset("llama-3-8b"))
    assert rows["lifetime.flops"]["value"] == pytest.approx(best[0] * (6 * best[1] + 2 * 2e12))
    assert rows["lifetime.saved"]["value"] > 0
    assert "6 N D + 2 N" in rows["lifetime.params"]["formula"]
    law = Law(1.0, 200.0, 0.3, 300.0, 0.3)
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"law": {"floor": 1.0, "a": 200.0, "alpha": 0.3, "b": 300.0, "beta": 0.3}}))
    _, rows = planned(*arguments, "--law", path)
    flops = 6 * total_params(preset("llama-3-8b")) * 160e9
    fitted = rows["sizes.fitted_params"]["value"], rows["sizes.fitted_tokens"]["value"]
    assert fitted == pytest.approx(law.optimal(flops))


def test_checkpoints_cost_and_data(planned):
    _, rows = planned("train", "llama-3-8b", "--tokens", 160e9, "--processes", 16, "--usd-per-hour", "2,3.5",
                      "--corpus-tokens", 40e9, "--save-rate", 1e9, "--device-mtbf-hours", 16_000)  # fmt: skip
    value = {name: row["value"] for name, row in rows.items()}
    hours = value["time.device_hours"]
    assert (value["cost.low"], value["cost.high"]) == pytest.approx((2 * hours, 3.5 * hours))
    assert value["energy.devices"] == pytest.approx(700 * hours)
    size = 12 * total_params(preset("llama-3-8b"))
    assert value["checkpoint.size"] == size
    assert value["checkpoint.pause"] == pytest.approx(size / 2e9)  # two nodes
    assert value["checkpoint.mtbf"] == 1000 * 3600
    assert value["checkpoint.interval"] == pytest.approx((2 * size / 2e9 * 3.6e6) ** 0.5)
    assert value["data.epochs"] == 4
    _, beside = planned("train", "llama-3-8b", "--tokens", 160e9, "--processes", 16, "--async-saves")
    assert beside["checkpoint.pause"]["value"] < beside["checkpoint.write"]["value"]
    assert beside["checkpoint.write"]["label"] == "measured"
    assert beside["checkpoint.mtbf"]["label"] == "cited"


def test_layouts_are_ranked_with_reasons(planned, monkeypatch, capsys):
    arguments = ["layout", "llama-3-70b", "--devices", 64, "--seq-len", 4096]
    printed, rows = planned(*arguments)
    steps = [rows[f"layout_{number}.step"]["value"] for number in range(1, len(printed["layouts"]) + 1)]
    assert steps == sorted(steps)
    assert steps[0] == printed["layouts"][0]["step_seconds"]
    assert printed["layouts"][0]["memory_bytes"] < 85.6e9
    assert {"rule", "count", "example"} == set(printed["excluded"][0])
    assert [curve["name"] for curve in printed["plots"][0]["curves"]] == ["compute", "bubble", "exposed traffic"]
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    for said in ("It needs more than a node", "Quickest: ", "It beats ", "Excluded, "):
        assert f"- {said}" in out


def test_a_recipes_batch_is_that_of_its_steps(planned):
    recipe = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    printed, _ = planned("layout", recipe, "--devices", 2)
    assert printed["settings"]["batch_tokens"] == 16 * 128
    assert printed["layouts"][0]["layout"]["data"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "llama-3-8b", "--processes", "6", "--tensor", "4"], "6 processes cannot be cut into replicas of 4"),
        (["train", "llama-3-8b", "--tensor", "3"], "tensor parallelism 3 does not divide 32 attention heads"),
        (["train", "llama-3-8b", "--pipeline", "64", "--processes", "64"], "longer than the model's 32 layers"),
        (["train", "llama-3-8b", "--expert", "2", "--processes", "2"], "needs a model with experts; this one has none"),
        (
            ["train", "llama-3-8b", "--processes", "4", "--batch-tokens", str(6 * 8192)],
            "the batch's 6 sequences cannot be shared equally by 4 data-parallel replicas",
        ),
        (
            ["train", "llama-3-8b", "--processes", "4", "--pipeline", "2", "--parallel", "zero3"],
            "zero3 is not combined with a pipeline",
        ),
        (["train", "llama-3-8b", "--interleaved", "2"], "chunks are interleaved in a pipeline: --pipeline is 1"),
        (
            ["train", "llama-3-8b", "--pipeline", "4", "--processes", "4", "--interleaved", "3"],
            "3 interleaved chunks do not divide a stage's 8 layers",
        ),
        (["train", "llama-3-8b", "--mfu", "nan"], "mfu must be above 0 and at most 1, not nan"),
        (["train", "llama-3-8b", "--tokens", "inf"], "tokens must be at least 1 and finite, not inf"),
        (["train", "llama-3-8b", "--corpus-tokens", "0"], "corpus_tokens must be above 0 and finite, not 0"),
        (["train", "llama-3-8b", "--inference-tokens", "-1"], "inference_tokens must be 0 or more and finite, not -1"),
        (["train", "llama-3-8b", "--usd-per-hour", "a"], "--usd-per-hour takes a price, or two with a comma"),
        (["train", "llama-3-8b", "--usd-per-hour", "3,2"], "the lower price first, not 3, 2"),
        (["train", "llama-3-8b", "--device-mtbf-hours", "-3"], "device_mtbf_hours must be above 0 and finite, not -3"),
        (["train", "llama-3-8b", "--law", "none.json"], "none.json cannot be read"),
        (["train", "llama-3-8b", "--law", __file__], "holds no law"),
        (["layout", "llama-3-8b", "--devices", "0"], "devices must be between 1 and 131,072, not 0"),
        (["layout", "llama-3-8b", "--device", "h10"], "'h10' is not known"),
        (["layout", "llama-3-8b", "--global-batch-tokens", "100000"], "is not a whole number of sequences of 8,192"),
        (["layout", "llama-3-8b", "--tensor", "5"], "tensor parallelism 5 does not divide 32 attention heads"),
        (
            ["layout", "llama-3.1-405b", "--seq-len", "8192"],
            "no layout of 8 x h100-sxm fits: the smallest, TP 8, takes",
        ),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, said):
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "defect" not in err
