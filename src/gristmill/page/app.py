"""The page's web application: its own files, the snapshot, the panels and the event stream.

Everything is read-only; the tokenization panel and the planner answer small questions. The browser talks to the model
server itself (`gristmill serve` allows pages of this machine), so nothing is forwarded here.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import GristmillError
from .files import Run, is_run_directory
from .log import LogTail
from .panels import panel
from .planner import ask, forms
from .planner_form import InputError
from .planner_questions import QUESTIONS
from .play import merges, tokenize, vocabulary
from .snapshot import RAIL, empty_snapshot, snapshot

STATIC = Path(__file__).parent / "static"
DEFAULT_SERVER = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
ADDRESS = re.compile(r"(https?://(?:[\w.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?)(?:/.*)?")
FIGURE = re.compile(r"[A-Za-z0-9_-]+\.png")


def page(target: str, port: int = 8080, host: str = "127.0.0.1") -> None:
    """Serve the page of a run directory, or of a model server's URL, until interrupted.

    GristmillError when `target` is neither, or the port is taken. Port 0 takes a free one.
    """
    import uvicorn

    run_dir, server_url = parse_target(target)
    app = make_app(run_dir, server_url, any_host=host not in LOOPBACK)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"page of {target}: http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    app.state.stopping = lambda: server.should_exit  # open event streams end then; the server waits for them
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a page ends
        server.run(sockets=[listener])


def parse_target(target: str) -> tuple[Path | None, str]:
    """The run directory, if `target` is one, and the address of the model server that the chat box starts with."""
    if target.startswith(("http://", "https://")):
        address = ADDRESS.fullmatch(target)
        if address is None:
            raise GristmillError(f"{target!r} is no server's address; give for example {DEFAULT_SERVER}")
        return None, address[1]
    directory = Path(target)
    if not directory.is_dir():
        raise GristmillError(
            f"{target} is no directory; give a run directory such as runs/quickstart, or a server's URL"
        )
    if not is_run_directory(directory):
        raise GristmillError(
            f"{target} is no run directory: it holds no recipe.yaml, events.jsonl or artifacts; "
            "`gristmill run RECIPE --run DIR` makes one"
        )
    return directory, DEFAULT_SERVER


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; GristmillError names the port when it is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise GristmillError(f"port {port} is in use; choose another with --port") from None
        raise GristmillError(f"cannot listen on {host} port {port}: {error}; see --host and --port") from None
    return listener


def make_app(run_dir: Path | None, server_url: str = DEFAULT_SERVER, any_host: bool = False) -> FastAPI:
    """The application. Unless `any_host`, only requests for this machine's own names are answered, so that a foreign
    web page cannot read the run by pointing its own name at this machine (DNS rebinding)."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    run = Run(run_dir) if run_dir else None
    if not any_host:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    app.state.stopping = lambda: False
    app.add_middleware(SecurityHeaders, server_url=server_url)
    _add_run_routes(app, run, server_url)
    _add_tokenizer_routes(app, run)
    _add_planner_routes(app, run)
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


class SecurityHeaders:
    """Adds the headers that keep untrusted text harmless: no inline script or style, nothing from elsewhere.

    The model server, which the browser asks itself, may be on any port of this machine or where the command line said.
    """

    def __init__(self, app: ASGIApp, server_url: str):
        self.app = app
        servers = f"http://127.0.0.1:* http://localhost:* {server_url}"
        self.headers = {
            "Content-Security-Policy": f"default-src 'self'; connect-src 'self' {servers}; object-src 'none'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _add_run_routes(app: FastAPI, run: Run | None, server_url: str) -> None:
    @app.get("/api/run")
    def read_run() -> Response:
        return to_json({**(snapshot(run) if run else empty_snapshot()), "server": server_url})

    @app.get("/api/panel/{key}")
    def read_panel(key: str) -> Response:
        if key not in (block.key for block in RAIL):
            raise HTTPException(404)
        return to_json(panel(run, key))

    @app.get("/api/figure/{stage}/{name}")
    def read_figure(stage: str, name: str) -> Response:
        directory = run.artifact(stage) if run and stage == "inspect" and FIGURE.fullmatch(name) else None
        if directory is None or not (directory / name).is_file():
            raise HTTPException(404)
        return FileResponse(directory / name, media_type="image/png")

    @app.get("/api/events")
    async def read_events(
        after: Annotated[int, Query(ge=0)] = 0, last_event_id: Annotated[str | None, Header()] = None
    ) -> Response:
        # A browser that reconnects repeats the address it began with; how far it came stands in the header.
        if last_event_id is not None and last_event_id.isdecimal():
            after = int(last_event_id)
        path = run.directory / "events.jsonl" if run else None
        lines = event_stream(path, after, app.state.stopping)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


class TokenizeQuestion(BaseModel):
    """A text to be divided into tokens."""

    text: str = Field(max_length=20_000)


def _add_tokenizer_routes(app: FastAPI, run: Run | None) -> None:
    @app.post("/api/tokenize")
    def read_tokens(question: TokenizeQuestion) -> Response:
        return to_json(tokenize(run, question.text))

    @app.get("/api/merges")
    def read_merges(word: Annotated[str, Query(max_length=1000)]) -> Response:
        return to_json(merges(run, word))

    @app.get("/api/vocabulary")
    def read_vocabulary(
        query: Annotated[str, Query(max_length=200)] = "", start: Annotated[int, Query(ge=0)] = 0
    ) -> Response:
        return to_json(vocabulary(run, query, start))


def _add_planner_routes(app: FastAPI, run: Run | None) -> None:
    @app.get("/api/plan")
    def read_forms() -> Response:
        return to_json(forms(run))

    @app.get("/api/plan/{question}")
    def read_answer(question: str, request: Request) -> Response:
        """An input that cannot be is answered by 400 and `{field, message}`; the form shows it beside the field."""
        if question not in QUESTIONS:
            raise HTTPException(404)
        try:
            return to_json(ask(question, request.query_params, run))
        except InputError as error:
            return to_json({"field": error.field, "message": str(error)}, status=400)


async def event_stream(
    path: Path | None, after: int, stopping: Callable[[], bool] = lambda: False
) -> AsyncIterator[str]:
    """The events with `seq > after` as server-sent events, then those that follow, until `stopping()`.

    Each message's id is its `seq`, so a browser that was cut off resumes without gaps or repeats. When the log is
    replaced by a new one (or `after` is of an older one) a `restart` message says so, and all events follow.
    """
    yield "retry: 2000\n\n"
    tail = LogTail(path) if path else None
    restarts = 0
    fresh = True
    quiet = 0.0
    while not stopping():
        events = await asyncio.to_thread(tail.read) if tail else []
        if tail and (tail.restarts != restarts or (fresh and tail.last_seq < after)):
            after, restarts = 0, tail.restarts
            yield "event: restart\nid: 0\ndata: {}\n\n"
        fresh = False
        lines = [f"id: {event['seq']}\ndata: {dumps(event)}\n\n" for event in events if event["seq"] > after]
        if lines:
            quiet = 0.0
            yield "".join(lines)
            continue
        if quiet >= HEARTBEAT_SECONDS:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS


def to_json(value: Any, status: int = 200) -> Response:
    return Response(dumps(value), status, {"Cache-Control": "no-store"}, "application/json")


def dumps(value: Any) -> str:
    """JSON that a browser can parse, whatever a file held: ASCII only (lone surrogates are escaped), no infinities."""
    try:
        return json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
