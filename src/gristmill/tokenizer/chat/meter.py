"""What one rendering of a template may cost: a budget of characters, so that time and memory are bounded.

Everything that a template makes is charged: text by its characters, a list by its items, and each step by a little, so
that loops and macros that make nothing end too. A value that is written out or compared costs what it holds, each
part as often as it stands there: two letters, doubled forty times by `x = [x, x]`, are a million million. What can be
told beforehand is charged beforehand. How deep values are nested and how long whole numbers get is bounded as well,
since Python's C code calls itself for each level of the ones and takes the square of the other's length.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from types import GeneratorType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

BUDGET = 1 << 25  # characters that any rendering may make
BUDGET_PER_INPUT = 32  # and as many more for each character of the chat and its tools
STEP = 16
OBJECT = 64  # a list, a tuple or an object, besides its items
ITEM = 16  # of a list, a tuple or an object
MAX_NESTING = 200  # of lists and objects in each other: C code that hashes tuples has no bound of its own
MOST_BITS = 1 << 14  # of a whole number: Python reads and writes no longer ones
BITS = 4  # of a whole number for the price of a character
KEY_BITS = 60  # of a whole number as a key: beyond, as many as one likes have the same hash
LOOK = 16  # characters that are compared or searched for the price of one


class TooCostly(SecurityError):
    """The budget is spent."""


class _Meter:
    def __init__(self, budget: int):
        self.budget = self.left = budget


_METER: ContextVar[_Meter] = ContextVar("gristmill_chat_meter")


@contextmanager
def metered(inputs: int) -> Iterator[None]:
    """A fresh budget for all that is rendered of one chat of so many characters."""
    token = _METER.set(_Meter(BUDGET + BUDGET_PER_INPUT * inputs))
    try:
        yield
    finally:
        _METER.reset(token)


def spend(characters: int) -> None:
    """Charge a step that makes so many characters; TooCostly where they are not left."""
    meter = _METER.get()
    meter.left -= characters + STEP
    if meter.left < 0:
        raise TooCostly(
            f"a template may make values of {meter.budget:,} characters in all out of these messages, and it makes more"
        )


def weight(value: Any) -> int:
    """The characters that `value` has when it is written out, about; more than are left where it is more.

    SecurityError where lists and objects are nested more than `MAX_NESTING` deep.
    """
    if isinstance(value, str | bytes):
        return len(value)
    left, total = _METER.get().left, 0
    waiting = [(value, 0)]
    while waiting and total <= left:
        value, depth = waiting.pop()
        total += ITEM
        if isinstance(value, str | bytes):
            total += len(value)
            continue
        if isinstance(value, dict):
            inner: Any = chain(value.keys(), value.values())
        elif isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            inner = value
        elif isinstance(value, Namespace):
            inner = (object.__getattribute__(value, "_Namespace__attrs"),)
        else:
            total += value.bit_length() // BITS if isinstance(value, int) else 0
            continue
        if depth == MAX_NESTING:
            raise SecurityError(f"a template may nest lists and objects {MAX_NESTING} deep")
        waiting.extend((item, depth + 1) for item in inner)
    return total


def look(*values: Any) -> None:
    """Charge what is compared, searched or hashed."""
    for value in values:
        spend(len(value) // LOOK if isinstance(value, str | bytes) else weight(value))


def keys(values: Iterable[Any]) -> None:
    """Check what will be keys: text, small numbers and the like, which no template can give equal hashes."""
    for value in values:
        spend(0)
        if isinstance(value, int | float):
            if abs(value) >= 1 << KEY_BITS:
                raise SecurityError(f"a template may use no number of more than {KEY_BITS} bits as a key")
        elif value is not None and not isinstance(value, str | Undefined):
            raise SecurityError(f"a template may use text and numbers as keys, not a {type(value).__name__}")


def made(value: Any) -> Any:
    """Charge a new value, but not what its items hold: these are shared. The value, or the same items one by one."""
    if isinstance(value, str | bytes):
        spend(len(value))
    elif isinstance(value, int):
        check_bits(value.bit_length())
        spend(value.bit_length() // BITS)
    elif isinstance(value, list | tuple | dict | set):
        spend(OBJECT + ITEM * len(value))
    elif isinstance(value, GeneratorType):
        return map(made, value)
    else:
        spend(OBJECT)
    return value


def check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError(f"a template may make no whole number of more than {MOST_BITS:,} bits")


def written(value: Any) -> Any:
    """A value that is about to become text, charged."""
    if isinstance(value, str):
        spend(len(value))
        return value
    spend(weight(value))
    return str(value)


class Each:
    """What a loop goes through, each item a step. It has a length where `values` has."""

    def __init__(self, values: Any):
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            spend(0)
            yield value

    def __len__(self) -> int:
        return len(self._values)
