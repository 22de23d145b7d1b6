"""The Jinja environment of chat templates: what Hugging Face's templates count on, and nothing else of Python.

Templates come with models and are not trusted: they run in jinja2's immutable sandbox, which keeps them from private
attributes, from changing their arguments and from ranges beyond 100,000; there is no loader, so nothing is imported.
Ours refuses, besides, what makes a huge value at one go: a product, a power, or a width in a format or a method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

MAX_LENGTH = 10_000_000
# Where a width or a precision may stand in the left side of `%`: behind `%`, behind `%(name)` or behind the width.
_WIDTH = re.compile(r"[%).][-+ #0]*(\d+)")


class _GenerationTag(Extension):
    """`{% generation %}`: puts the variables `generation_start` and `generation_end` around its body."""

    tags = {"generation"}  # noqa: RUF012 (the name and type that jinja2 asks for)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening = nodes.Output([nodes.Name("generation_start", "load")])
        closing = nodes.Output([nodes.Name("generation_end", "load")])
        return nodes.Scope([opening, *body, closing]).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with bounds on results: text grows beyond MAX_LENGTH step by step only."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        elif operator == "*":
            _check_length(_product_length(left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_length(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Methods of text and numbers take widths: `ljust`, `zfill`, `to_bytes`."""
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str | bytes | int):
            _check_numbers(*args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        vformat, text, is_map = _Formatter(self).vformat, str(value.__self__), value.__name__ == "format_map"

        def bounded(*args: Any, **kwargs: Any) -> str:
            return vformat(text, (), *args) if is_map else vformat(text, args, kwargs)

        return bounded


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_length(sum(map(int, re.findall(r"\d+", format_spec))))
        return super().format_field(value, format_spec)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"a template may make no value longer than {MAX_LENGTH:,} at one go")


def _check_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, int):
            _check_length(value)


def _check_percent(form: str, values: Any) -> None:
    widths = sum(map(int, _WIDTH.findall(form)))
    if "*" in form and isinstance(values, tuple):  # a width among the values
        widths += sum(abs(value) for value in values if isinstance(value, int))
    _check_length(widths)


def _product_length(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    if isinstance(left, int):
        left, right = right, left
    return len(left) * right if isinstance(left, str | bytes | list | tuple) and isinstance(right, int) else 0


def _bounded(taking_width: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's that refuses huge numbers."""

    @wraps(taking_width)
    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_numbers(*args, *kwargs.values())
        return taking_width(value, *args, **kwargs)

    return bounded


def _percent(form: Any, *args: Any, **kwargs: Any) -> str:
    """The filter `format`."""
    if args and kwargs:
        raise TemplateError("format takes positional or named values, not both")
    _check_percent(str(form), args)
    return str(form) % (kwargs or args)


def sandbox() -> ImmutableSandboxedEnvironment:
    """A fresh environment. `render` must be given the characters `guard`, `generation_start` and `generation_end`."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.filters["format"] = _percent
    for name in ("batch", "center", "indent"):
        environment.filters[name] = _bounded(environment.filters[name])
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
    _check_numbers(indent)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii:
        guard = str(context["guard"])
        text = text.replace(json.dumps(guard)[1:-1], guard)
    return text


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
