"""`plan fleet`: the fewest replicas that keep an objective, and what is refused before anything is simulated."""

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from gristmill.capacity.answer import Fleet, plan_fleet
from gristmill.capacity.fleet import Autoscaling
from gristmill.capacity.report import Objective
from gristmill.capacity.traffic import Arrival, Lengths, Traffic, drawn
from gristmill.cli import app
from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.device import device
from gristmill.plan.layouts import Layout

MODEL, DEVICE = preset("llama-3-8b"), device("h100-sxm")
ASKED = Fleet(objective=Objective(1.0, 0.04))


def arrivals(rate=80.0, requests=300):
    return drawn(Traffic(rate, requests, Lengths(400, 1.0, 3000), Lengths(120, 1.0, 900)))


def value(answer, id):
    return next(quantity.value for quantity in answer.quantities if quantity.id == id)


def test_one_fewer_would_miss_the_objective():
    traffic = arrivals(rate=400.0, requests=600)
    answer = plan_fleet(MODEL, DEVICE, traffic, ASKED)
    count = int(value(answer, "fleet.replicas"))
    assert count > 1
    assert value(answer, "ttft.p99") <= 1.0
    assert value(answer, "tpot.p99") <= 0.04
    fewer = plan_fleet(MODEL, DEVICE, traffic, replace(ASKED, replicas=count - 1))
    assert value(fewer, "ttft.p99") > 1.0 or value(fewer, "tpot.p99") > 0.04
    assert value(answer, "fleet.kept") >= 0.97


def test_more_traffic_or_a_tighter_objective_never_takes_fewer():
    counts = [
        value(plan_fleet(MODEL, DEVICE, arrivals(rate), Fleet(objective=Objective(ttft, 0.05))), "fleet.replicas")
        for rate, ttft in ((50.0, 2.0), (200.0, 2.0), (200.0, 0.3))
    ]
    assert counts == sorted(counts)


def test_autoscaling_is_run_beside_the_fixed_fleet():
    scaling = Autoscaling(target=30, least=0, most=8, look_seconds=1, start_seconds=3, cooldown_seconds=5)
    quiet = [*arrivals(requests=100), Arrival(600.0, 100, 10)]
    answer = plan_fleet(MODEL, DEVICE, quiet, replace(ASKED, replicas=2, autoscaling=scaling))
    assert value(answer, "autoscaled.saving") > 0.8
    assert [plot.id for plot in answer.plots] == ["ttft", "replicas"]
    assert answer.scaled is not None
    assert value(answer, "autoscaled.ttft_p99") > 3
    assert "saves" in answer.sentences[1]


def test_what_prices_say(monkeypatch):
    priced = replace(DEVICE, usd_per_hour=(2.0, 4.0), price_date="2026-11")
    answer = plan_fleet(MODEL, priced, arrivals(), replace(ASKED, replicas=3))
    assert value(answer, "cost.hour_low") == pytest.approx(6.0)
    assert value(answer, "cost.hour_high") == pytest.approx(12.0)
    written = value(answer, "fleet.tokens_per_s")
    assert value(answer, "cost.written_mtoken_low") == pytest.approx(6.0 / 3600 / written * 1e6, rel=0.02)
    assert not any(quantity.id.startswith("cost") for quantity in plan_fleet(
        MODEL, replace(DEVICE, usd_per_hour=None), arrivals(), replace(ASKED, replicas=3)
    ).quantities)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"objective": Objective(1e-4)}, "even on idle replicas 99 % of the requests take up to"),
        ({"objective": Objective(0.0)}, "ttft must be a number of seconds above 0"),
        ({"objective": Objective(1.0, math.nan)}, "tpot"),
        ({"percent": 0.0}, "percentile"),
        ({"replicas": 0}, "replicas must be from 1"),
        ({"weights": "int3"}, "weights 'int3'"),
        ({"layout": Layout(tensor=3)}, "tensor parallelism 3 does not divide 32"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens [(]8[)] must be at least"),
        ({"max_model_len": 20_000}, "longer than the 8192"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(GristmillError, match=says):
        plan_fleet(MODEL, DEVICE, arrivals(requests=20), replace(ASKED, **change))


def test_a_model_that_leaves_no_cache_says_what_would_help():
    with pytest.raises(GristmillError, match=r"hold 0 tokens of cache .* [(]--tensor[)]"):
        plan_fleet(
            preset("llama-3-8b"), device("l4"), [Arrival(0, 8000, 100)], Fleet(replicas=1, weights="fp32", kv="fp32")
        )


def test_the_command(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_seconds,prompt_tokens,output_tokens\n" + "".join(f"{i / 9},200,20\n" for i in range(50)))
    command = ["plan", "fleet", "gristmill-135m", "--trace", str(trace), "--ttft", "0.5", "--device", "l4"]
    shown = CliRunner().invoke(app, [*command, "--plots"])
    assert shown.exit_code == 0, shown.output
    assert "1 replica" in shown.output
    assert "Time to the first token" in shown.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json", "--autoscale", "4", "--start", "1"]).output)
    ids = [quantity["id"] for quantity in found["quantities"]]
    assert {"fleet.replicas", "ttft.p99", "tpot.p50", "autoscaled.saving"} <= set(ids)
    assert found["settings"]["requests"] == 50
    assert [plot["id"] for plot in found["plots"]] == ["ttft", "replicas"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give an objective"),
        (["--ttft", "0.5", "--rate", "0"], "rate must be"),
        (["--ttft", "0.5", "--device", "h100"], "did you mean h100-"),
        (["--ttft", "0.5", "--trace", "nowhere.csv"], "nowhere.csv: No such file"),
        (["--ttft", "0.5", "--router", "best"], "router 'best' is not known"),
        (["--ttft", "0.5", "--autoscale", "0"], "target must be"),
    ],
)
def test_the_command_refuses(options, says):
    result = CliRunner().invoke(app, ["plan", "fleet", "gristmill-135m", "--requests", "5", *options])
    assert result.exit_code != 0
    assert says in str(result.exception)
