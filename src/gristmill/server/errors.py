"""Errors in the JSON shape of OpenAI's API, by which its clients choose the exception they raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..engine.async_engine import EngineStopped, QueueFull
from ..engine.sampling import PromptTooLong, RequestError
from ..errors import GristmillError

RETRY_AFTER_SECONDS = "1"


class ApiError(Exception):
    """What a client is told: HTTP status, message, the request's field at fault and a code for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        message = self.message.encode(
            "utf-8", "replace"
        ).decode()  # it may quote half a surrogate pair from the request
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": RETRY_AFTER_SECONDS} if self.status in (429, 503) else {}


def api_error(error: Exception) -> ApiError:
    """The answer to any exception that a request met."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return ApiError(400, str(error), error.field, "context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), error.field, "invalid_value")
    if isinstance(error, GristmillError):
        return ApiError(400, str(error))
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="stopping")
    return ApiError(500, f"the server failed on this request: {type(error).__name__}: {error}", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of the app, FastAPI's own included, leave in this shape."""
    for kind in (ApiError, GristmillError, QueueFull, EngineStopped, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = api_error(error)
    return JSONResponse(answer.body, answer.status, headers=dict(answer.headers))


async def _answer_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = max(error.errors(), key=lambda entry: len(entry["loc"]))  # of a union's failures the one that got furthest
    if found["type"] == "json_invalid":
        return await _answer(request, ApiError(400, f"the body is not valid JSON: {found['ctx']['error']}"))
    param = _param(found["loc"][1:])
    message = f"{param}: {found['msg']}" if param else "the body must be a JSON object, sent as application/json"
    return await _answer(request, ApiError(400, message, param, "invalid_type"))


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    return await _answer(request, ApiError(error.status_code, f"{where}: {error.detail}"))


def _well_formed(text: str) -> str:
    """Text from a request may hold half a surrogate pair, which no answer can be written with."""
    return text.encode("utf-8", "replace").decode()


def _param(location: tuple[int | str, ...]) -> str | None:
    """`("messages", 0, "content", "list[...]", 1)` -> `messages[0].content[1]`: pydantic also lists the alternatives
    of a union that it tried, which are no part of the request."""
    path = ""
    after_index = True
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif after_index:
            path += f".{part}" if path else part
        after_index = isinstance(part, int)
    return path or None
