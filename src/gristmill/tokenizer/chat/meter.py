"""What one rendering of a template may cost: a budget of characters, so that time and memory are bounded.

Everything that a template makes is charged: text by its characters, a list by its items, and each step by a little, so
that loops and macros that make nothing end too. A value that is written out or compared costs what it holds, each
part as often as it stands there: two letters, doubled forty times by `x = [x, x]`, are a million million.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

BUDGET = 1 << 25  # characters that any rendering may make
BUDGET_PER_INPUT = 32  # and as many more for each character of the chat and its tools
STEP = 8
ITEM = 16  # of a list, a tuple or an object
MOST_BITS = 1 << 14  # of a whole number: Python reads and writes no longer ones
LOOK = 16  # characters that are compared or searched for the price of one


class TooCostly(SecurityError):
    """The budget is spent."""


class _Meter:
    def __init__(self, budget: int):
        self.budget = self.left = budget


_METER: ContextVar[_Meter] = ContextVar("gristmill_chat_meter")


@contextmanager
def metered(inputs: int) -> Iterator[None]:
    """A fresh budget for one rendering of a chat of so many characters."""
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
    """The characters that `value` has when it is written out, about; more than are left where it is more."""
    if isinstance(value, str | bytes):
        return len(value)
    left, total = _METER.get().left, 0
    waiting = [value]
    while waiting and total <= left:
        value = waiting.pop()
        total += ITEM
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, dict):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            waiting.extend(value)
        elif isinstance(value, Namespace):
            waiting.append(object.__getattribute__(value, "_Namespace__attrs"))
    return total


def look(*values: Any) -> None:
    """Charge what is compared, searched or hashed."""
    for value in values:
        spend(len(value) // LOOK if isinstance(value, str | bytes) else weight(value))


def made(value: Any) -> Any:
    """Charge a new value, but not what its items hold: these are shared. The value, or the same items one by one."""
    if isinstance(value, str | bytes):
        spend(len(value))
    elif isinstance(value, int):
        check_bits(value.bit_length())
        spend(0)
    elif isinstance(value, list | tuple | dict | set):
        spend(ITEM * len(value))
    elif isinstance(value, GeneratorType):
        return map(made, value)
    else:
        spend(0)
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
