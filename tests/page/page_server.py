"""Applications on a free port in a thread of their own, and a stand-in for the model server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse

from gristmill.page.app import listen

METRICS = """# HELP vllm:num_requests_running Requests in the batch.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 1
# HELP vllm:time_to_first_token_seconds Arrival to first token.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{model_name="tiny",le="1.0"} 4
vllm:time_to_first_token_seconds_bucket{model_name="tiny",le="+Inf"} 4
vllm:time_to_first_token_seconds_sum{model_name="tiny"} 0.5
vllm:time_to_first_token_seconds_count{model_name="tiny"} 4
"""


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The application's address while the block lasts."""
    listener = listen("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    app.state.stopping = lambda: server.should_exit
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def model_server(reply: list[str]) -> tuple[FastAPI, list[dict[str, Any]]]:
    """An OpenAI-compatible server that streams `reply` piece by piece, and the requests that it got."""
    app = FastAPI()
    app.add_middleware(
        CORSMiddleware, allow_origin_regex=r"http://127\.0\.0\.1:\d+", allow_methods=["*"], allow_headers=["*"]
    )
    asked: list[dict[str, Any]] = []

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(METRICS)

    @app.post("/v1/chat/completions")
    def chat(request: dict[str, Any]) -> StreamingResponse:
        asked.append(request)
        chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in reply]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, end]]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    return app, asked
