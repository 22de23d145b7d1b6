"""Where a template's code is charged: the operators, literals, loops and output of its syntax tree, and its filters.

The tree is changed before it is compiled: what must be charged is passed through filters whose names, which begin with
a space, no template can write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from .meter import ITEM, Each, keys, look, made, spend, weight, written

MOST_CHARACTERS_TO_STRIP = 64  # each end of a text is compared with every one of them
MOST_DIGITS = 400  # behind the point, which is as many as a float has
# The filters that published templates use, and their like. What is not here has not been weighed.
FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum "
    "title tojson trim unique upper".split()
)
# Those that neither compare nor write out what the lists and objects that they are given hold.
_SHALLOW_FILTERS = frozenset(
    "attr count d default first items last length list map reject rejectattr reverse select selectattr".split()
)
# Those that make a list of a text, and `title`, which makes one of its words.
_LISTING = frozenset("dictsort groupby join list map max min reverse sort sum title unique".split())
_SHALLOW_TESTS = frozenset(
    "boolean callable defined divisibleby escaped even false filter float integer iterable mapping none number odd "
    "sameas sequence string test true undefined".split()
)


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
            pair.key = _through(" key", pair.key)
        return _through(" made", node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it is output like the value of an expression


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def metered_filters(filters: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's filters, charged, and those of `Metering`."""
    found = {name: _metered(name, taking) for name, taking in filters.items() if name in FILTERS}
    charges = {" each": Each, " key": _key, " made": made, " seen": _seen, " written": written}
    return found | {name: _inner(charge) for name, charge in charges.items()}


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


def _inner(taking: Callable[[Any], Any]) -> Callable[..., Any]:
    """Passing the context keeps a filter from being worked out while the template is compiled."""

    @pass_context
    def inner(context: Context, value: Any) -> Any:
        return taking(value)

    return inner


def _seen(value: Any) -> Any:
    look(value)
    return value


def _key(value: Any) -> Any:
    keys([value])
    return _seen(value)


def _metered(name: str, taking: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    @wraps(taking)
    def metered(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        arguments = (*args, *named.values())
        if name in _SHALLOW_FILTERS:
            spend(0)
        else:
            value = list(value) if isinstance(value, Iterator) else value
            look(value, *arguments)
        if name in _LISTING and isinstance(value, str):
            spend(ITEM * len(value))
        _charge_before(name, value, arguments)
        return made(taking(*_passed(taking, context), value, *args, **named))

    return metered


def _charge_before(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    """Charge what a filter will make of `value`, where that may be more than it is given."""
    if name == "join":
        spend(len(value) * max(map(weight, arguments), default=0))
    elif name == "replace":
        charge_replacing(str(value), *map(str, arguments[:2]))
    elif name == "trim":
        check_stripped(*arguments)
    elif name == "indent":
        width = max([1, *(_width(argument) for argument in arguments)])
        spend(width * (len(str(value).splitlines()) + 1))
    elif name == "round" and any(isinstance(argument, int) and abs(argument) > MOST_DIGITS for argument in arguments):
        raise SecurityError(f"round takes at most {MOST_DIGITS} digits")
    elif name == "sum" and any(isinstance(argument, list | tuple) for argument in arguments):
        raise SecurityError("sum adds numbers; lists are joined by +")
    elif name == "unique":
        if len(arguments) - sum(isinstance(argument, bool) for argument in arguments):
            raise SecurityError("unique takes no attribute; put map(attribute=...) before it")
        keys(value)


def charge_replacing(text: str, old: str = "", new: str = "", *count: Any) -> None:
    """Charge a replacement before it is made."""
    spend(text.count(old) * len(new))


def check_stripped(characters: Any = None, *rest: Any) -> None:
    """Refuse to strip by a long list of characters."""
    if isinstance(characters, str) and len(characters) > MOST_CHARACTERS_TO_STRIP:
        raise SecurityError(f"a template may strip at most {MOST_CHARACTERS_TO_STRIP} different characters")


def _width(argument: Any) -> int:
    return len(argument) if isinstance(argument, str) else argument if isinstance(argument, int) else 0


def _passed(taking: Callable[..., Any], context: Context) -> tuple[Any, ...]:
    """What a filter or test of jinja2's asks for as its first argument, by its decorators."""
    wanted = getattr(taking, "jinja_pass_arg", None)
    if wanted is None:
        return ()
    return ({"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[wanted.name],)
