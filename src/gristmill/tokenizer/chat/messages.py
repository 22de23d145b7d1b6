"""Messages and tools as chat templates may see them: plain JSON values, checked, in one form whatever was given.

Templates must not meet Python objects, whose methods the sandbox does not know, so everything is built anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.errors import GristmillError

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

MAX_DEPTH = 64


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies with content parts joined and the arguments of tool calls as objects.

    GristmillError names the message and the field where one is no JSON value or not what chats are made of.
    """
    _check_list(messages, "messages", "objects with the strings `role` and `content`")
    return [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def with_text_arguments(chat: list[dict[str, Any]], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`chat`, which `plain_messages` made of `messages`, with the arguments of calls as JSON text: as it was given, or
    written here where an object was."""
    texts = []
    for plain, given in zip(chat, messages, strict=True):
        if "tool_calls" in plain:
            calls = zip(plain["tool_calls"], given["tool_calls"], strict=True)
            plain = {**plain, "tool_calls": [_text_call(call, before) for call, before in calls]}
        texts.append(plain)
    return texts


def _text_call(call: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    function, before = call.get("function", call), given.get("function", given).get("arguments")
    text = (
        str.__str__(before)
        if before and isinstance(before, str)
        else json.dumps(function["arguments"], ensure_ascii=False)
    )
    named = {**function, "arguments": text}
    return named if function is call else {**call, "function": named}


def plain_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Copies of the functions' JSON schemas; None where there are none."""
    if tools is None:
        return None
    _check_list(tools, "tools", "the JSON schemas of functions, or None")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise GristmillError(f"tools[{index}] must be an object, the JSON schema of a function")
    return [_plain(tool, f"tools[{index}]") for index, tool in enumerate(tools)] or None


def _check_list(value: Any, where: str, items: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise GristmillError(f"{where} is of type {type(value).__name__}; give a list of {items}")


def _plain_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise GristmillError(f"{where} must be an object with the strings `role` and `content`")
    plain: dict[str, Any] = _plain(message, where)
    if isinstance(plain.get("content"), list):
        plain["content"] = _joined(plain["content"], f"{where}.content")
    calls = plain.pop("tool_calls", None)
    if calls:  # templates ask whether the key is there
        if not isinstance(calls, list):
            raise GristmillError(f"{where}.tool_calls must be a list")
        plain["tool_calls"] = [_plain_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return plain


def _joined(parts: list[Any], where: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise GristmillError(
                f'{where}[{index}] must be {{"type": "text", "text": ...}}; chats here are of text alone'
            )
        texts.append(text)
    return "".join(texts)


def _plain_call(call: Any, where: str) -> dict[str, Any]:
    """A call with its arguments as an object; clients of the OpenAI API send them as a string of JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise GristmillError(f"{where} must be an object with the function's `name` and `arguments`")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise GristmillError(f"{where}: arguments are not valid JSON: {error}") from None
        arguments = _plain(parsed, f"{where}: arguments")
    if not isinstance(arguments, dict):
        raise GristmillError(f"{where}: arguments must be a JSON object")
    named = {**function, "arguments": arguments}
    return named if function is call else {**call, "function": named}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` rebuilt out of exactly str, int, float, bool, None, dict and list."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _plain_int(int.__int__(value), where)
    if isinstance(value, float):
        return float.__float__(value)
    if depth > MAX_DEPTH:
        raise GristmillError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise GristmillError(f"{where} has a key that is no string")
        return {str.__str__(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise GristmillError(f"{where} is of type {type(value).__name__}; chats are made of JSON values alone")


def _plain_int(value: int, where: str) -> int:
    try:
        str(value)
    except ValueError:  # Python writes and reads no longer ones
        raise GristmillError(
            f"{where} has more than {sys.get_int_max_str_digits()} digits; give it as a string"
        ) from None
    return value
