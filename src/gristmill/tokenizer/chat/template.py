"""Chat templates: messages -> text, cut into special tokens and plain text.

A template is Jinja, as in Hugging Face's tokenizer directories, and is rendered in a sandbox (`sandbox`). Special
tokens come from the template alone, never from a message, a tool or a tool's result (`guard`).

`{% generation %} ... {% endgeneration %}` marks what the assistant wrote (the mask of the fine-tuning loss).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import nodes
from tokenizers import AddedToken

from gristmill.errors import GristmillError

from .guard import Piece, SpecialText
from .messages import Message, Tool, plain_messages, plain_tools, with_text_arguments
from .meter import TooCostly, metered
from .sandbox import sandbox


class _Marks(NamedTuple):
    """Characters that occur neither in the messages nor in the tools nor in the template."""

    guard: str
    start: str
    end: str
    stop: str


@dataclass(frozen=True)
class Rendering:
    """A rendered chat: pieces in order, and the `[start, end)` character spans that the assistant wrote."""

    pieces: list[Piece]
    generated: list[tuple[int, int]]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class ChatTemplate:
    """One template with the special tokens it may write.

    `origin` names the template in messages to the user; `variables` are the names it may print besides the messages
    (`bos_token` and the like). `has_generation`: whether it marks what the assistant writes. `uses_tools`: whether it
    asks for `tools`. `literals`: the strings and stretches of text in its source, comments left out.
    """

    def __init__(self, source: str, origin: str, variables: Mapping[str, str], specials: Sequence[AddedToken]):
        self.source, self.origin = source, origin
        self._variables = dict(variables)
        self._specials = SpecialText(specials)
        environment = sandbox()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except Exception as error:  # a template is foreign code: whatever goes wrong in it is its own fault
            raise GristmillError(f"{origin} is not a valid chat template: {error}") from None
        self.has_generation = any(node.name == "generation_start" for node in tree.find_all(nodes.Name))
        self.uses_tools = any(node.name == "tools" and node.ctx == "load" for node in tree.find_all(nodes.Name))
        constants = (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
        self.literals = (*constants, *(node.data for node in tree.find_all(nodes.TemplateData)))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
    ) -> Rendering:
        """Render a chat.

        A message's content is a string or a list of `{"type": "text", "text": ...}`, which are joined. `tools` are JSON
        schemas of functions; an assistant's message may hold `tool_calls`, and one of role `tool` a call's result.
        `add_generation_prompt` opens the assistant's turn at the end; `continue_final_message` leaves the last turn
        open behind its content, for the model to go on with it. A template gets the arguments of calls as objects, and
        as JSON text where it joins them to text. GristmillError where the template refuses the messages.
        """
        chat = plain_messages(messages)
        schemas = plain_tools(tools)
        if continue_final_message:
            if add_generation_prompt:
                raise GristmillError("add_generation_prompt and continue_final_message exclude each other; give one")
            _check_can_continue(chat)
        held = json.dumps([chat, schemas], ensure_ascii=False)
        texts = with_text_arguments(chat, messages) if any("tool_calls" in message for message in chat) else None
        held += json.dumps(texts, ensure_ascii=False)
        marks = _Marks(*_unused_characters(4, "".join([held, self.source, *self.literals, *self._variables.values()])))

        def protect(text: str) -> str:
            return self._specials.protect(text, marks.guard)

        chat, texts, schemas = (_map_strings(value, protect) for value in (chat, texts, schemas))
        if continue_final_message:
            for written in (chat, texts):
                if written is not None:  # the space tells whether the template keeps what ends a message
                    written[-1]["content"] += marks.stop + " "
        with metered(len(held)):
            marked = self._run(chat, texts, schemas, add_generation_prompt, marks)
        if continue_final_message:
            marked = self._left_open(marked, marks.stop)
        text, generated = _take_spans(marked, marks)
        return Rendering(list(self._specials.cut(text, marks.guard)), generated)

    @cached_property
    def turn_ends(self) -> tuple[str, ...]:
        """The special token that closes what the assistant writes; none where the template does not mark that, closes
        it by letters, or refuses a plain question and answer."""
        if not self.has_generation:
            return ()
        try:
            rendering = self.render([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
        except GristmillError:
            return ()
        text, position = rendering.text, 0
        for piece in rendering.pieces:
            position += len(piece.text)
            closes = any(
                start < position <= end and not text[position:end].strip() for start, end in rendering.generated
            )
            if piece.special is not None and closes:
                return (piece.special,)
        return ()

    def _run(
        self, chat: list[Any], texts: list[Any] | None, schemas: Any, add_generation_prompt: bool, marks: _Marks
    ) -> str:
        """`texts`: the chat with the arguments of its calls as JSON text, None where it has no calls."""
        try:
            return self._rendered(chat, schemas, add_generation_prompt, marks)
        except Exception as error:
            fault: Exception = error
        if texts is not None and isinstance(fault, TypeError):  # DeepSeek's templates: '```json' + arguments
            try:
                return self._rendered(texts, schemas, add_generation_prompt, marks)
            except Exception as error:
                chat, fault = texts, error
        place = self._place(chat, schemas, marks, fault)
        reason = re.sub(f"[{''.join(marks)}]", "", str(fault) or type(fault).__name__)
        raise GristmillError(f"{self.origin} cannot render these messages: {place}{reason}") from None

    def _rendered(self, chat: list[Any], schemas: Any, add_generation_prompt: bool, marks: _Marks) -> str:
        return self._template.render(
            **self._variables,
            messages=chat,
            tools=schemas,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            guard=marks.guard,
            generation_start=marks.start,
            generation_end=marks.end,
        )

    def _place(self, chat: list[Any], schemas: Any, marks: _Marks, error: Exception) -> str:
        """`messages[i]: ` where the template refuses message i first; empty where no message is at fault, and where the
        budget is spent before it is found.

        A bisection, since a long chat must not cost one rendering for each message.
        """

        def fails(count: int) -> bool:
            try:
                self._rendered(chat[:count], schemas, False, marks)
            except TooCostly:
                raise
            except Exception as other:
                return str(other) == str(error)
            return False

        good, bad = 0, len(chat)
        try:
            if isinstance(error, TooCostly) or fails(good) or not fails(bad):
                return ""
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (good, middle) if fails(middle) else (middle, bad)
        except TooCostly:
            return ""
        return f"messages[{good}]: "

    def _left_open(self, marked: str, stop: str) -> str:
        """What stands before the last message's end; without its white space where the template strips that."""
        text, found, rest = marked.rpartition(stop)
        if not found:
            raise GristmillError(f"{self.origin} does not write the last message's content, so it cannot be continued")
        return text if rest.startswith(" ") else text.rstrip()


def _check_can_continue(chat: list[dict[str, Any]]) -> None:
    if not chat or not isinstance(chat[-1].get("content"), str):
        raise GristmillError("continue_final_message needs a last message whose content is a string")
    if "tool_calls" in chat[-1]:
        raise GristmillError(f"messages[{len(chat) - 1}] ends in tool_calls, so its content cannot be continued")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it, and to keys but for plain names, which templates ask for."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key if key.isidentifier() else change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return value


def _unused_characters(count: int, text: str) -> list[str]:
    """Characters that `text` does not hold: rare ideographs, since `repr` would escape what is not printable."""
    present = set(text)
    rare = (chr(code) for code in range(0x20000, 0x40000))
    unused = list(islice((rarity for rarity in rare if rarity.isprintable() and rarity not in present), count))
    if len(unused) < count:
        raise GristmillError("messages and tools hold every ideograph from U+20000 on; leave four of them out")
    return unused


def _take_spans(marked: str, marks: _Marks) -> tuple[str, list[tuple[int, int]]]:
    """Remove the span marks. The spans count characters of the text without guards; one left open ends with it."""
    kept: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    opened: int | None = None
    for part in re.split(f"([{marks.start}{marks.end}])", marked):
        if part == marks.start:
            opened = position
        elif part == marks.end:
            if opened is not None:
                spans.append((opened, position))
            opened = None
        else:
            kept.append(part)
            position += len(part) - part.count(marks.guard)
    if opened is not None:
        spans.append((opened, position))
    return "".join(kept), spans
