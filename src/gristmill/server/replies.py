"""Replies in the shape of OpenAI's API, whole or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..engine.request import Request, TokenLogprob
from ..tokenizer.tokenizer import Tokenizer
from .tools import CallStream, message_of

Json = dict[str, Any]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Reply(Protocol):
    """One API's way to write a reply. A piece of a stream stands for the tokens from `start` to before `end`: the
    engine's thread may be further by the time it is written."""

    def opening(self, index: int) -> list[Json]:
        """Chunks that go out before any text."""
        ...

    def piece(self, index: int, request: Request, text: str, start: int, end: int) -> list[Json]: ...

    def ending(self, index: int, reason: str) -> list[Json]: ...

    def usage_chunk(self, usage: Json) -> Json: ...

    def whole(self, requests: Sequence[Request], usage: Json) -> Json: ...


class ChatReply:
    """`chat.completion` and its chunks. Where tools were offered, their `calls` are taken out of the text."""

    def __init__(
        self, tokenizer: Tokenizer, model: str, include_usage: bool, calls: Callable[[], CallStream] | None = None
    ):
        self._tokenizer = tokenizer
        self._calls = calls
        self._streams: dict[int, CallStream] = {}  # by choice
        self._chunk = _base("chatcmpl", "chat.completion.chunk", model, include_usage)
        self._whole = {**self._chunk, "object": "chat.completion"}

    def opening(self, index: int) -> list[Json]:
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def piece(self, index: int, request: Request, text: str, start: int, end: int) -> list[Json]:
        logprobs = self._logprobs(request, start, end)
        if self._calls is None:
            return [self._delta(index, {"content": text}, logprobs)]
        if index not in self._streams:
            self._streams[index] = self._calls()
        deltas = self._streams[index].push(text)
        if logprobs and not deltas:
            deltas = [{}]
        return [self._delta(index, delta, None if place else logprobs) for place, delta in enumerate(deltas)]

    def ending(self, index: int, reason: str) -> list[Json]:
        stream = self._streams.get(index)
        if stream is None:
            return [self._delta(index, {}, reason=reason)]
        rest = [self._delta(index, delta) for delta in stream.finish()]
        return [*rest, self._delta(index, {}, reason=stream.reason(reason))]

    def usage_chunk(self, usage: Json) -> Json:
        return {**self._chunk, "choices": [], "usage": usage}

    def whole(self, requests: Sequence[Request], usage: Json) -> Json:
        choices = []
        for index, request in enumerate(requests):
            text = "".join(request.text)
            reason: str | None = request.finish_reason
            message: Json = {"role": "assistant", "content": text}
            if self._calls is not None and reason is not None:
                found, reason = message_of(text, reason, self._calls())
                message |= found
            logprobs = self._logprobs(request, 0, num_said(request))
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return {**self._whole, "choices": choices, "usage": usage}

    def _delta(self, index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk, "choices": [choice]}

    def _logprobs(self, request: Request, start: int, end: int) -> Json | None:
        if not request.params.logprobs:
            return None
        content = []
        for i in range(start, end):
            top = [self._entry(token, value) for token, value in request.top_logprobs[i]]
            content.append({**self._entry(request.output_ids[i], request.logprobs[i]), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        text = token_text(self._tokenizer, token_id)
        # A token that ends inside a character has no text of its own, and so no bytes by which to name it.
        return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


class CompletionReply:
    """`text_completion`, whole and in chunks."""

    def __init__(self, tokenizer: Tokenizer, model: str, include_usage: bool):
        self._tokenizer = tokenizer
        self._chunk = _base("cmpl", "text_completion", model, include_usage)
        self._offsets: dict[int, int] = {}  # by choice: characters of the tokens that have been listed

    def opening(self, index: int) -> list[Json]:
        return []

    def piece(self, index: int, request: Request, text: str, start: int, end: int) -> list[Json]:
        choice = self._choice(index, text, self._logprobs(index, request, start, end), None)
        return [{**self._chunk, "choices": [choice]}]

    def ending(self, index: int, reason: str) -> list[Json]:
        return [{**self._chunk, "choices": [self._choice(index, "", None, reason)]}]

    def usage_chunk(self, usage: Json) -> Json:
        return {**self._chunk, "choices": [], "usage": usage}

    def whole(self, requests: Sequence[Request], usage: Json) -> Json:
        choices = []
        for index, request in enumerate(requests):
            logprobs = self._logprobs(index, request, 0, num_said(request))
            choice = self._choice(index, "".join(request.text), logprobs, request.finish_reason)
            if request.params.prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._of_prompt(request)
            choices.append(choice)
        return {**self._chunk, "choices": choices, "usage": usage}

    @staticmethod
    def _choice(index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, request: Request, start: int, end: int) -> Json | None:
        if not request.params.logprobs:
            return None
        tokens, offsets, top = [], [], []
        for i in range(start, end):
            text = token_text(self._tokenizer, request.output_ids[i])
            tokens.append(text)
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
            top.append(self._top(request, i))
        wanted = request.params.top_logprobs > 0
        return {
            "tokens": tokens,
            "token_logprobs": request.logprobs[start:end],
            "top_logprobs": top if wanted else None,
            "text_offset": offsets,
        }

    def _of_prompt(self, request: Request) -> list[dict[str, Json] | None]:
        """For each token of the prompt, null for the first: log probabilities and texts by token id, as vLLM has it."""
        entries: list[dict[str, Json] | None] = [None]
        for token, logprob, top in zip(
            request.prompt_ids[1:], request.prompt_logprobs, request.prompt_top_logprobs, strict=True
        ):
            pairs = {**dict(top), token: logprob}
            entries.append(
                {
                    str(id): {"logprob": value, "decoded_token": token_text(self._tokenizer, id)}
                    for id, value in pairs.items()
                }
            )
        return entries

    def _top(self, request: Request, i: int) -> dict[str, float]:
        """Text -> log probability of the likeliest tokens and of the one that was drawn. Of tokens that share a text
        the likeliest stands, since a JSON object can hold only one."""
        pairs: list[TokenLogprob] = [*request.top_logprobs[i], (request.output_ids[i], request.logprobs[i])]
        result: dict[str, float] = {}
        for token_id, value in pairs:
            result.setdefault(token_text(self._tokenizer, token_id), value)
        return result


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)


def usage_of(requests: Sequence[Request], choices: int) -> Json:
    """Token counts of the ended requests, `choices` in a row for each prompt; a prompt counts once."""
    prompt = sum(len(request.prompt_ids) for request in requests[::choices])
    reply = sum(len(request.output_ids) for request in requests)
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


def num_said(request: Request) -> int:
    """The tokens of an ended request that are part of the reply: not the model's own closing token."""
    return len(request.output_ids) - request.closed


def _base(prefix: str, kind: str, model: str, include_usage: bool) -> Json:
    base: Json = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
    return {**base, "usage": None} if include_usage else base
