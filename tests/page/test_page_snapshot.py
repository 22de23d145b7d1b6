"""The rail of a run directory: whole, half done, damaged, empty."""

import fcntl
import json
import shutil

import pytest
from page_run import MAKERS, make_run

from gristmill.events import EventLog
from gristmill.page.app import dumps
from gristmill.page.files import Run
from gristmill.page.snapshot import RAIL, STAGES, combined_state, empty_snapshot, snapshot

KEYS = ["data", "processing", "tokenization", "architecture", "pretraining", "alignment", "artifacts", "deployment"]


def states(directory) -> dict[str, str]:
    return {block["key"]: block["state"] for block in snapshot(directory)["blocks"]}


def block(directory, key) -> dict:
    return next(block for block in snapshot(directory)["blocks"] if block["key"] == key)


def test_the_rail_covers_every_stage_of_the_pipeline():
    assert [block.key for block in RAIL] == KEYS
    assert sorted(STAGES) == sorted(MAKERS)


def test_a_finished_run(finished_run):
    found = snapshot(finished_run)
    assert found["run"]["state"] == "finished"
    assert (found["run"]["name"], found["run"]["recipe"], found["run"]["seconds"]) == ("quickstart", "quickstart", 12.5)
    assert set(states(finished_run).values()) == {"done"}
    last = (finished_run / "events.jsonl").read_text().splitlines()[-1]
    assert found["seq"] == json.loads(last)["seq"]
    for entry in found["blocks"]:
        for part in entry["parts"]:
            manifest = json.loads((finished_run / "artifacts" / part["name"] / "manifest.json").read_text())
            assert part["hash"] == manifest["hash"]


def test_headline_figures_come_from_the_manifests(finished_run):
    figures = {figure["label"]: figure["value"] for figure in block(finished_run, "processing")["figures"]}
    assert figures == {"kept": 30, "removed": 10}  # 4 + 3 + 3 by reason
    figures = {figure["label"]: figure["value"] for figure in block(finished_run, "pretraining")["figures"]}
    assert figures == {"bits per byte": 2.01, "tokens seen": 51200, "tokens/s": 8123}
    figures = {figure["label"]: figure["value"] for figure in block(finished_run, "architecture")["figures"]}
    assert figures == {"parameters": 9488, "layers": 2, "wide": 16, "heads": 4}


def test_a_run_in_the_middle_of_training(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens"), finish=False)
    log = EventLog(directory / "events.jsonl")
    log.emit("stage_started", "base", fingerprint="f", resumed=False)
    assert block(directory, "pretraining")["parts"][0]["progress"] is None
    log.emit("progress", "base", done=20, total=80, unit="steps")
    log.emit("metric", "base", step=20, loss=3.5)
    found = block(directory, "pretraining")
    assert found["state"] == "running"
    assert found["parts"][0]["progress"]["fraction"] == 0.25
    assert found["figures"] == [{"label": "loss", "value": 3.5, "unit": "number"}]
    assert states(directory) == {
        **dict.fromkeys(KEYS[:4], "done"),
        "pretraining": "running",
        **dict.fromkeys(KEYS[5:], "waiting"),
    }
    assert snapshot(directory)["run"]["state"] == "running"


def test_time_left_follows_from_the_rate(tmp_path):
    log = [
        {"seq": 1, "time": 0.0, "stage": None, "type": "run_started", "recipe": "r", "stages": []},
        {"seq": 2, "time": 0.0, "stage": "base", "type": "stage_started", "resumed": False},
    ]
    for t in range(11):
        fields = {"time": float(t), "stage": "base", "type": "progress", "done": 4 * t, "total": 100, "unit": "steps"}
        log.append({"seq": 3 + t, **fields})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    progress = block(tmp_path, "pretraining")["parts"][0]["progress"]
    assert progress["rate"] == pytest.approx(4.0)
    assert progress["seconds_left"] == pytest.approx(15.0)


def test_some_of_a_block_is_partial(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer"))
    assert states(directory)["tokenization"] == "partial"


def test_an_artifact_that_was_removed_is_waiting_again(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus"))
    shutil.rmtree(directory / "artifacts" / "corpus")
    assert states(directory)["processing"] == "waiting"
    assert block(directory, "processing")["figures"] == []


def test_artifacts_without_a_log_are_shown(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus"))
    (directory / "events.jsonl").unlink()
    assert snapshot(directory)["run"]["state"] == "finished"
    assert states(directory)["processing"] == "done"


def test_an_artifact_made_again_is_running_though_the_old_one_stands(tmp_path):
    directory = make_run(tmp_path / "run", ("collected",), finish=False)
    EventLog(directory / "events.jsonl").emit("stage_started", "collected", fingerprint="g", resumed=False)
    assert states(directory)["data"] == "running"


def test_skipped_stages_are_fresh(tmp_path):
    directory = make_run(tmp_path / "run", ("collected",))
    log = EventLog(directory / "events.jsonl")
    log.emit("run_started", recipe="quickstart", stages=["collected"])
    log.emit("stage_skipped", "collected", hash="h")
    assert states(directory)["data"] == "fresh"


def test_a_killed_run_is_stopped_and_its_stage_is_not_called_running(tmp_path):
    directory = make_run(tmp_path / "run", ("collected",), finish=False)
    EventLog(directory / "events.jsonl").emit("stage_started", "corpus", fingerprint="f", resumed=False)
    with open(directory / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert (snapshot(directory)["run"]["state"], states(directory)["processing"]) == ("running", "running")
    assert (snapshot(directory)["run"]["state"], states(directory)["processing"]) == ("stopped", "partial")


@pytest.mark.parametrize("damage", ["", "not json", "[]", '{"kind": "corpus"}', '{"figures": 3}', "\x00\xff"])
def test_a_damaged_manifest_or_log_breaks_nothing(tmp_path, damage):
    directory = make_run(tmp_path / "run", ("collected", "corpus"))
    (directory / "artifacts" / "corpus" / "manifest.json").write_text(damage)
    (directory / "recipe.yaml").write_text(damage)
    with open(directory / "events.jsonl", "a") as file:
        file.write(damage + "\n")
    assert states(directory)["processing"] == "waiting"
    assert states(directory)["data"] == "done"


def test_an_empty_directory_is_all_waiting(tmp_path):
    found = snapshot(tmp_path)
    assert found["run"]["state"] == "empty"
    assert found["seq"] == 0
    assert set(states(tmp_path).values()) == {"waiting"}
    assert [block["key"] for block in empty_snapshot()["blocks"]] == KEYS
    assert empty_snapshot()["run"] is None


def test_the_log_is_folded_once_and_grows(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    run = Run(tmp_path)
    log.emit("run_started", recipe="r", stages=[])
    assert snapshot(run)["seq"] == 1
    log.emit("stage_started", "base", fingerprint="f", resumed=False)
    assert snapshot(run)["seq"] == 2
    (tmp_path / "events.jsonl").unlink()
    EventLog(tmp_path / "events.jsonl").emit("note", message="a new log")
    assert snapshot(run)["seq"] == 1
    assert {block["state"] for block in snapshot(run)["blocks"]} == {"waiting"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["done", "running"], "running"),
        (["failed", "waiting"], "failed"),
        (["done", "waiting"], "partial"),
        (["fresh", "fresh"], "fresh"),
        (["fresh", "done"], "done"),
        (["stopped", "waiting"], "partial"),
        (["waiting", "waiting"], "waiting"),
    ],
)
def test_combined_state(parts, expected):
    assert combined_state(parts) == expected


def test_what_is_sent_is_json_for_browsers():
    sent = dumps({"nan": float("nan"), "deep": [{"inf": float("inf")}], "surrogate": "\ud800", "fine": 1.5})
    assert json.loads(sent, parse_constant=pytest.fail) == {
        "nan": None,
        "deep": [{"inf": None}],
        "surrogate": "\ud800",
        "fine": 1.5,
    }
    assert sent.isascii()
