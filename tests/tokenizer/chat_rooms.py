"""What the chat tests share: tokenizers with each template, chats, and the templates said again in plain Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizer_rooms import HARD_TEXTS, VOCAB_SIZE, example_shards, turn

from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.train import train_on_texts

TEMPLATES = ("chatml", "llama3", "zephyr")
Chat = list[dict[str, Any]]


def train(out: Path, **options: Any) -> Path:
    """A small tokenizer with the special tokens and the template that a configuration asks for."""
    config = TokenizerConfig(**{"vocab_size": VOCAB_SIZE, **options})
    train_on_texts(config, [row["text"] for shard in example_shards() for row in shard], out)
    return out


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calls(content: str | None, *made: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": 'Adds "two" numbers <b>&</b> more, 水車.',
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b c": {"type": "number"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CONVERSATIONS: list[Chat] = [
    [turn("user", "Hi")],
    [turn("system", " Be brief. "), turn("user", "What is 12 + 30?"), turn("assistant", "42")],
    [turn("user", "q1"), turn("assistant", "a1"), turn("user", " q2\n"), turn("assistant", "\n  a2 🌾  \n")],
    [turn("assistant", "水車"), turn("assistant", ""), turn("user", ""), turn("system", "late")],
    [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(HARD_TEXTS[:-1])],
    [
        turn("system", " Count.\n"),
        turn("user", "1 + 1, and the time?"),
        calls(None, call("add", {"a": 1, "b c": "<1>é"}), call("now", {})),
        turn("tool", "2\n"),
        turn("tool", " noon 🌾 "),
        turn("assistant", " 2, at noon. "),
        turn("user", "And 2 + 2?"),
        calls(" Let me see:\n", call("add", {"a": 2, "b c": [2.5, None, True]})),
        turn("tool", "مرحبا 4.5"),
        turn("assistant", "4.5"),
    ],
]


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered chat: a special token or plain text, the assistant's (`mine`) or not."""

    text: str
    special: bool = False
    mine: bool = False


def reference(template: str, messages: Chat, tools: Sequence[Any] = (), prompt: bool = False) -> list[Part]:
    """The three templates in plain Python, on messages whose contents are strings or None."""
    parts = [Part("<|bos|>", special=True)]
    if tools:
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        head = "" if system is None else (system.strip() if template == "llama3" else system) + "\n\n"
        parts += _turn(template, "system", [*_tools_text(template, head, tools)])
        messages = messages[1:] if system is not None else messages
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "assistant":
            parts += _turn(template, "assistant", list(_reply(template, message)), mine=True)
        elif role == "tool" and template == "chatml":
            parts += _tool_results(messages, index)
        else:
            parts += _turn(template, role, [Part(content.strip() if template == "llama3" else content)])
    if prompt:
        parts += _turn(template, "assistant", [])[: {"chatml": 2, "llama3": 4, "zephyr": 2}[template]]
    return [part for part in parts if part.text]


def _turn(template: str, role: str, body: list[Part], mine: bool = False) -> list[Part]:
    if template == "chatml":
        head, end, behind = [Part("<|im_start|>", True), Part(role + "\n")], "<|im_end|>", "\n"
    elif template == "zephyr":
        head, end, behind = [Part(f"<|{role}|>", True), Part("\n")], "<|eos|>", "\n"
    else:
        name = Part("ipython" if role == "tool" else role)
        head = [Part("<|start_header_id|>", True), name, Part("<|end_header_id|>", True), Part("\n\n")]
        end, behind = "<|eot_id|>", ""
    return [*head, *body, Part(end, True, mine), Part(behind)]


def _tools_text(template: str, head: str, tools: Sequence[Any]) -> Iterator[Part]:
    tags = ("<tools>\n", "</tools>\n") if template == "chatml" else ("", "")
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
    yield Part(f"{head}You can call these functions, each given by its JSON schema:\n{tags[0]}{listed}{tags[1]}")
    yield Part("To call one, write:\n")
    if template == "llama3":
        yield Part('{"name": "the name", "parameters": {"an argument": "its value"}}')
    else:
        yield Part("<tool_call>", True)
        yield Part('\n{"name": "the name", "arguments": {"an argument": "its value"}}\n')
        yield Part("</tool_call>", True)


def _reply(template: str, message: dict[str, Any]) -> Iterator[Part]:
    reply = (message["content"] or "").strip()
    yield Part(reply, mine=True)
    for index, made in enumerate(message.get("tool_calls", [])):
        yield Part("\n" if reply or index else "", mine=True)
        name = json.dumps(made["function"]["name"], ensure_ascii=False)
        arguments = json.dumps(made["function"]["arguments"], ensure_ascii=False)
        if template == "llama3":
            yield Part(f'{{"name": {name}, "parameters": {arguments}}}', mine=True)
        else:
            yield Part("<tool_call>", True, True)
            yield Part(f'\n{{"name": {name}, "arguments": {arguments}}}\n', mine=True)
            yield Part("</tool_call>", True, True)


def _tool_results(messages: Chat, index: int) -> Iterator[Part]:
    if index == 0 or messages[index - 1]["role"] != "tool":
        yield from (Part("<|im_start|>", True), Part("user"))
    yield from (Part("\n"), Part("<tool_response>", True), Part(f"\n{messages[index]['content']}\n"))
    yield Part("</tool_response>", True)
    if index == len(messages) - 1 or messages[index + 1]["role"] != "tool":
        yield from (Part("<|im_end|>", True), Part("\n"))


SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|user|>", "</tool_call>"]
FRAGMENTS = st.lists(
    st.sampled_from(
        [*SPECIALS, "<", "<|", "|>", "im_end", "<|im_", "end|>", "s|>", " ", "\n", "\u0600", "🌾", '"', "é"]
    ),
    max_size=8,
)
CONTENT = st.one_of(st.text(max_size=20), FRAGMENTS.map("".join))
ARGUMENTS = st.dictionaries(CONTENT, st.one_of(CONTENT, st.integers(), st.booleans(), st.lists(CONTENT)), max_size=2)
CALLS = st.lists(st.builds(call, CONTENT, ARGUMENTS), min_size=1, max_size=2)
MESSAGES = st.lists(
    st.one_of(
        st.builds(turn, st.sampled_from(["system", "user", "assistant", "tool"]), CONTENT),
        st.builds(lambda content, made: calls(content, *made), st.one_of(st.none(), CONTENT), CALLS),
    ),
    max_size=5,
)
SCHEMAS = st.lists(
    st.builds(
        lambda name, text, properties: {"function": {"name": name, "description": text, "parameters": properties}},
        *(CONTENT, CONTENT, ARGUMENTS),
    ),
    max_size=2,
)
