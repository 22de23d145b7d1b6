"""Tools in chats: which a request offers, and the calls in a reply.

Two forms of calls are read, the one that the model's chat template teaches: ChatML's
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and Llama 3's `{"name": ..., "parameters": {...}}`, a line
of its own. What is no such object stays text: the client sees what the model wrote.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..engine.text import overlap
from ..tokenizer.chat.messages import MAX_DEPTH
from ..tokenizer.tokenizer import Tokenizer
from .errors import ApiError

OPENING, CLOSING = "<tool_call>", "</tool_call>"
PIECE = 4096  # characters of a whole reply that are looked at together: what is held is copied for each call in it
# How the text of a template shows that it teaches the one form or the other.
_TEACHES_TAGS = re.compile(r"<tool_call>\s*\{")
_TEACHES_LINES = re.compile(r'\{\s*"name":[^{}]*"parameters":')

Json = dict[str, Any]


def offered(tools: Sequence[Json] | None, choice: Any, tokenizer: Tokenizer) -> list[Json] | None:
    """The tools that the template is given, None where there are none; ApiError names the field at fault."""
    if choice == "required" or (isinstance(choice, dict) and choice.get("type") in ("function", "allowed_tools")):
        message = "tool_choice: this server cannot force a call; give none or auto"
        raise ApiError(400, message, "tool_choice", "unsupported_parameter")
    if choice not in (None, "none", "auto"):
        raise ApiError(400, f"tool_choice must be none or auto, not {choice!r:.80}", "tool_choice", "invalid_value")
    if not tools:
        return None
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        name = _name_of(tool, f"tools[{index}]")
        if (earlier := names.setdefault(name, index)) != index:
            param = f"tools[{index}].function.name"
            raise ApiError(400, f"{param}: tools[{earlier}] is called {name!r:.80} too", param, "invalid_value")
    if choice == "none":
        return None
    if tokenizer.template is None or not tokenizer.template.uses_tools:
        message = "tools are not supported: this model's chat template does not use them; leave tools out"
        raise ApiError(400, message, "tools", "unsupported_parameter")
    if form_of(tokenizer) is None:
        message = (
            "tools are not supported: this model's chat template teaches calls in a form that is not read here "
            "(known are <tool_call> with JSON and lines of JSON with name and parameters); leave tools out"
        )
        raise ApiError(400, message, "tools", "unsupported_parameter")
    return list(tools)


def _name_of(tool: Json, param: str) -> str:
    """The function's name, once the tool is what it must be."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        message = f'{param} must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        raise ApiError(400, message, param, "invalid_value")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        param = f"{param}.function.parameters"
        raise ApiError(400, f"{param} must be an object, a JSON schema", param, "invalid_type")
    check_depth(tool, param)
    return str(function["name"])


def check_depth(value: Any, param: str, depth: int = 0) -> None:
    """Refuse JSON that chats do not take, without a path as long as it is deep. `depth` is that of `value` itself."""
    level = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        if depth > MAX_DEPTH:
            raise ApiError(400, f"{param} is nested more than {MAX_DEPTH} deep", param, "invalid_value")
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1


class CallStream:
    """The deltas of one growing reply: text as it comes, a call once it is whole.

    Not `parallel`: only the first call is given, as the request wants it.
    """

    def __init__(self, parallel: bool = True, names: Collection[str] | None = None) -> None:
        self.calls = 0
        self._parallel = parallel
        self._names = names  # of the tools that were offered
        self._held = ""  # the beginning of a mark, or of a call
        self._space = ""  # in front of a call it is no part of the text

    def push(self, text: str) -> list[Json]:
        """The deltas that this text completes."""
        self._held += text
        return self._take(last=False)

    def finish(self) -> list[Json]:
        """The rest, when no more text comes: a call that was begun and not ended is text."""
        deltas = self._take(last=True)
        rest = self._space + self._held
        self._held = self._space = ""
        return [*deltas, {"content": rest}] if rest and not (self.calls and rest.isspace()) else deltas

    def reason(self, reason: str) -> str:
        """The finish_reason of the reply."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _find(self, last: bool) -> tuple[int, int | None, Json | None]:
        """In what is held: where what may be a call begins (everything before is text), where it ends (None: that more
        text must show), and the call (None: it is text)."""
        raise NotImplementedError

    def _take(self, last: bool) -> list[Json]:
        deltas: list[Json] = []
        while self._held:
            start, end, call = self._find(last)
            deltas += self._say(start)
            if end is None:
                break
            if call is None:
                deltas += self._say(end - start)
                continue
            self._held = self._held[end - start :]
            self._space = ""
            if self._parallel or not self.calls:
                deltas.append({"tool_calls": [{"index": self.calls, **call}]})
                self.calls += 1
        return deltas

    def _say(self, end: int) -> list[Json]:
        """What is held up to `end` as text, but for white space at its end."""
        text, self._held = self._space + self._held[:end], self._held[end:]
        said = text.rstrip()
        self._space = text[len(said) :]
        return [{"content": said}] if said else []


class TaggedCalls(CallStream):
    """Calls between `<tool_call>` and `</tool_call>`, which a string in the arguments may hold too."""

    def __init__(self, parallel: bool = True, names: Collection[str] | None = None) -> None:
        super().__init__(parallel, names)
        self._tried = 0  # up to here closing marks were found to stand in a string

    @staticmethod
    def marks(tokenizer: Tokenizer) -> Mapping[int, str]:
        """The marks of a call that are special tokens, by id: the text of a reply would leave them out."""
        ids = {mark: tokenizer.backend.token_to_id(mark) for mark in (OPENING, CLOSING)}
        return {id: mark for mark, id in ids.items() if id in tokenizer.special_ids}

    def _find(self, last: bool) -> tuple[int, int | None, Json | None]:
        start = self._held.find(OPENING)
        if start < 0:
            return len(self._held) - overlap(self._held, OPENING), None, None
        body = start + len(OPENING)
        first = self._held.find(CLOSING, body)
        closing = self._held.find(CLOSING, max(body, self._tried))
        while closing >= 0:
            call, cut = parsed(self._held[body:closing])
            if call is not None or not cut:
                self._tried = 0
                return start, (first if call is None else closing) + len(CLOSING), call
            self._tried = closing + len(CLOSING) - start
            closing = self._held.find(CLOSING, closing + len(CLOSING))
        if first < 0 or not last:
            return start, None, None
        self._tried = 0
        return start, first + len(CLOSING), None


class LineCalls(CallStream):
    """Calls that are lines of their own and name a tool that was offered: other lines of JSON are text."""

    def __init__(self, parallel: bool = True, names: Collection[str] | None = None) -> None:
        super().__init__(parallel, names)
        self._fresh = True  # whether nothing but white space stands in front of what is held, in its line

    @staticmethod
    def marks(tokenizer: Tokenizer) -> Mapping[int, str]:
        """None: such calls have no marks."""
        return {}

    def _find(self, last: bool) -> tuple[int, int | None, Json | None]:
        found = re.match(r"\s*\{", self._held) if self._fresh else None
        found = found or re.search(r"\n[^\S\n]*\{", self._held)
        if found is None:
            return len(self._held), None, None
        start = found.end() - 1
        end = self._held.find("\n", start)
        if end < 0 and not last:
            return start, None, None
        end = len(self._held) if end < 0 else end
        call = parsed(self._held[start:end], needs_arguments=True)[0]
        if call is not None and self._names is not None and call["function"]["name"] not in self._names:
            call = None
        return start, end, call

    def _say(self, end: int) -> list[Json]:
        said = self._held[:end]
        behind = said[len(said.rstrip()) :]
        self._fresh = "\n" in behind or (self._fresh and said == behind)
        return super()._say(end)


def form_of(tokenizer: Tokenizer) -> type[TaggedCalls] | type[LineCalls] | None:
    """The form of calls that the chat template teaches; None where it is none that is known here."""
    assert tokenizer.template is not None
    literals = "".join(tokenizer.template.literals)
    if _TEACHES_TAGS.search(literals):
        return TaggedCalls
    return LineCalls if _TEACHES_LINES.search(literals) else None


def message_of(text: str, reason: str, stream: CallStream) -> tuple[Json, str]:
    """`content` and `tool_calls` of a whole reply, and its finish_reason; `stream` is a new one."""
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    deltas = [*(delta for piece in pieces for delta in stream.push(piece)), *stream.finish()]
    content = "".join(delta.get("content", "") for delta in deltas)
    if not stream.calls:
        return {"content": content}, reason
    calls = [
        {k: v for k, v in call.items() if k != "index"} for delta in deltas for call in delta.get("tool_calls", ())
    ]
    return {"content": content or None, "tool_calls": calls}, stream.reason(reason)


def parsed(body: str, needs_arguments: bool = False) -> tuple[Json | None, bool]:
    """The call that this JSON is, None where it is none, and whether it ends inside a string.

    Models write the arguments under either name, as an object, as a string of JSON, or null where there are none.
    """
    try:
        call = json.loads(body, strict=False)  # models break lines inside strings
    except (ValueError, RecursionError) as error:
        return None, isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated string")
    if not isinstance(call, dict) or not _sendable(call.get("name")):
        return None, False
    key = "arguments" if "arguments" in call else "parameters"
    if needs_arguments and key not in call:
        return None, False
    function = {"name": call["name"], "arguments": _arguments(call.get(key))}
    if function["arguments"] is None:
        return None, False
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}, False


def _arguments(given: Any) -> str | None:
    """The arguments as the API has them, a string of strict JSON; None where they are no object or cannot be sent."""
    try:
        found = json.loads(given or "{}") if isinstance(given, str) else given
        if not isinstance(found, dict | None):
            return None
        written = json.dumps(found or {}, ensure_ascii=False, allow_nan=False)
        written.encode()  # fails for half a surrogate pair
    except (ValueError, RecursionError):
        return None
    return written


def _sendable(name: Any) -> bool:
    return isinstance(name, str) and not re.search("[\ud800-\udfff]", name)
