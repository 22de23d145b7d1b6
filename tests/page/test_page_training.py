"""Training, live: the checks against logs made to be well or not, the charts, marks, samples."""

import math
import random

import pytest
from page_run import make_run

from gristmill.events import EventLog
from gristmill.page.files import Run
from gristmill.page.health import checks, spikes, verdict
from gristmill.page.panel_training import MAX_LINES, chart_specs, with_ratios
from gristmill.page.panels import panel
from gristmill.page.snapshot import snapshot


def calm(number: int = 400) -> list[dict]:
    """A run as it should be: every fifth step logged."""
    rng = random.Random(7)
    rows = []
    for step in range(5, 5 * number + 1, 5):
        row = {
            "step": step,
            "loss": 2 + 6 * math.exp(-step / 600) + rng.gauss(0, 0.02),
            "grad_norm": 0.8 + abs(rng.gauss(0, 0.05)),
            "skipped": 0,
            "tokens_per_second": 1000 + rng.gauss(0, 10),
            "stall": 0.001,
        }
        if step % 100 == 0:
            row["validation_bits_per_byte"] = 1 + 2 * math.exp(-step / 600)
        rows.append(row)
    return rows


def states(rows) -> dict[str, str]:
    return {check["label"]: check["state"] for check in checks(rows)}


def words(rows, label) -> str:
    return next(check["words"] for check in checks(rows) if check["label"] == label)


def test_a_calm_run_is_well():
    found = checks(calm())
    assert {check["state"] for check in found} == {"good"}
    assert [check["label"] for check in found] == [
        "Loss", "Validation", "Gradient norm", "Skipped steps", "Speed", "Waiting for data",
    ]  # fmt: skip
    assert verdict(found) == ("good", "Well: nothing stands out.")
    assert spikes(calm()) == set()
    assert words(calm(), "Loss").startswith("falls")


@pytest.mark.parametrize("number", [1, 2, 5, 19])
def test_the_first_steps_are_not_judged_by_their_noise(number):
    rows = calm(number)
    rows[-1]["loss"] += 3
    assert states(rows)["Loss"] == "good"


def test_no_log_no_judgement():
    assert checks([]) == []
    assert checks([{"step": 1}]) == []
    assert verdict([]) == ("good", "Well: nothing stands out.")


def test_a_rising_loss_is_trouble_and_a_level_one_is_not():
    rows = calm()
    for row in rows[-60:]:
        row["loss"] += 1
    assert states(rows)["Loss"] == "bad"
    assert verdict(checks(rows)) == ("bad", "In trouble: loss.")
    assert states([{**row, "loss": 2.0} for row in calm()])["Loss"] == "good"


def test_a_loss_that_is_no_number_is_trouble():
    rows = calm()
    del rows[-1]["loss"]  # JSON has no NaN: the log leaves the value out
    assert words(rows, "Loss") == "was not a number at step 2,000"
    assert states(rows)["Loss"] == "bad"
    rows = calm()
    rows[-1]["loss"] = None  # as training.json has it
    assert states(rows)["Loss"] == "bad"


def test_a_loss_that_was_no_number_once_is_not_held_against_a_run_for_ever():
    rows = calm()
    del rows[10]["loss"]  # the batch was skipped, and the run went on
    assert states(rows)["Loss"] == "good"


def test_validation_above_its_best_is_worth_a_look():
    rows = calm()
    rows[-1]["validation_bits_per_byte"] = 1.2 * min(row.get("validation_bits_per_byte", 9) for row in rows)
    assert states(rows)["Validation"] == "watch"
    assert "at step 1,900" in words(rows, "Validation")
    assert verdict(checks(rows)) == ("watch", "Worth a look: validation.")


def test_skipped_steps_count_and_only_many_lately_are_trouble():
    rows = calm()
    rows[50]["skipped"] = 2
    assert states(rows)["Skipped steps"] == "good"
    assert words(rows, "Skipped steps") == "of 2,000, the last by step 255"
    rows[-3]["skipped"] = 1
    assert states(rows)["Skipped steps"] == "good"  # one of the last 200
    rows[-9]["skipped"] = 2
    assert states(rows)["Skipped steps"] == "watch"
    for row in rows[-20:]:
        row["skipped"] = 1
    assert states(rows)["Skipped steps"] == "bad"


def test_a_steep_gradient_a_slow_run_and_an_idle_loader_are_told():
    rows = calm()
    for row in rows[-40:]:
        row |= {"grad_norm": 20.0, "tokens_per_second": 500.0, "stall": 0.3}
    found = states(rows)
    assert (found["Gradient norm"], found["Speed"], found["Waiting for data"]) == ("watch", "watch", "bad")
    for row in rows:
        row |= {"tokens_per_second": 412_000.0, "mfu": 0.424, "memory_bytes": 31.2e9}
    assert words(rows, "Speed") == "tokens/s, 42.4 % MFU; 31.2 GB"


def test_experts_that_get_nothing_are_worth_a_look():
    rows = [{**row, "expert_load_max_over_mean": 1.4, "collapsed_experts": 0} for row in calm()]
    assert states(rows)["Expert load"] == "good"
    rows[-1]["collapsed_experts"] = 3
    assert states(rows)["Expert load"] == "watch"
    assert words(rows, "Expert load") == "3 hardly used"


def test_spikes_are_found_by_size_and_by_what_the_loop_skipped():
    rows = calm()
    rows[200]["grad_norm"] = 40.0
    rows[201]["grad_norm"] = 30.0  # the first one does not hide it
    rows[380]["loss"] += 2
    rows[300]["skipped"] = 1
    rows[3]["grad_norm"] = 40.0  # too early to know what is usual
    assert spikes(rows) == {rows[i]["step"] for i in (200, 201, 300, 380)}


def test_a_constant_quantity_has_no_spikes():
    assert spikes([{"step": i, "loss": 1.0, "grad_norm": 0.1} for i in range(300)]) == set()


def test_validation_by_domain_is_one_chart_and_updates_are_drawn_as_ratios():
    row = with_ratios({"step": 5, "weight_norm/head": 4.0, "update_norm/head": 0.02, "update_norm/lost": 1.0})
    assert row["update_ratio/head"] == 0.005
    assert "update_ratio/lost" not in row
    keys = {"loss", "skipped", "spike", "memory_bytes", *row} - {"step"}
    keys |= {"validation_bits_per_byte", "validation_bits_per_byte/web", "validation_bits_per_byte/books"}
    specs = {spec["title"]: spec for spec in chart_specs(keys, "nats")}
    assert set(specs) == {"Loss", "Validation", "Weights", "Updates"}
    assert [series["label"] for series in specs["Validation"]["series"]] == ["all", "books", "web"]
    assert [series["key"] for series in specs["Updates"]["series"]] == ["update_ratio/head"]


def test_a_chart_has_no_more_lines_than_colours():
    keys = {"validation_bits_per_byte", *(f"validation_bits_per_byte/domain {i}" for i in range(20))}
    specs = chart_specs(keys, "nats")
    assert [len(spec["series"]) for spec in specs] == [MAX_LINES, MAX_LINES, MAX_LINES, 21 - 3 * MAX_LINES]
    assert [spec["title"] for spec in specs] == ["Validation", "Validation, 2", "Validation, 3", "Validation, 4"]
    assert {series["key"] for spec in specs for series in spec["series"]} == keys
    assert specs[0]["series"][0]["label"] == "all"


def test_benchmarks_are_charts_of_their_own_without_their_errors():
    keys = {"benchmark/arc_easy", "benchmark/words", "benchmark_stderr/words", "benchmark_perplexity/words"}
    specs = {spec["title"]: spec for spec in chart_specs(keys, "nats")}
    assert set(specs) == {"Benchmarks", "Benchmarks' perplexity"}
    assert [series["label"] for series in specs["Benchmarks"]["series"]] == ["arc easy", "words"]
    assert (specs["Benchmarks"]["format"], specs["Benchmarks' perplexity"]["log"]) == ("percent", True)


def test_masked_models_have_a_validation_of_their_own():
    (spec,) = chart_specs({"validation_loss/books", "validation_loss/web"}, "nats")
    assert [series["label"] for series in spec["series"]] == ["books", "web"]
    rows = [{"step": step, "validation_loss": loss} for step, loss in ((1, 5.0), (2, 4.0), (3, 4.5))]
    assert states(rows) == {"Validation": "watch"}
    assert words(rows, "Validation") == "nats; 4.000 at step 2"


def test_large_charts_fill_whole_rows():
    sizes = [spec["size"] for spec in chart_specs({"loss", "grad_norm", "new", "learning_rate"}, "nats")]
    assert sizes == ["wide", "half", "half", "third"]
    assert [spec["size"] for spec in chart_specs({"loss", "grad_norm", "stall"}, "nats")] == ["half", "half", "third"]


def running(tmp_path, rows):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens"), finish=False)
    log = EventLog(directory / "events.jsonl")
    log.emit("stage_started", "base", fingerprint="f", resumed=False)
    for row in rows:
        log.emit("metric", "base", **row)
    return directory, log


def test_a_running_stage_is_judged_and_marked(tmp_path):
    rows = calm(120)
    rows[80]["grad_norm"] = 50.0
    directory, log = running(tmp_path, rows)
    for step in range(100, 600, 100):
        log.emit("sample", "base", prompt="The miller", text=f"text {step}", step=step)
    found = {section["id"]: section for section in panel(Run(directory), "pretraining")["sections"]}
    assert next(iter(found)) == "health-base"  # one look: it stands first
    assert (found["health-base"]["title"], found["health-base"]["state"]) == ("How it goes", "good")
    assert [row["step"] for row in found["curves-base"]["rows"] if row.get("spike")] == [rows[80]["step"]]
    (item,) = found["samples-base"]["items"]
    assert [text["label"] for text in item["texts"]] == ["step 100", "step 400", "step 500"]


def test_the_rail_warns_of_trouble_and_of_nothing_else(tmp_path):
    rows = calm(120)
    directory, log = running(tmp_path, rows)

    def warning():
        return next(b["warning"] for b in snapshot(directory)["blocks"] if b["key"] == "pretraining")

    assert warning() is None
    log.emit("metric", "base", step=605, loss=2.1, grad_norm=40.0, stall=0.05)
    assert warning() is None  # worth a look, which the panel tells
    log.emit("metric", "base", step=610, loss=float("nan"), grad_norm=40.0)
    assert warning() == "In trouble: loss."
    log.emit("stage_failed", "base", error="not finite")
    assert warning() is None  # the error stands there now
