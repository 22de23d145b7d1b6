"""Chat templates: messages -> text, cut into special tokens and plain text.

A template is Jinja, as in Hugging Face's tokenizer directories, and is rendered in a sandbox. Its special tokens are
found in the rendered text, which also holds what users typed; so, before rendering, every special string inside a
message gets a guard character behind its first letter, and loses it again once the template's own tokens are found.
A user who types `<|im_end|>` gets its letters, and the text of all other messages reaches the template unchanged.

`{% generation %} ... {% endgeneration %}` marks what the assistant wrote (the mask of the fine-tuning loss).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken

from ..errors import GristmillError

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text; `special` is the special token it stands for, None for plain text."""

    text: str
    special: str | None


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
    (`bos_token` and the like).
    """

    def __init__(self, source: str, origin: str, variables: Mapping[str, str], specials: Sequence[AddedToken]):
        self.source, self.origin = source, origin
        self.has_generation = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None
        self._variables = dict(variables)
        self._guard = _Guard([token.content for token in specials])
        self._special = _special_pattern(specials)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise GristmillError(f"{origin} is not a valid chat template: {error}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendering:
        """Render a chat. GristmillError where the template refuses the messages."""
        _check(messages)
        guard, start, end = _unused_characters(3, json.dumps(messages, ensure_ascii=False, default=str) + self.source)
        try:
            marked = self._template.render(
                **self._variables,
                messages=_map_strings(messages, lambda text: self._guard(text, guard)),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                generation_start=start,
                generation_end=end,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise GristmillError(f"{self.origin} cannot render these messages: {error}") from None
        text, generated = _take_spans(marked, guard, start, end)
        return Rendering(list(self._cut(text, guard)), generated)

    def _cut(self, text: str, guard: str) -> Iterator[Piece]:
        """Cut at the special tokens, which hold no guard, and drop the guards from the text between them."""
        done = 0
        for match in self._special.finditer(text):
            if match.start() > done:
                yield Piece(text[done : match.start()].replace(guard, ""), None)
            assert match.lastindex is not None
            yield Piece(match[0], match[match.lastindex])
            done = match.end()
        if done < len(text):
            yield Piece(text[done:].replace(guard, ""), None)


class _GenerationTag(Extension):
    """`{% generation %}`: puts the variables `generation_start` and `generation_end` around its body."""

    tags = {"generation"}  # noqa: RUF012 (the name and type that jinja2 asks for)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening = nodes.Output([nodes.Name("generation_start", "load")])
        closing = nodes.Output([nodes.Name("generation_end", "load")])
        return nodes.Scope([opening, *body, closing]).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    """The filters and functions that Hugging Face's chat templates count on, and nothing else of Python."""

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _check(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise GristmillError(f"messages[{index}] must be an object with the strings `role` and `content`")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it but the keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _unused_characters(count: int, text: str) -> list[str]:
    """Characters of the private planes that `text` does not hold."""
    present = set(text)
    unused = (character for code in range(0xF0000, 0xFFFFE) if (character := chr(code)) not in present)
    return [next(unused) for _ in range(count)]


class _Guard:
    """Breaks up the special strings inside a text by a character behind their first letter.

    The beginning of one at the text's end is broken up too: what the template puts behind it, perhaps after it has
    stripped spaces, could make it whole.
    """

    def __init__(self, specials: Sequence[str]):
        longer = sorted(special for special in specials if len(special) > 1)
        whole = "|".join(f"{re.escape(special[0])}(?={re.escape(special[1:])})" for special in longer)
        self._whole = re.compile(whole or r"(?!)")
        self._beginnings = sorted({special[:length] for special in longer for length in range(1, len(special))})

    def __call__(self, text: str, guard: str) -> str:
        body = text.rstrip()
        firsts = {match.start() for match in self._whole.finditer(text)}
        firsts |= {len(body) - len(beginning) for beginning in self._beginnings if body.endswith(beginning)}
        for first in sorted(firsts, reverse=True):
            text = text[: first + 1] + guard + text[first + 1 :]
        return text


def _special_pattern(specials: Sequence[AddedToken]) -> re.Pattern[str]:
    """Matches the longest special token at a place, with the white space that it swallows; its group is the token."""
    ordered = sorted(specials, key=lambda token: (-len(token.content), token.content))
    alternatives = (
        (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
        for token in ordered
    )
    return re.compile("|".join(alternatives) or r"(?!)")


def _take_spans(marked: str, guard: str, start: str, end: str) -> tuple[str, list[tuple[int, int]]]:
    """Remove the span marks; the spans count characters of the text without guards."""
    kept: list[str] = []
    spans: list[tuple[int, int]] = []
    position = opened = 0
    for part in re.split(f"([{start}{end}])", marked):
        if part == start:
            opened = position
        elif part == end:
            spans.append((opened, position))
        else:
            kept.append(part)
            position += len(part) - part.count(guard)
    return "".join(kept), spans
