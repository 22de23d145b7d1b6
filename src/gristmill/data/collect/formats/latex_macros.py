"""TeX macros of a document: their definitions collected, their calls replaced, within limits.

Understood are `\\newcommand` and its kin with numbered arguments and one default, `\\def` with undelimited
arguments, `\\let`, and `\\DeclareMathOperator`. What programs TeX (`\\if`, `\\csname`, `\\expandafter`, delimited
arguments) is left alone. Calls are replaced wherever they stand, in formulas too, to a fixed depth and up to a fixed
amount of text, so no definition can make a document grow without end.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .base import BadInput

_MAX_DEPTH = 30
_MAX_GROWTH_BYTES = 4 << 20  # that expansion may add, beside four times the document
_MAX_CALLS = 500_000

_DEFINITION = re.compile(
    r"\\(?:(?:long|global|protected|outer)[ \t]*\\)*(?:(?P<new>(?:re)?newcommand|providecommand|DeclareRobustCommand|"
    r"DeclareMathOperator|newrobustcmd)\b\*?|(?P<plain>[gex]?def)(?=\\|[ \t]*\\)|(?P<let>let)(?=\\|[ \t]*\\)|"
    r"(?P<environment>(?:re)?newenvironment)\b\*?)\s*"
)
_NAME = re.compile(r"\{?\s*\\([a-zA-Z@]+|[^a-zA-Z\s])\s*\}?\s*")
_COUNT = re.compile(r"\[(\d)\]\s*")
_PARAMETERS = re.compile(r"((?:#\d)*)[ \t\n]*(?=\{)")
_LET = re.compile(r"\s*=?\s*(\\(?:[a-zA-Z@]+|[^a-zA-Z\s])|[^\s{}\\])")
_PROGRAM = re.compile(r"\\(?:if|csname|expandafter|futurelet|@ifnextchar|@ifstar|catcode|loop|@startsection|newcommand|"
                      r"def|renewcommand|futurelet|write|read)(?![a-z])|#[^1-9]")  # fmt: skip
_ARGUMENT = re.compile(r"#([1-9])")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_CALL = re.compile(r"\\([a-zA-Z@]+|[^a-zA-Z\s{}$%&#\\_^()\[\]])")
_SPACE = re.compile(r"[ \t]*(?:\n[ \t]*)?")
_WORD = re.compile(r"\\[a-zA-Z@]+")
_ENDS_IN_WORD = re.compile(r"\\[a-zA-Z@]+$")


class Macro(NamedTuple):
    """`body` is cut at its parameters: text, number, text, number, ..., text."""

    arguments: int
    default: str | None
    body: tuple[str, ...]


class Braces:
    """Where each `{` of a text is closed."""

    def __init__(self, text: str):
        self._close: dict[int, int] = {}
        opened: list[int] = []
        for match in _BRACES.finditer(text):
            brace = match.group()
            if brace == "{":
                opened.append(match.start())
            elif brace == "}" and opened:
                self._close[opened.pop()] = match.start()

    def end(self, start: int) -> int | None:
        """The place of the brace that closes the one at `start`, or None."""
        return self._close.get(start)


def collect_macros(text: str, kept: frozenset[str]) -> tuple[str, dict[str, Macro], set[str]]:
    """(the text without its definitions, the macros by name, environments that are defined to swallow their content).

    Names in `kept` are what the reader itself understands: their redefinitions are dropped, and not used."""
    braces = Braces(text)
    macros: dict[str, Macro] = {}
    swallowing: set[str] = set()
    pieces: list[str] = []
    position = 0
    for match in _DEFINITION.finditer(text):
        if match.start() < position:
            continue
        end = _definition(text, match, braces, macros, swallowing)
        if end is not None:
            pieces.append(text[position : match.start()])
            position = end
    pieces.append(text[position:])
    for name in kept & macros.keys():
        del macros[name]
    return "".join(pieces), macros, swallowing


def _definition(
    text: str, match: re.Match[str], braces: Braces, macros: dict[str, Macro], swallowing: set[str]
) -> int | None:
    """Note one definition and give the place behind it; None where it is not of a form that is understood."""
    if match.group("environment"):
        return _environment(text, match.end(), braces, swallowing)
    named = _NAME.match(text, match.end())
    if not named:
        return None
    name, position = named.group(1), named.end()
    if match.group("let"):
        meaning = _LET.match(text, named.end(1))
        if not meaning:
            return None
        value = meaning.group(1)
        if value != "\\" + name:
            macros[name] = (
                macros.get(value[1:], Macro(0, None, (value,))) if value[0] == "\\" else Macro(0, None, (value,))
            )
        return meaning.end()
    arguments, default = 0, None
    if match.group("plain"):
        parameters = _PARAMETERS.match(text, position)
        if not parameters:
            return None
        arguments, position = len(parameters.group(1)) // 2, parameters.end()
    elif counted := _COUNT.match(text, position):
        arguments, position = int(counted.group(1)), counted.end()
        if text.startswith("[", position):
            close = text.find("]", position, position + 1000)
            if close < 0:
                return None
            default = text[position + 1 : close]
            position = _after_space(text, close + 1)
    body, end = _group(text, position, braces)
    if body is None:
        return None
    if match.group("new") == "DeclareMathOperator":
        star = "*" if "*" in match.group() else ""
        body = f"\\operatorname{star}{{{body}}}"
    if _PROGRAM.search(body) or _calls(name, body):
        macros.pop(name, None)
    else:
        macros[name] = Macro(arguments, default, tuple(_ARGUMENT.split(body)))
    return end


def _calls(name: str, body: str) -> bool:
    """Whether a macro calls itself, which without a condition never ends."""
    return any(match.group(1) == name for match in _CALL.finditer(body))


def _environment(text: str, position: int, braces: Braces, swallowing: set[str]) -> int | None:
    """An environment's definition is passed over: those that are not known are unwrapped, whatever they stand for."""
    name, position = _group(text, position, braces)
    if name is None:
        return None
    position = _after_space(text, position)
    while text.startswith("[", position):
        close = text.find("]", position, position + 1000)
        if close < 0:
            return None
        position = _after_space(text, close + 1)
    begin, position = _group(text, position, braces)
    end, position = _group(text, _after_space(text, position), braces)
    if begin is None or end is None:
        return None
    if re.search(r"\\comment\b|\\begin\{comment\}|\\setbox|\\lrbox", begin):
        swallowing.add(name.strip())
    return position


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _group(text: str, position: int, braces: Braces) -> tuple[str | None, int]:
    """(what stands between the braces that open at `position`, the place behind them)."""
    end = braces.end(position)
    return (None, position) if end is None else (text[position + 1 : end], end + 1)


class Expander:
    """Replaces the calls of `macros` in a document. BadInput when they grow beyond the limits."""

    def __init__(self, macros: dict[str, Macro]):
        self._macros = macros
        self._calls = 0
        self._room = 0

    def expand(self, text: str) -> str:
        """The text with all calls replaced."""
        if not self._macros:
            return text
        self._room = 4 * len(text) + _MAX_GROWTH_BYTES
        return self._expand(text, 0)

    def _expand(self, text: str, depth: int) -> str:
        macros = self._macros
        pieces: list[str] = []
        position = 0
        braces: Braces | None = None
        for match in _CALL.finditer(text):
            macro = macros.get(match.group(1))
            if macro is None or match.start() < position:
                continue
            end = match.end()
            values: list[str] = []
            if macro.arguments:
                braces = braces or Braces(text)
                found = _arguments(text, end, macro, braces)
                if found is None:
                    continue
                values, end = found
            elif text.startswith("{}", end):  # ends the name, as in `\\eg{} this`
                end += 2
            body = self._fill(macro, values)
            if depth < _MAX_DEPTH and "\\" in body:
                body = self._expand(body, depth + 1)
            pieces += (text[position : match.start()], body)
            if body and text[end : end + 1].isalpha() and _ENDS_IN_WORD.search(body):
                pieces.append(" ")
            position = end
        if not pieces:
            return text
        pieces.append(text[position:])
        return "".join(pieces)

    def _fill(self, macro: Macro, values: list[str]) -> str:
        """The body with its parameters replaced; a value that would run into a command's name gets braces."""
        self._calls += 1
        body = macro.body[0]
        if values:
            pieces = [body]
            for number, literal in zip(macro.body[1::2], macro.body[2::2], strict=True):
                value = values[int(number) - 1] if int(number) <= len(values) else ""
                if value[:1].isalpha() and _ENDS_IN_WORD.search(pieces[-1]):
                    value = f"{{{value}}}"
                pieces += (value, literal)
            body = "".join(pieces)
        self._room -= len(body)
        if self._calls > _MAX_CALLS or self._room < 0:
            raise BadInput("has macros that expand to more than is read of such a file")
        return body


def _arguments(text: str, position: int, macro: Macro, braces: Braces) -> tuple[list[str], int] | None:
    """(the arguments of a call, the place behind them); None where the text ends first or a group stays open."""
    values: list[str] = []
    if macro.default is not None:
        values.append(macro.default)
        opening = _after_space(text, position)
        if text.startswith("[", opening):
            close = text.find("]", opening, opening + 1000)
            if close < 0:
                return None
            values[0], position = text[opening + 1 : close], close + 1
    while len(values) < macro.arguments:
        position = _after_space(text, position)
        first = text[position : position + 1]
        if first == "{":
            value, position = _group(text, position, braces)
            if value is None:
                return None
            values.append(value)
        elif first == "\\":
            command = _BRACES.match(text, position) if not text[position + 1 : position + 2].isalpha() else None
            command = command or _WORD.match(text, position)
            if command is None:
                return None
            values.append(command.group())
            position = command.end()
        elif first and first not in "}$\n":
            values.append(first)
            position += 1
        else:
            return None
    return values, position
