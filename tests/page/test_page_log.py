"""Following a log: whole lines only, each event once, a new log from its start."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gristmill.events import EventLog
from gristmill.page.log import LogTail, loads, parse_lines


def line(seq: int, **fields) -> str:
    return json.dumps({"seq": seq, "time": 1.0, "stage": None, "type": "note", **fields}) + "\n"


def seqs(events) -> list[int]:
    return [event["seq"] for event in events]


def test_only_what_is_new_is_read(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = LogTail(path)
    assert tail.read() == []
    log = EventLog(path)
    log.emit("note", message="one")
    log.emit("note", message="two")
    assert seqs(tail.read()) == [1, 2]
    assert tail.read() == []
    log.emit("note", message="three")
    assert seqs(tail.read()) == [3]
    assert tail.restarts == 0


def test_a_torn_line_is_left_until_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    whole = line(2, message="é")
    data = (line(1) + whole).encode()
    for cut in range(len(line(1)) + 1, len(data)):
        path.write_bytes(data[:cut])
        tail = LogTail(path)
        assert seqs(tail.read()) == [1]
        path.write_bytes(data)  # the same file, now whole
        assert seqs(tail.read()) == [2]


def test_a_torn_line_cut_off_by_the_next_run_is_never_seen(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + '{"seq": 2, "ty')
    tail = LogTail(path)
    assert seqs(tail.read()) == [1]
    EventLog(path).emit("run_started", recipe="again", stages=[])
    assert [(e["seq"], e["type"]) for e in tail.read()] == [(2, "run_started")]
    assert tail.restarts == 0


def test_a_log_that_was_emptied_or_replaced_is_read_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + line(2) + line(3))
    tail = LogTail(path)
    tail.read()
    path.write_text(line(1, message="shorter"))
    assert [e["message"] for e in tail.read()] == ["shorter"]
    other = tmp_path / "other"
    other.write_text("".join(line(i) for i in range(1, 9)))
    other.replace(path)
    assert seqs(tail.read()) == list(range(1, 9))
    assert tail.restarts == 2


def test_a_longer_log_written_into_the_same_file_is_noticed(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(line(1) + line(2))
    tail = LogTail(path)
    tail.read()
    padding = "x" * (len(line(1) + line(2)) - len(line(1, message="")))
    path.write_text(line(1, message=padding) + line(2) + line(3))  # what was read ends where line 2 begins now
    assert seqs(tail.read()) == [1, 2, 3]
    assert tail.restarts == 1


def test_lines_that_are_no_events_are_left_out():
    data = b'not json\n[1, 2]\n{"seq": "x", "type": "note"}\n{"type": "note"}\n\xff\xfe\n' + line(4).encode()
    assert seqs(parse_lines(data)) == [4]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(data):
    parse_lines(data)


def test_numbers_that_json_does_not_know_become_null():
    assert loads('{"a": NaN, "b": -Infinity, "c": 1.5}') == {"a": None, "b": None, "c": 1.5}
