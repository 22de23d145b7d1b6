"""The HTTP application: OpenAI's endpoints, health, metrics and a view into the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from ..engine.async_engine import AsyncEngine, EngineStopped, Generation, QueueFull
from ..engine.engine import Engine
from ..engine.llm import prompt_ids
from ..engine.sampling import PromptTooLong, SamplingParams
from ..errors import GristmillError
from . import errors, tools
from .errors import ApiError, api_error
from .forms import named
from .metrics import CONTENT_TYPE, Metrics
from .protocol import ChatRequest, CompletionRequest, GenerationRequest
from .replies import ChatReply, CompletionReply, Reply, num_said, usage_of

STUCK_SECONDS = 60.0  # a step that takes longer is taken for a hang
LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Service:
    """What the endpoints share: one engine, its model's name and the counters. `draining` refuses new requests."""

    def __init__(self, engine: Engine, model_name: str, max_waiting: int):
        self.model_name = model_name
        self.tokenizer = engine.tokenizer
        self.metrics = Metrics(model_name)
        self.engine = AsyncEngine(engine, max_waiting, self.metrics.observe)
        self.created = int(time.time())
        self.draining = False
        self._longest_token = int(engine.tokenizer.token_bytes.max())
        self._watchers: set[asyncio.Task[None]] = set()

    def check_open(self, body: GenerationRequest) -> None:
        """Refuse before any work what cannot be served: the server is stopping, or serves another model."""
        if self.draining:
            raise EngineStopped("the server is stopping and takes no new requests")
        if body.model is not None:
            self.check_model(body.model)

    def check_model(self, name: str) -> None:
        if name != self.model_name:
            message = f"the model {name!r} does not exist; this server has {self.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def model_card(self) -> dict[str, Any]:
        card = {"id": self.model_name, "object": "model", "created": self.created, "owned_by": "gristmill"}
        return {**card, "max_model_len": self.engine.engine.config.max_model_len}

    def check_length(self, text: str, field: str) -> None:
        """Refuse a text that is too long whatever its tokens are, before the time is spent to find them."""
        limit = self.engine.engine.config.max_model_len * self._longest_token
        if len(text) > limit:
            raise PromptTooLong(field, f"{field} has {len(text)} characters; more than {limit} never fit the context")

    def submit(
        self,
        prompts: Sequence[tuple[Sequence[int], str]],
        params: Sequence[SamplingParams],
        continues: bool = False,
        shown: Mapping[int, str] | None = None,
    ) -> Generation:
        """Queue every choice of every `(ids, field)`, the choices of a prompt in a row; `continues` and `shown` are as
        in `Request`."""
        make = self.engine.engine.make_request
        requests = [make(ids, choice, field, continues) for ids, field in prompts for choice in params]
        for request in requests:
            request.shown = shown or {}
        try:
            return self.engine.submit(requests)
        except QueueFull:
            self.metrics.reject()
            raise

    async def answer(
        self, request: Request, body: GenerationRequest, reply: Reply, generation: Generation, choices: int
    ) -> Response:
        """The whole reply, or the response that streams it."""
        watcher = asyncio.create_task(_abort_at_the_end(request, generation))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        try:
            await _forms_made(generation)
        except GristmillError as error:
            raise named(error, body.response_format) from error
        if body.stream:
            events = _events(generation, reply, choices, body.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)
        async for _, output in generation:
            if output.error is not None:
                raise api_error(output.error) from output.error
        return JSONResponse(reply.whole(generation.requests, usage_of(generation.requests, choices)))

    def cache_usage(self) -> float:
        """The share of the cache's blocks that sequences hold."""
        return self.engine.engine.blocks.usage


def create_app(engine: Engine, model_name: str, max_waiting: int = 128) -> FastAPI:
    """The application around an engine; its `state.service` is the `Service`. Starting it starts the engine."""
    service = Service(engine, model_name, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.stop)

    app = FastAPI(title="gristmill", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=LOCAL_ORIGINS,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )
    errors.install(app)
    _add_generation(app, service)
    _add_inspection(app, service)
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Reply to a conversation."""
        service.check_open(body)
        room = service.engine.engine.config.max_model_len
        messages, params = body.conversation(), body.params(room)
        offered = tools.offered(body.tools, body.tool_choice, service.tokenizer)
        service.check_length("".join(message["content"] or "" for message in messages), "messages")
        service.check_length(json.dumps(offered), "tools")
        try:
            ids = await asyncio.to_thread(service.tokenizer.chat_ids, messages, True, offered)
        except GristmillError as error:
            raise ApiError(400, str(error), "tools" if str(error).startswith("tools[") else "messages") from error
        form = tools.form_of(service.tokenizer) if offered else None
        shown = None if form is None else form.marks(service.tokenizer)
        names = [tool["function"]["name"] for tool in offered or ()]
        calls = None if form is None else partial(form, body.parallel_tool_calls is not False, names)
        generation = service.submit([(ids, "messages")], params, shown=shown)
        reply = ChatReply(service.tokenizer, service.model_name, bool(body.stream and body.include_usage), calls)
        return await service.answer(request, body, reply, generation, len(params))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        service.check_open(body)
        prompts, params = body.prompts(), body.params()
        fields = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
        for prompt, field in zip(prompts, fields, strict=True):
            if isinstance(prompt, str):
                service.check_length(prompt, field)
        ids = await asyncio.to_thread(prompt_ids, service.tokenizer, prompts)
        generation = service.submit(list(zip(ids, fields, strict=True)), params, continues=True)
        reply = CompletionReply(service.tokenizer, service.model_name, bool(body.stream and body.include_usage))
        return await service.answer(request, body, reply, generation, len(params))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [service.model_card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return service.model_card()


def _add_inspection(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while the engine works, also while it drains; 503 when its thread has ended or a step hangs."""
        trouble = service.engine.health(STUCK_SECONDS)
        if trouble is not None:
            return JSONResponse({"status": "failed", "reason": trouble}, 503)
        return JSONResponse({"status": "draining" if service.draining else "ok"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        engine = service.engine
        text = service.metrics.render(engine.num_running, engine.num_waiting, service.cache_usage())
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    @app.get("/debug/engine")
    async def debug() -> dict[str, Any]:
        """Slots, their lengths and the waiting queue, for the live page."""
        return {"model": service.model_name, "draining": service.draining, **service.engine.snapshot()}


async def _forms_made(generation: Generation) -> None:
    """Wait until the forms of structured outputs are made: one that cannot be is an error before a stream begins."""
    for request in generation.requests:
        if request.constraint is not None:  # others may wait for the same, so that it is not cancelled with this
            await asyncio.shield(asyncio.wrap_future(request.constraint))


async def _events(generation: Generation, reply: Reply, choices: int, include_usage: bool) -> AsyncIterator[str]:
    """The reply as server-sent events. An error in the middle is an event too, and then the end."""
    written = [0] * len(generation.requests)
    for index in range(len(generation.requests)):
        for chunk in reply.opening(index):
            yield _event(chunk)
    async for index, output in generation:
        if output.error is not None:
            yield _event(api_error(output.error).body)
            return
        request, start = output.request, written[index]
        end = start + len(output.new_token_ids)
        if output.finish_reason is not None:
            end = min(end, num_said(request))
        written[index] = end
        if output.text or (request.params.logprobs and end > start):
            for chunk in reply.piece(index, request, output.text, start, end):
                yield _event(chunk)
        if output.finish_reason is not None:
            for chunk in reply.ending(index, output.finish_reason):
                yield _event(chunk)
    if include_usage:
        yield _event(reply.usage_chunk(usage_of(generation.requests, choices)))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _abort_at_the_end(request: Request, generation: Generation) -> None:
    """Give up what still runs when the client leaves, or when the response ended early because one choice failed: the
    web server reports both as a disconnect."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.abort()
