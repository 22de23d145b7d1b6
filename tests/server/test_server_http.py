"""What is not OpenAI's: health, metrics, limits, disconnects, draining, errors of every kind."""

from __future__ import annotations

import json
import re
import socket
import threading

import httpx
import openai
import pytest

from gristmill.engine.request import Request, StepOutput
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.server import serve as serve_module
from gristmill.server.metrics import Metrics
from gristmill.server.serve import bind, serve

LONG = {"model": "tiny", "prompt": [5], "max_tokens": 90, "temperature": 0, "ignore_eos": True}
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")


def parse(text):
    """A strict reader of Prometheus' text format: name -> type, and (name, labels) -> value."""
    types, values = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            name, labels, value = SAMPLE.match(line).groups()
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
            family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name
            assert family in types, f"{name} has no type"
            key = (name, tuple(sorted(found.items())))
            assert key not in values, f"{key} twice"
            values[key] = float(value)
    return types, values


def metrics_of(server):
    reply = httpx.get(f"{server.url}/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(reply.text)


def test_metrics_count_what_was_done(start):
    server = start()
    model = ("model_name", "tiny")
    for n in (3, 5):
        server.client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=n, extra_body={"ignore_eos": True})
    types, values = metrics_of(server)
    assert types["vllm:num_requests_running"] == "gauge"
    assert types["vllm:time_to_first_token_seconds"] == "histogram"
    assert values["vllm:prompt_tokens_total", (model,)] == 6
    assert values["vllm:generation_tokens_total", (model,)] == 8
    assert values["vllm:num_requests_running", (model,)] == values["vllm:num_requests_waiting", (model,)] == 0
    finished = {
        r: values["vllm:request_success_total", (("finished_reason", r), model)] for r in ("length", "stop", "abort")
    }
    assert finished == {"length": 2, "stop": 0, "abort": 0}
    for name, count in (
        ("request_queue_time", 2),
        ("time_to_first_token", 2),
        ("inter_token_latency", 6),
        ("e2e_request_latency", 2),
    ):
        name = f"vllm:{name}_seconds"
        buckets = [(float(dict(k[1])["le"]), v) for k, v in values.items() if k[0] == f"{name}_bucket"]
        assert [v for _, v in buckets] == sorted(v for _, v in buckets)
        assert buckets[-1] == (float("inf"), count)
        assert values[f"{name}_count", (model,)] == count
        assert 0 < values[f"{name}_sum", (model,)] < 60


def test_histograms_put_times_where_they_belong():
    metrics = Metrics('a"b\\c\n')
    request = Request(0, [1, 2], SamplingParams(), arrived=10.0, scheduled=10.1)
    for now, before in ((10.25, 10.0), (10.3, 10.25), (13.3, 10.3)):
        request.output_ids.append(1)
        request.token_times = (now, before)
        metrics.observe([StepOutput(request, [1], "x", "stop" if now > 13 else None)])
    _, values = parse(metrics.render(1, 2, 0.5))
    model = ("model_name", r"a\"b\\c\n")

    def bucket(name, le):
        return values[f"vllm:{name}_seconds_bucket", (("le", le), model)]

    assert (bucket("request_queue_time", "0.05"), bucket("request_queue_time", "0.25")) == (0, 1)
    assert (bucket("time_to_first_token", "0.1"), bucket("time_to_first_token", "0.25")) == (0, 1), "bounds include"
    assert (bucket("inter_token_latency", "0.1"), bucket("inter_token_latency", "2.5")) == (1, 1)
    assert bucket("inter_token_latency", "5.0") == 2
    assert (bucket("e2e_request_latency", "2.5"), bucket("e2e_request_latency", "5.0")) == (0, 1)
    assert values["vllm:e2e_request_latency_seconds_sum", (model,)] == pytest.approx(3.3)
    assert values["vllm:kv_cache_usage_perc", (model,)] == 0.5


def test_a_full_queue_is_429_with_retry_after(start, hold):
    server = start(max_num_seqs=1, max_waiting=1)
    gate = hold(server)
    replies = []

    def ask():
        replies.append(httpx.post(f"{server.url}/v1/completions", json={**LONG, "max_tokens": 2}, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    with server.service.engine._changed:
        assert server.service.engine._changed.wait_for(lambda: len(server.service.engine._open) == 2, 30)
    with pytest.raises(openai.RateLimitError) as caught:
        server.client.completions.create(model="tiny", prompt="x")
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    _, values = metrics_of(server)
    assert values["vllm:admission_rejections_total", (("model_name", "tiny"),)] == 1
    gate.set()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waiting", [True, False], ids=["in the queue", "in the batch"])
def test_a_client_that_leaves_ends_its_request(start, hold, stream, waiting):
    server = start(max_num_seqs=1, max_waiting=4)
    engine = server.service.engine
    gate = hold(server)

    def open_request(body):
        host, port = server.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + data)
        return connection

    def wait(condition):
        with engine._changed:
            assert engine._changed.wait_for(condition, 30)

    blocker = open_request({**LONG, "max_tokens": 3}) if waiting else None
    if waiting:
        wait(lambda: len(engine._open) == 1)
    count = 1 + waiting
    client = open_request({**LONG, "stream": stream})
    wait(lambda: len(engine._open) == count)
    gate.entered.wait(30)
    client.close()
    wait(lambda: any(command == "abort" for command, _ in engine._inbox))
    gate.set()
    assert engine.wait_idle(30)
    finished = server.service.metrics.finished
    assert (finished["abort"], finished["length"]) == (1, int(waiting))
    assert not engine.engine.has_work
    if blocker is not None:
        assert blocker.recv(100).startswith(b"HTTP/1.1 200")
        blocker.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_failing_step_is_told_to_the_client_and_passes(start, monkeypatch, stream):
    server = start()
    runner = server.service.engine.engine.runner
    forward = runner.hidden_states

    def fail(chunks):
        raise RuntimeError("no memory")

    monkeypatch.setattr(runner, "hidden_states", fail)
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 3}
    with pytest.raises(openai.APIError, match="no memory"):
        list(
            server.client.completions.create(**asked, stream=True)
            if stream
            else server.client.completions.create(**asked)
        )
    monkeypatch.setattr(runner, "hidden_states", forward)
    assert server.client.completions.create(**asked).choices[0].finish_reason
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [True, False])
def test_when_one_choice_fails_the_others_are_given_up(start, monkeypatch, stream):
    server = start()
    advance = server.service.engine.engine._advance

    def fail_on_six(request, *token):
        if request.prompt_ids == [6]:
            raise RuntimeError("no text for this")
        return advance(request, *token)

    monkeypatch.setattr(server.service.engine.engine, "_advance", fail_on_six)
    asked = {**LONG, "prompt": [[5], [6], [7]], "stream": stream}
    reply = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60)
    assert "no text for this" in reply.text
    assert "[DONE]" not in reply.text
    assert server.service.engine.wait_idle(30)
    finished = server.service.metrics.finished
    assert (finished["error"], finished["abort"], finished["length"]) == (1, 2, 0)


def test_health_is_503_when_the_engine_is_gone(start):
    server = start()
    server.service.engine.stop()
    reply = httpx.get(f"{server.url}/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "failed")
    with pytest.raises(openai.InternalServerError):
        server.client.completions.create(model="tiny", prompt="x")


def test_debug_shows_the_slots(start, hold):
    server = start(max_num_seqs=2)
    gate = hold(server)
    thread = threading.Thread(
        target=server.client.completions.create, kwargs={"model": "tiny", "prompt": [[5], [6], [7, 8]]}
    )
    thread.start()
    assert gate.entered.wait(30)
    state = httpx.get(f"{server.url}/debug/engine").json()
    gate.set()
    thread.join()
    assert [row["slot"] for row in state["slots"]] == [0, 1]
    assert [row["prompt_tokens"] for row in state["waiting"]] == [2]
    assert (state["model"], state["max_num_seqs"], state["max_model_len"]) == ("tiny", 2, 96)


def test_pages_of_this_machine_may_call(shared):
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for origin, allowed in (
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8001", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
    ):
        reply = httpx.options(f"{shared.url}/v1/chat/completions", headers={"Origin": origin, **headers})
        assert (reply.headers.get("access-control-allow-origin") == origin) is allowed


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", b"{not json", 400),
        ("POST", "/v1/completions", b"[1, 2]", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b'{"prompt": "x", "\\ud800": 1}', 400),
        ("POST", "/v1/completions", b'{"prompt": "x", "temperature": NaN}', 400),
        ("POST", "/v1/completions", b"\xff\xfe", 400),
        ("POST", "/v1/chat/completions", b'{"messages": "hi"}', 400),
        ("GET", "/v1/completions", b"", 405),
        ("POST", "/v1/embeddings", b"{}", 404),
    ],
)
def test_every_error_has_openais_shape(shared, method, path, content, status):
    reply = httpx.request(method, shared.url + path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_told_to_stop_it_finishes_what_runs_and_refuses_the_rest(start, hold):
    server = start(max_num_seqs=1)
    gate = hold(server)
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=60))
    )
    thread.start()
    assert gate.entered.wait(30)
    server.server.handle_exit(15, None)
    with pytest.raises(openai.InternalServerError) as caught:
        server.client.completions.create(model="tiny", prompt="x")
    assert caught.value.status_code == 503
    assert "retry-after" in caught.value.response.headers
    assert httpx.get(f"{server.url}/health").json() == {"status": "draining"}
    gate.set()
    thread.join()
    assert replies[0].json()["usage"]["completion_tokens"] == 90
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_what_outlasts_the_drain_is_told_so(start, hold):
    server = start(max_num_seqs=1, drain_seconds=0.0)
    gate = hold(server)
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=60))
    )
    thread.start()
    assert gate.entered.wait(30)
    server.server.handle_exit(15, None)
    with server.service.engine._changed:
        assert server.service.engine._changed.wait_for(lambda: server.service.engine._stopping, 30)
    gate.set()
    thread.join()
    assert replies[0].status_code == 503
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_a_taken_port_is_named_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(serve_module, "LLM", lambda *a, **k: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GristmillError, match=f"port {port} is in use; choose another with --port"):
            serve(tmp_path, port=port)


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [("127.0.0.1", 70_000, "0 to 65535"), ("no such host", 0, "cannot listen on --host no such host")],
)
def test_addresses_that_cannot_be(host, port, says):
    with pytest.raises(GristmillError, match=says):
        bind(host, port)
