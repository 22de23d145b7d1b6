"""The application over HTTP: what it answers, what it refuses, and the event stream that resumes."""

import ast
import asyncio
import json
import re
import socket
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from page_server import serving

import gristmill.page
from gristmill.errors import GristmillError
from gristmill.events import EventLog
from gristmill.page.app import DEFAULT_SERVER, STATIC, event_stream, make_app, page, parse_target
from gristmill.page.panels import PANELS

LOCAL = "http://127.0.0.1"


def client(run_dir: Path | None, **options) -> TestClient:
    return TestClient(make_app(run_dir, **options), base_url=LOCAL)


# ---- answers


def test_snapshot_panels_and_figures(finished_run):
    with client(finished_run) as asked:
        snapshot = asked.get("/api/run").json()
        assert (snapshot["run"]["name"], snapshot["server"]) == ("quickstart", DEFAULT_SERVER)
        for block in snapshot["blocks"]:
            answer = asked.get(f"/api/panel/{block['key']}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
            assert answer.json()["sections"]
        picture = asked.get("/api/figure/inspect/attention.png")
        assert picture.headers["content-type"] == "image/png"
        assert picture.content == (finished_run / "artifacts/inspect/attention.png").read_bytes()


def test_tokenizing_and_searching(finished_run):
    with client(finished_run) as asked:
        answer = asked.post("/api/tokenize", json={"text": "the miller"}).json()
        assert "".join(piece["text"] for piece in answer["pieces"]) == "the miller"
        assert asked.get("/api/vocabulary", params={"query": "im_end"}).json()["total"] == 1
        assert asked.get("/api/merges", params={"word": " miller"}).json()["steps"][0]["number"] >= 1
        assert asked.get("/api/merges", params={"word": "x" * 1001}).status_code == 422
        assert asked.post("/api/tokenize", json={"text": "x" * 20_001}).status_code == 422
        assert asked.post("/api/tokenize", content=b'{"text": "\\ud800 lone"}').status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/api/panel/nothing",
        "/api/figure/inspect/report.json",
        "/api/figure/inspect/missing.png",
        "/api/figure/base/attention.png",
        "/api/figure/inspect/..%2Fattention.png",
        "/api/figure/inspect/..%2F..%2Fevents.jsonl",
        "/../app.py",
        "/..%2Fapp.py",
        "/docs",
        "/openapi.json",
    ],
)
def test_what_is_not_there_is_404(finished_run, path):
    with client(finished_run) as asked:
        assert asked.get(path).status_code == 404


@pytest.mark.parametrize("target", ["empty", "server"])
def test_nothing_missing_is_an_error(tmp_path, target):
    with client(tmp_path if target == "empty" else None) as asked:
        for path in ("/", "/api/run", *(f"/api/panel/{key}" for key in PANELS), "/api/vocabulary"):
            assert asked.get(path).status_code == 200
        assert "no tokenizer" in asked.post("/api/tokenize", json={"text": "a"}).json()["error"]


def test_every_answer_forbids_what_the_page_does_not_need(finished_run):
    with client(finished_run, server_url="http://gpu-box:9000") as asked:
        for path in ("/", "/app.js", "/api/run", "/api/figure/inspect/attention.png", "/missing"):
            policy = asked.get(path).headers["content-security-policy"]
            rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
            assert rules["default-src"] == ["'self'"]
            assert rules["connect-src"] == ["'self'", "http://127.0.0.1:*", "http://localhost:*", "http://gpu-box:9000"]
            assert "unsafe" not in policy
            assert asked.get(path).headers["x-content-type-options"] == "nosniff"


def test_only_this_machines_names_are_answered(finished_run):
    with client(finished_run) as asked:
        assert asked.get("/api/run", headers={"host": "evil.example:8080"}).status_code == 400
        assert asked.get("/api/run", headers={"host": "localhost:8080"}).status_code == 200
    with client(finished_run, any_host=True) as asked:
        assert asked.get("/api/run", headers={"host": "gpu-box:8080"}).status_code == 200


def test_the_pages_own_files_put_text_in_as_text_and_ask_nobody_else():
    for path in STATIC.iterdir():
        source = path.read_text(encoding="utf-8")
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in source, f"{path.name}: {forbidden}"
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", source)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{path.name}: {addresses}"
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", html), "inline code would be blocked by the policy"
    for name in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert (STATIC / name).is_file()


def test_the_room_imports_only_what_it_may():
    allowed = {
        "errors",
        "events",
        "artifact",
        "hardware",
        "model",
        "tokenizer",
        "plan",
        "capacity",
        "interpret",
        "page",
    }
    for path in Path(gristmill.page.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert (node.module or "").split(".")[0] in allowed, f"{path.name} imports {node.module}"
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("gristmill"), path.name


# ---- the event stream


def read_stream(path: Path, after: int, count: int, before: int = 0, meanwhile=lambda: None) -> list[dict]:
    """The first `count` messages; `meanwhile` is called when `before` of them have come."""

    async def read() -> list[dict]:
        messages: list[dict] = []
        called = False
        async for chunk in event_stream(path, after):
            for block in chunk.split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith((":", "retry")))
                if fields:
                    messages.append(fields)
            if len(messages) >= count:
                return messages
            if not called and len(messages) >= before:
                called = True
                meanwhile()
        raise AssertionError("the stream ended")

    return asyncio.run(asyncio.wait_for(read(), 30))


def test_the_stream_resumes_without_gaps_or_repeats(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for i in range(20):
        log.emit("note", message=f"line\nbreak {i}")

    def more():
        log.emit("note", message="late")
        with open(path, "a") as file:
            file.write('{"seq": 22, "torn')

    for after in (0, 7, 20):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
        log = EventLog(path)
        messages = read_stream(path, after, 21 - after, 20 - after, more)
        assert [int(message["id"]) for message in messages] == list(range(after + 1, 22))
        assert [json.loads(message["data"])["seq"] for message in messages] == list(range(after + 1, 22))


def test_a_second_run_in_the_same_log_continues(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("run_started", recipe="r", stages=[])
    with open(path, "a") as file:
        file.write('{"seq": 2, "torn by a crash')

    def again():
        EventLog(path).emit("run_started", recipe="r", stages=[])

    messages = read_stream(path, 0, 2, 1, again)
    assert [int(message["id"]) for message in messages] == [1, 2]
    assert json.loads(messages[1]["data"])["type"] == "run_started"


def test_a_replaced_log_is_announced_and_sent_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for _ in range(3):
        log.emit("note", message="old")

    def replace():
        path.unlink()
        EventLog(path).emit("note", message="new")

    messages = read_stream(path, 0, 5, 3, replace)
    assert [message.get("event") for message in messages] == [None, None, None, "restart", None]
    assert json.loads(messages[4]["data"])["message"] == "new"
    # A browser that was away while the log was replaced comes back with a number from the old one.
    messages = read_stream(path, 300, 2)
    assert [message.get("event") for message in messages] == ["restart", None]


def test_a_log_that_begins_later_is_followed(tmp_path):
    path = tmp_path / "events.jsonl"
    messages = read_stream(path, 0, 1, 0, lambda: EventLog(path).emit("note", message="first"))
    assert json.loads(messages[0]["data"])["message"] == "first"


def ids(address: str, count: int, **request) -> list[int]:
    found: list[int] = []
    with httpx.stream("GET", f"{address}/api/events", timeout=20, **request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("id: "):
                found.append(int(line[4:]))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def test_the_stream_over_http(finished_run):
    last = len((finished_run / "events.jsonl").read_text().splitlines())
    with serving(make_app(finished_run)) as address:
        check_stream(address, last)


def check_stream(address: str, last: int) -> None:
    assert ids(address, last) == list(range(1, last + 1))
    assert ids(address, 2, params={"after": last - 2}) == [last - 1, last]
    # After a break the browser asks the same address again and says in the header how far it came.
    assert ids(address, 1, params={"after": 1}, headers={"Last-Event-ID": str(last - 1)}) == [last]
    assert ids(address, 1, params={"after": last - 1}, headers={"Last-Event-ID": "junk"}) == [last]
    assert httpx.get(f"{address}/api/events", params={"after": -1}).status_code == 422


# ---- the command's arguments


def test_targets(finished_run):
    assert parse_target(str(finished_run)) == (finished_run, DEFAULT_SERVER)
    assert parse_target("http://localhost:8001/v1/") == (None, "http://localhost:8001")


@pytest.mark.parametrize(
    "target", ["http://", "http://a b", "http://x;script-src *", "https://[::1", "no/such/dir", ""]
)
def test_targets_that_are_none(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GristmillError):
        parse_target(target)


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(GristmillError, match=r"is no run directory.*recipe\.yaml"):
        page(str(tmp_path))
    with pytest.raises(GristmillError, match="is no directory"):
        page(str(tmp_path / "missing"))


def test_a_taken_port_is_named(finished_run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GristmillError, match=f"^port {port} is in use; choose another with --port$"):
            page(str(finished_run), port=port)


def test_a_port_or_host_that_cannot_be_is_named(finished_run):
    with pytest.raises(GristmillError, match="--port"):
        page(str(finished_run), port=70_000)
    with pytest.raises(GristmillError, match=r"cannot listen on 192\.0\.2\.1"):
        page(str(finished_run), host="192.0.2.1")
