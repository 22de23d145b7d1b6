"""The Jinja environment of chat templates: what Hugging Face's templates count on, and nothing else of Python.

Templates come with models and are not trusted: they run in jinja2's immutable sandbox, which keeps them from private
attributes, from changing their arguments and from ranges beyond 100,000; there is no loader, so nothing is imported.
Ours has, besides, only the filters (`metering`) and methods that templates use, since each must be known not to take
much more time than what it is charged; and all that a rendering does is charged to a budget (`meter`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace

from .meter import ITEM, Each, check_bits, keys, look, made, spend, weight, written
from .metering import Metering, charge_replacing, check_stripped, metered_filters, metered_tests

# The methods there are. `rfind`, `rsplit` and the like are not: they take the product of both lengths.
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (
        str,
        frozenset(
            "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle "
            "isupper join lower lstrip removeprefix removesuffix replace rstrip split splitlines startswith strip "
            "title upper".split()
        ),
    ),
    (dict, frozenset("get items keys values".split())),
    (LoopContext, frozenset({"changed", "cycle"})),
    (Cycler, frozenset({"next", "reset"})),
)
MOST_WIDTH = 400  # of a field in the left side of `%`, and of a level of JSON
LONGEST_DATE = 200
# Where a width or a precision may stand in the left side of `%`: behind `%`, behind `%(name)` or behind the width.
_WIDTH = re.compile(r"[%).][-+ #0]*(\*|\d+)")


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
            _charge_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * right)
        return made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A key is hashed, and written out where it is not found."""
        look(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is not None:
            _check_method(owner, __obj.__name__)
            look(*args, *kwargs.values())
            if isinstance(owner, str):
                return _called_on_text(owner, __obj, args, kwargs, super().call, __context)
        elif isinstance(__obj, LoopContext):  # a recursive loop goes on with other values
            args = (Each(args[0]), *args[1:]) if args else args
        elif __obj is dict or __obj is Namespace:
            args = tuple(_pairs(arg) for arg in args)
        return made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` need not be made safe where no method of that name can be called."""


def _check_method(owner: Any, name: str) -> None:
    for kind, names in _METHODS:
        if isinstance(owner, kind) and name in names:
            return
    raise SecurityError(f"a template may not call the method {name} of a {type(owner).__name__}")


def _called_on_text(
    owner: str,
    method: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: Callable[..., Any],
    context: Context,
) -> Any:
    """Call a method of text, and charge what it makes before it makes it."""
    name = method.__name__
    look(owner)
    if name == "replace" and all(isinstance(part, str) for part in args[:2]):
        charge_replacing(owner, *args)
    elif name == "join" and args:
        args = (list(args[0]),)
        look(args[0])
        spend(len(owner) * len(args[0]))
    elif name == "split":
        separator = args[0] if args else kwargs.get("sep")
        spend(ITEM * (owner.count(separator) if isinstance(separator, str) else len(owner) // 2))
    elif name == "splitlines":
        spend(ITEM * len(owner))
    elif name.endswith("strip"):
        check_stripped(*args)
    result = call(context, method, *args, **kwargs)
    if isinstance(result, list):  # all that it holds is new
        spend(weight(result))
        return result
    return made(result)


def _pairs(value: Any) -> Any:
    """What `dict` and `namespace` are given: an object, or pairs, whose first halves become keys."""
    if isinstance(value, dict):
        spend(ITEM * len(value))
        return value
    pairs = [tuple(pair) for pair in Each(value)]
    look(pairs)
    keys(pair[0] for pair in pairs if pair)
    return pairs


def _check_percent(form: str, values: Any) -> None:
    for width in _WIDTH.findall(form):
        if width == "*" or len(width) > 5 or int(width) > MOST_WIDTH:
            raise SecurityError(f"a template may make no field in a format wider than {MOST_WIDTH}")
    spend(form.count("%") * (weight(values) + MOST_WIDTH))


def _charge_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
        return
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        spend(len(left) * max(right, 0) * (1 if isinstance(left, str) else ITEM))


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
    environment.globals["strftime_now"] = _strftime_now
    return environment


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes for HTML. A guard in it stays a guard where other characters become ASCII."""
    if ensure_ascii:
        spend(12 * weight(value))
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > MOST_WIDTH:
        raise SecurityError(f"tojson indents by at most {MOST_WIDTH}")
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


def _strftime_now(form: str) -> str:
    if len(form) > LONGEST_DATE:
        raise SecurityError(f"strftime_now takes at most {LONGEST_DATE} characters")
    return datetime.now().strftime(form)
