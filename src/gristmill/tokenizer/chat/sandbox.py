"""The Jinja environment of chat templates: what Hugging Face's templates count on, and nothing else of Python.

Templates come with models and are not trusted: they run in jinja2's immutable sandbox, which keeps them from private
attributes, from changing their arguments and from ranges beyond 100,000; there is no loader, so nothing is imported.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _GenerationTag(Extension):
    """`{% generation %}`: puts the variables `generation_start` and `generation_end` around its body."""

    tags = {"generation"}  # noqa: RUF012 (the name and type that jinja2 asks for)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening = nodes.Output([nodes.Name("generation_start", "load")])
        closing = nodes.Output([nodes.Name("generation_end", "load")])
        return nodes.Scope([opening, *body, closing]).set_lineno(line)


def sandbox() -> ImmutableSandboxedEnvironment:
    """A fresh environment. `render` must be given the characters `guard`, `generation_start` and `generation_end`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes for HTML. A guard in it stays a guard where other characters become ASCII."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii:
        guard = str(context["guard"])
        text = text.replace(json.dumps(guard)[1:-1], guard)
    return text


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
