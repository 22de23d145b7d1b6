"""The Jinja environment of chat templates: what Hugging Face's templates count on, and nothing else of Python.

Templates come with models and are not trusted: they run in jinja2's immutable sandbox, which keeps them from private
attributes, from changing their arguments and from ranges beyond 100,000; there is no loader, so nothing is imported.
Ours refuses, besides, what makes a huge value at one go (a product, a power, a width in a format or a method), and all
that a rendering does is charged to a budget (`meter`), so that no value grows without end step by step either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from .meter import Each, check_bits, look, made, spend, weight, written
from .metering import Metering, check_length, check_numbers, check_replacing, metered_filters, metered_tests

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
    """jinja2's sandbox with bounds on results, and every step charged."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        tree = Metering().visit(source)
        return super()._generate(tree.set_environment(self), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * right)
        return made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A key is hashed, and written out where it is not found."""
        look(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Methods of text and numbers take widths: `ljust`, `zfill`, `to_bytes`."""
        result_weight: Callable[[Any], Any] = made
        if isinstance(__obj, BuiltinMethodType):
            owner = __obj.__self__
            if isinstance(owner, str | bytes | int):
                check_numbers(*args, *kwargs.values())
                args = _check_method(owner, __obj.__name__, args, kwargs)
                result_weight = _all_made
            look(*args, *kwargs.values(), *([] if isinstance(owner, dict) else [owner]))
        elif isinstance(__obj, LoopContext):  # a recursive loop goes on with other values
            args = (Each(args[0]), *args[1:]) if args else args
        elif isinstance(getattr(__obj, "__self__", None), LoopContext):
            look(*args)
        return result_weight(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        vformat, text, is_map = _Formatter(self).vformat, str(value.__self__), value.__name__ == "format_map"

        def bounded(*args: Any, **kwargs: Any) -> str:
            spend(len(text) + text.count("{") * weight([args, kwargs]))
            return str(made(vformat(text, (), *args) if is_map else vformat(text, args, kwargs)))

        return bounded


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        check_length(sum(map(int, re.findall(r"\d+", format_spec))))
        return super().format_field(value, format_spec)


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Charge methods whose result may be the product of what they are given; the arguments to go on with."""
    if name == "replace":
        if isinstance(owner, str) and all(isinstance(part, str) for part in args[:2]):
            check_replacing(owner, *args)
        else:
            spend(len(owner) * max(map(weight, args), default=0))
    elif name == "join" and args:
        args = (list(args[0]),)
        spend(len(owner) * len(args[0]))
    elif name == "translate":
        spend(len(owner) * sum(map(weight, args)))
    elif name == "expandtabs":
        spend(len(owner) * max([8, *(size for size in (*args, *kwargs.values()) if isinstance(size, int))]))
    return args


def _all_made(value: Any) -> Any:
    """Charge what a method of text gives: all that lists hold is new."""
    if isinstance(value, list | tuple):
        spend(weight(value))
        return value
    return made(value)


def _check_percent(form: str, values: Any) -> None:
    widths = sum(map(int, _WIDTH.findall(form)))
    if "*" in form and isinstance(values, tuple):  # a width among the values
        widths += sum(abs(value) for value in values if isinstance(value, int))
    check_length(widths)
    spend(form.count("%") * weight(values) + widths)


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
        return
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, str | bytes | list | tuple) and isinstance(right, int):
        check_length(len(left) * right)


def _percent(form: Any, *args: Any, **kwargs: Any) -> str:
    """The filter `format`."""
    if args and kwargs:
        raise TemplateError("format takes positional or named values, not both")
    _check_percent(str(form), kwargs or args)
    return str(form) % (kwargs or args)


@pass_context
def _output(context: Context, value: Any) -> Any:
    """Everything that is output goes through here."""
    return written(value)


def sandbox() -> ImmutableSandboxedEnvironment:
    """A fresh environment. `render` must be given the characters `guard`, `generation_start` and `generation_end`, and
    be called within `meter.metered`."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        optimized=False,
        finalize=_output,
    )
    environment.filters = metered_filters({**environment.filters, "tojson": _to_json, "format": _percent})
    tests: dict[str, Any] = {**environment.tests}
    environment.tests.update(metered_tests(tests))
    del environment.globals["lipsum"]
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
    check_numbers(indent)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None and separators is None:
        text = encoder.encode(value)
    else:
        parts = []
        for part in encoder.iterencode(value):  # what stands between items may be long
            spend(len(part))
            parts.append(part)
        text = "".join(parts)
    if ensure_ascii:
        guard = str(context["guard"])
        text = text.replace(json.dumps(guard)[1:-1], guard)
    return text


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(written(message)))
