"""What a request asks for as a grammar of llguidance, and its complaints as RequestErrors."""

from __future__ import annotations

import json
import re
from typing import Any

from ..sampling import STRUCTURES, RequestError, SamplingParams
from .forms import DEFINITIONS
from .matcher import brief
from .schema import OPTIONS, Schema, children, read_schema, refuse

# The model chooses how a text is cut into tokens, also where there is but one text: no token is forced or left out.
_UNFORCED = '\n%llguidance {"no_forcing": true}\n'
_LISTING = re.compile(r"\n\s*\d+ \| .*", re.DOTALL)  # lines of the grammar, which the client has


def wanted(params: SamplingParams) -> tuple[str, Any] | None:
    """Which field of structured output a request uses, and what it holds. RequestError where the request forbids the
    end of text, which must come once the output is complete."""
    asked = next(((name, value) for name in STRUCTURES if (value := getattr(params, name)) is not None), None)
    if asked is not None:
        for name in ("ignore_eos", "min_tokens"):
            if getattr(params, name):
                raise RequestError(
                    name, f"{name} and {asked[0]} contradict each other: a structured output ends when it is complete"
                )
    return asked


def grammar_of(field: str, text: str) -> str:
    """The checked grammar of one of `STRUCTURES`; a choice is given as a JSON array. RequestError names `field` and
    says what is wrong."""
    if field == "json_schema":
        return _of_schema(read_schema(text, field), field)
    if field == "choice":
        lark = f"start: /{_of_choice(json.loads(text))}/"
    elif field == "regex":
        lark = f"start: {_regex(text)}"
    else:
        lark = _of_ebnf(text)
    grammar = _written(lark)
    if problem := _problem(grammar):
        if "no tokenizer" in problem:
            problem = "it asks for special tokens (<...>); only text can be asked for"
        if field == "regex":
            problem = problem.partition(": ")[2]
        raise RequestError(field, f"{field} cannot be used: {problem}")
    return grammar


def _of_choice(choices: list[str]) -> str:
    for index, choice in enumerate(choices):
        if any("\ud800" <= letter <= "\udfff" for letter in choice):
            raise RequestError("choice", f"choice[{index}] holds half a surrogate pair, which UTF-8 cannot write")
    return "|".join("".join(f"\\x{{{ord(letter):x}}}" for letter in choice) for choice in choices)


def _regex(pattern: str) -> str:
    """A regex that must match the whole reply, so that the ^ and $ some write around it say nothing more."""
    if not pattern:
        raise RequestError("regex", "regex is empty; it must be a regex that the reply matches")
    pattern = pattern.removeprefix("^")
    slashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
    if pattern.endswith("$") and slashes % 2 == 0:
        pattern = pattern[:-1]
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(pattern, '')}/"


def _of_ebnf(text: str) -> str:
    """EBNF in either of two ways: `root ::= ...` (GBNF, as llama.cpp and others have it) or Lark's `start: ...`."""
    if not text.strip():
        raise RequestError("grammar", "grammar is empty; it must be a grammar in EBNF")
    if "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except RecursionError:
        raise RequestError("grammar", "grammar cannot be used: it is nested too deeply") from None
    except Exception as error:  # it raises bare Exception
        raise RequestError("grammar", f"grammar cannot be used: {error}") from None


def _of_schema(schema: Schema, field: str) -> str:
    if problem := _problem_of(schema):
        definitions = {name: schema[name] for name in DEFINITIONS if name in schema}
        pointer, keyword, problem = _locate(schema, "", problem, definitions)
        refuse(field, pointer, keyword, problem)
    return _written(f"start: %json {json.dumps(schema | {'x-guidance': OPTIONS})}")


def _locate(schema: Schema, pointer: str, problem: str, definitions: Schema) -> tuple[str, str, str]:
    """Where in a schema what is wrong stands: the innermost schema that alone is wrong too, the first keyword without
    which it is not, and what is said of it."""
    inner = [(step, child) for step, child in children(schema) if isinstance(child, dict)]
    for step, child in sorted(inner, key=lambda found: found[0].split("/")[1] not in DEFINITIONS):
        found = _problem_of(definitions | child)
        if found and (found in problem or ("nsatisfiable" in problem and "nsatisfiable" in found)):
            return _locate(child, pointer + step, found, definitions)
    keywords = sorted(schema, key=lambda keyword: keyword in ("type", "properties"))
    for keyword in keywords:
        if not _problem_of(definitions | {name: value for name, value in schema.items() if name != keyword}):
            return pointer, keyword, problem
    return pointer, keywords[0], problem


def _problem_of(schema: Schema) -> str:
    from llguidance import LLMatcher

    return _problem(LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS))


def _problem(grammar: str) -> str:
    """What llguidance says against a grammar, nothing where it is sound."""
    from llguidance import LLMatcher

    try:
        _, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its own is no Exception
        return brief(f"the grammar library failed: {error}")
    return brief("; ".join(_LISTING.sub("", message) for message in messages))


def _written(lark: str) -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_lark(lark + _UNFORCED))
