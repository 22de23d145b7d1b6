"""Tools in chats: which a request offers, and the calls in a reply.

A call is what the ChatML template teaches: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. What stands
between these marks and is no such object stays text: the client sees what the model wrote.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.text import overlap
from ..tokenizer.tokenizer import Tokenizer
from .errors import ApiError

OPENING, CLOSING = "<tool_call>", "</tool_call>"

Json = dict[str, Any]


def offered(tools: Sequence[Json] | None, choice: Any, tokenizer: Tokenizer) -> list[Json] | None:
    """The tools that the template is given, None where there are none; ApiError names the field at fault."""
    if choice not in (None, "none", "auto"):
        message = "tool_choice must be none or auto: this server cannot force a call"
        raise ApiError(400, message, "tool_choice", "unsupported_parameter")
    if not tools:
        return None
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            param = f"tools[{index}]"
            message = f'{param} must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
            raise ApiError(400, message, param, "invalid_value")
    if tokenizer.template is None or not tokenizer.template.uses_tools:
        message = "tools are not supported: this model's chat template does not use them; leave tools out"
        raise ApiError(400, message, "tools", "unsupported_parameter")
    return None if choice == "none" else list(tools)


def marks(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The marks of a call that are special tokens, by id: the text of a reply would leave them out."""
    ids = {mark: tokenizer.backend.token_to_id(mark) for mark in (OPENING, CLOSING)}
    return {id: mark for mark, id in ids.items() if id in tokenizer.special_ids}


class CallStream:
    """The deltas of one growing reply: text as it comes, a call once it is whole."""

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""  # the beginning of a mark, or of a call
        self._space = ""  # in front of a call it is no part of the text

    def push(self, text: str) -> list[Json]:
        """The deltas that this text completes."""
        self._held += text
        deltas: list[Json] = []
        while (start := self._held.find(OPENING)) >= 0:
            end = self._held.find(CLOSING, start)
            if end < 0:
                return deltas + self._say(start)
            deltas += self._say(start)
            length = end + len(CLOSING) - start
            whole, self._held = self._held[:length], self._held[length:]
            call = _parsed(whole.removeprefix(OPENING).removesuffix(CLOSING))
            if call is None:
                deltas.append({"content": self._space + whole})
            else:
                deltas.append({"tool_calls": [{"index": self.calls, **call}]})
                self.calls += 1
            self._space = ""
        return deltas + self._say(len(self._held) - overlap(self._held, OPENING))

    def finish(self) -> list[Json]:
        """The rest, when no more text comes: a call that was begun and not ended is text."""
        rest = self._space + self._held
        self._held = self._space = ""
        return [{"content": rest}] if rest and not (self.calls and rest.isspace()) else []

    def reason(self, reason: str) -> str:
        """The finish_reason of the reply."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _say(self, end: int) -> list[Json]:
        """What is held up to `end` as text, but for white space at its end."""
        text, self._held = self._space + self._held[:end], self._held[end:]
        said = text.rstrip()
        self._space = text[len(said) :]
        return [{"content": said}] if said else []


def message_of(text: str, reason: str) -> tuple[Json, str]:
    """`content` and `tool_calls` of a whole reply, and its finish_reason."""
    stream = CallStream()
    deltas = [*stream.push(text), *stream.finish()]
    content = "".join(delta.get("content", "") for delta in deltas)
    if not stream.calls:
        return {"content": content}, reason
    calls = [
        {k: v for k, v in call.items() if k != "index"} for delta in deltas for call in delta.get("tool_calls", ())
    ]
    return {"content": content or None, "tool_calls": calls}, stream.reason(reason)


def _parsed(body: str) -> Json | None:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
