"""`gristmill plan gpus` and `plan cost`: what they take, print and refuse."""

import json
from functools import partial

import pytest

from command_line import call

COST = ("cost", "llama-3-8b", "--requests-per-day", "2e5", "--api-input-usd", "0.2", "--api-output-usd", "0.6",
        "--usd-per-hour", "2,4")  # fmt: skip


@pytest.fixture
def plan(monkeypatch, capsys):
    """(exit code, standard output, standard error) of one call."""
    return partial(call, monkeypatch, capsys, "plan")


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_gpus_as_json(plan):
    code, out, err = plan("gpus", "llama-3-8b", "--price", "h100-sxm=2,4", "--weights", "bf16,fp8", "--json")
    assert code == 0, err
    found = strict(out)
    first = next(choice for choice in found["ranking"] if choice["device"] == "h100-sxm")
    assert found["settings"]["weights"] == ["bf16", "fp8"]
    assert {"device": "a100-80gb-sxm", "weights": "fp8", "kv": "bf16", "reason": "it has no fp8"} in found["left_out"]
    rows = {row["id"]: row["value"] for row in found["quantities"]}
    assert rows[f"h100-sxm:{first['weights']}:bf16.usd_per_mtoken_low"] == first["usd_per_mtoken"][0]
    assert found["plots"][0]["id"] == "gpus.price_of_speed"


def test_gpus_for_people(plan):
    cards = ("--device", "h100-sxm", "--device", "a10g", "--price", "h100-sxm=2.5", "--max-devices", "1")
    code, out, _ = plan("gpus", "llama-3-8b", *cards, "--tpot", "0.01", "--ttft", "inf", "--plots")
    assert code == 0
    assert "1,024 tokens in, 256 out, TPOT 0.01 s" in out
    assert "USD/Mtoken" in out
    assert "Price of speed" in out
    assert "left out\n\n- a10g (bf16/bf16): " in out


def test_gpus_without_targets(plan):
    code, out, _ = plan("gpus", "llama-3-8b", "--ttft", "inf", "--tpot", "inf", "--device", "h100-sxm", "--json")
    assert code == 0
    assert strict(out)["settings"]["ttft_seconds"] is None


def test_cost_as_json_and_for_people(plan):
    slices = ("--slice", "chat:60%:cache=-30%", "--slice", "bulk:40%:batch=-50%")
    code, out, err = plan(*COST, *slices, "--json")
    assert code == 0, err
    found = strict(out)
    rows = {row["id"]: row["value"] for row in found["quantities"]}
    assert rows["own.usd_per_month_low"] == pytest.approx(1460)
    assert rows["savings.left"] == pytest.approx(0.62)
    assert {curve["name"] for curve in found["plots"][0]["curves"]} >= {"API", "break-even", "this traffic"}
    code, out, _ = plan(*COST)
    assert code == 0
    assert "$1,460/month" in out
    assert "Mtoken/day" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpus", "llama-3-8c"), "llama-3-8b"),
        (("gpus", "llama-3-8b", "--device", "h100-sxmm"), "did you mean h100-sxm"),
        (("gpus", "llama-3-8b", "--price", "h100=2,4"), "did you mean h100-"),
        (("gpus", "llama-3-8b", "--price", "2,4"), "expected ID=LOW,HIGH"),
        (("gpus", "llama-3-8b", "--price", "h100-sxm=2,b"), "in numbers"),
        (("gpus", "llama-3-8b", "--price", "h100-sxm=2,3,4"), "expected LOW,HIGH"),
        (("gpus", "llama-3-8b", "--price", "h100-sxm=-2,4"), "LOW,HIGH must be from"),
        (("gpus", "llama-3-8b", "--tpot", "nan"), "--tpot must be above 0"),
        (("gpus", "llama-3-8b", "--weights", ","), "at least one format"),
        (("gpus", "llama-3-8b", "--prompt-tokens", "0"), "--prompt-tokens"),
        ((*COST, "--device", "h101"), "did you mean"),
        ((*COST, "--usd-per-hour", "nan,1"), "--usd-per-hour"),
        ((*COST, "--slice", "chat:50%"), "come to 0.5, not to 1"),
        ((*COST, "--slice", "chat:100%:batch=-150%"), "slice chat"),
        ((*COST, "--tensor", "16"), "more than"),
        ((*COST, "--memory-utilization", "0"), "--memory-utilization"),
    ],
)
def test_what_is_refused_in_one_line(plan, arguments, says):
    code, out, err = plan(*arguments)
    assert code == 1
    assert says in err
    assert "Traceback" not in out + err
