import json

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
