import errno
import json
import os

import pytest

from gristmill.events import EventLog, StageLog, read_events


def test_events_are_numbered_without_gaps_across_openings(tmp_path):
    path = tmp_path / "events.jsonl"
    for _ in range(3):
        log = EventLog(path)
        log.emit("note", message="a")
        log.stage("base").metric(step=1, loss=2.5)
        log.close()
    events = list(read_events(path))
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert events[1]["stage"] == "base"
    assert events[1]["loss"] == 2.5
    assert [event["seq"] for event in read_events(path, after=4)] == [5, 6]


def test_a_torn_line_is_not_read_and_is_cut_off_at_the_next_opening(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit("note", message="whole")
    log.close()
    with open(path, "a") as file:
        file.write('{"seq": 2, "time": 1')
    assert [event["seq"] for event in read_events(path)] == [1]
    log = EventLog(path)
    log.emit("note", message="after")
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]


def test_progress_is_throttled_but_its_end_is_always_kept():
    log = EventLog(None)
    seen = []
    log.subscribers.append(seen.append)
    stage = StageLog(log, "base")
    for done in range(1, 1001):
        stage.progress(done, 1000, "steps")
    assert seen[0]["done"] == 1
    assert seen[-1]["done"] == 1000
    assert len(seen) < 20


def test_a_missing_log_has_no_events(tmp_path):
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_full_disk_leaves_whole_lines_only(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit("note", message="before")
    real = os.write

    def short(fd, data):
        if len(data) > 10:
            return real(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", short)
        log.emit("note", message="lost")
    log.emit("note", message="after")
    assert [(event["seq"], event["message"]) for event in read_events(path)] == [(1, "before"), (2, "after")]


def test_a_log_with_a_spoilt_end_opens_at_its_last_whole_event(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit("note", message="whole")
    with open(path, "ab") as file:
        file.write(b'{"seq": 2, "ti{"seq": 3}\n\0\0\n')
    assert EventLog(path).emit("note", message="next")["seq"] == 2
    assert [event["seq"] for event in read_events(path)] == [1, 2]


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("metric", stage="base", step=1, loss=float("nan"))
    assert json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))["loss"] is None
