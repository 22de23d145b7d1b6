"""`serve`: a model directory in, an HTTP server that runs until it is told to stop."""

from __future__ import annotations

import errno
import gc
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Unpack

import torch
import uvicorn

from ..engine.limits import Limits
from ..engine.llm import LLM
from ..errors import GristmillError
from .app import Service, create_app

CPU_STEP_TOKENS = 512
CLOSING_SECONDS = 5  # for clients to take in their last bytes once the engine is done


class Server(uvicorn.Server):
    """uvicorn that says when it is ready and, told to stop, lets running requests finish first."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float, ready: str):
        super().__init__(config)
        self._service, self._drain_seconds, self._ready = service, drain_seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGINT or SIGTERM drains, a second one stops at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        else:
            self._service.draining = True
            threading.Thread(target=self._drain, name="gristmill-drain", daemon=True).start()

    def _drain(self) -> None:
        if not self._service.engine.wait_idle(self._drain_seconds):
            self._service.engine.stop()  # what is left is told that the server stopped
        self.should_exit = True


def serve(
    path: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    model_name: str | None = None,
    dtype: str | None = None,
    max_waiting: int = 128,
    drain_seconds: float = 30.0,
    draft_model: Path | str | None = None,
    **limits: Unpack[Limits],
) -> None:
    """Serve a model directory or a run's last model over HTTP until SIGINT or SIGTERM; blocks.

    Port 0 takes a free one; the line that is printed when the server is ready names it. `max_waiting` requests wait
    for a slot before new ones get 429; told to stop, running requests have `drain_seconds` to finish. `limits` are
    those of `LLM`; on a CPU steps have fewer tokens than there unless told, which keeps the time between tokens short
    while prompts come in. GristmillError when the port is taken, before the model is loaded, and where `LLM` raises it.
    """
    listener = bind(host, port)
    with listener:
        if limits.get("max_num_batched_tokens") is None and not torch.cuda.is_available():
            limits["max_num_batched_tokens"] = max(CPU_STEP_TOKENS, limits.get("max_num_seqs") or 0)
        llm = LLM(path, dtype, draft_model=draft_model, **limits)
        name = model_name or Path(path).resolve().name
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it again and again would hold replies up
        server = make_server(create_app(llm.engine, name, max_waiting), listener, drain_seconds)
        server.run(sockets=[listener])


def make_server(app: Any, listener: socket.socket, drain_seconds: float) -> Server:
    """The server of an app of `create_app`; `run(sockets=[listener])` runs it."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=CLOSING_SECONDS, lifespan="on"
    )
    return Server(config, service, drain_seconds, f"serving {service.model_name} at {url_of(listener)}/v1")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; GristmillError says why there is none. Clients that come before the model is loaded wait."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OverflowError:
        raise GristmillError(f"port {port} does not exist; --port takes 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise GristmillError(f"port {port} is in use; choose another with --port") from None
        raise GristmillError(f"cannot listen on --host {host} --port {port}: {error.strerror}") from None


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
