"""Where a template's code is charged: the operators, literals, loops and output of its syntax tree, and its filters.

The tree is changed before it is compiled: what must be charged is passed through filters whose names, which begin with
a space, no template can write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from .meter import Each, look, made, spend, weight, written

MAX_LENGTH = 10_000_000
# Filters and tests that neither compare nor write out what the lists and objects that they are given hold.
_SHALLOW_FILTERS = frozenset(
    "attr batch count d default first items last length list map reject rejectattr reverse select selectattr "
    "slice".split()
)
_SHALLOW_TESTS = frozenset(
    "boolean callable defined divisibleby escaped even false filter float integer iterable mapping none number odd "
    "sameas sequence string test true undefined".split()
)
_TAKE_NUMBERS = frozenset("batch center indent round slice truncate".split())
# What no chat template uses, and what takes more time or makes more text than it is given.
UNUSED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")


class Metering(NodeTransformer):
    """Puts the charges into a template's tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _through(" each", node.iter)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _through(" seen", node.expr)
        for operand in node.ops:
            operand.expr = _through(" seen", operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_through(" written", part) for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _through(" made", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _through(" made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _through(" made", node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _through(" seen", pair.key)
        return _through(" made", node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it is output like the value of an expression


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def metered_filters(filters: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's filters, charged, and those of `Metering`."""
    found = {name: _metered(name, taking) for name, taking in filters.items() if name not in UNUSED_FILTERS}
    return found | {" each": _inner(Each), " made": _inner(made), " seen": _inner(_seen), " written": _inner(written)}


def metered_tests(tests: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's tests, charged."""

    def charged(name: str, taking: Callable[..., Any]) -> Callable[..., Any]:
        @pass_context
        @wraps(taking)
        def test(context: Context, *values: Any, **named: Any) -> Any:
            if name in _SHALLOW_TESTS:
                spend(0)
            else:
                look(*values, *named.values())
            return taking(*_passed(taking, context), *values, **named)

        return test

    return {name: charged(name, taking) for name, taking in tests.items()}


def check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"a template may make no value longer than {MAX_LENGTH:,} at one go")


def check_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, int):
            check_length(abs(value))


def _inner(taking: Callable[[Any], Any]) -> Callable[..., Any]:
    """Passing the context keeps a filter from being worked out while the template is compiled."""

    @pass_context
    def inner(context: Context, value: Any) -> Any:
        return taking(value)

    return inner


def _seen(value: Any) -> Any:
    look(value)
    return value


def _metered(name: str, taking: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    @wraps(taking)
    def metered(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        arguments = (*args, *named.values())
        if name in _TAKE_NUMBERS:
            check_numbers(*arguments)
        if name in _SHALLOW_FILTERS:
            spend(0)
        else:
            look(value, *arguments)
        if name == "join":
            value = value if hasattr(value, "__len__") else list(value)
            spend(len(value) * max(map(weight, arguments), default=0))
        elif name == "replace":
            check_replacing(str(value), *map(str, arguments[:2]))
        elif name == "indent":
            spend(str(value).count("\n") * max([1, *(_width(argument) for argument in arguments)]))
        elif name == "sum" and any(isinstance(argument, list | tuple) for argument in arguments):
            raise SecurityError("sum adds numbers; lists are joined by +")
        return made(taking(*_passed(taking, context), value, *args, **named))

    return metered


def check_replacing(text: str, old: str = "", new: str = "", *count: Any) -> None:
    """Charge a replacement before it is made."""
    spend(text.count(old) * len(new))


def _width(argument: Any) -> int:
    return len(argument) if isinstance(argument, str) else argument if isinstance(argument, int) else 0


def _passed(taking: Callable[..., Any], context: Context) -> tuple[Any, ...]:
    """What a filter or test of jinja2's asks for as its first argument, by its decorators."""
    wanted = getattr(taking, "jinja_pass_arg", None)
    if wanted is None:
        return ()
    return ({"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[wanted.name],)
