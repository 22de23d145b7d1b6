"""JSON schemas: what of them is understood, checked before a grammar is made.

llguidance takes keywords it does not know for remarks and says of a mistake what it is, not where. So every schema is
walked first: each keyword must be known and hold a value of its form, references must lead somewhere, and some finite
value must satisfy it. RequestError says what is wrong, and where as a JSON pointer (RFC 6901).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from ..sampling import RequestError
from .forms import ANNOTATIONS, DEFINITIONS, FORMS, IN_LISTS, IN_MAPS, IN_PLACE, REFUSED, SINGLE

MAX_DEPTH = 100  # of objects and arrays within each other
# Compact: the one space that most writers of JSON put behind a comma and a colon may stand there, nothing else. Without
# escapes of the form \u0061 no name of an object can come again in another spelling.
OPTIONS: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
}

Schema = dict[str, Any]
_UNWRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")
_FALSE: Schema = {"enum": []}  # stands for the schema `false`, which nothing satisfies


def read_schema(text: str, field: str) -> Schema:
    """A checked schema as it goes into the grammar, from its JSON. RequestError names `field`, and the keyword by its
    place.

    An object that lists `properties` and says nothing of others is closed: no model strays into names of its own. (What
    is left is what the schema allows too.) Not so where objects are merged: `allOf`, or `anyOf`, `oneOf` or `$ref` with
    other keywords beside them.
    """
    try:
        root = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(field, f"{field} is not JSON: {error}") from None
    if not isinstance(root, dict):
        raise RequestError(field, f"{field} is {text[:40]}; a schema is a JSON object")
    nodes = dict(_walk(root, "", field, 0))
    for pointer, node in nodes.items():
        _check_keywords(node, pointer, field)
    for pointer, node in nodes.items():
        if "$ref" in node and _target(node) not in nodes:
            refuse(field, pointer, "$ref", f"{node['$ref']!r} leads to no schema within this one")
    _check_finite(nodes, field)
    if not any(_merges(node) for node in nodes.values()):
        _close(nodes)
    return root


def pointer_to(*steps: str) -> str:
    """The steps of a JSON pointer, each with the slash before it."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def children(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The schemas directly within one, each by its JSON pointer from there."""
    for key, value in schema.items():
        if key in IN_MAPS and isinstance(value, dict):
            yield from ((pointer_to(key, name), child) for name, child in value.items())
        elif key in IN_LISTS and isinstance(value, list):
            yield from ((f"/{key}/{index}", child) for index, child in enumerate(value))
        elif key in SINGLE:
            yield f"/{key}", value


def _walk(schema: Schema, pointer: str, field: str, depth: int) -> Iterator[tuple[str, Schema]]:
    if depth > MAX_DEPTH:
        raise RequestError(field, f"{field} is more than {MAX_DEPTH} schemas deep")
    yield pointer, schema
    for step, child in children(schema):
        if isinstance(child, dict):
            yield from _walk(child, pointer + step, field, depth + 1)
        elif isinstance(child, bool):
            yield pointer + step, {} if child else _FALSE
        else:
            keyword, _, within = step[1:].partition("/")
            where = f" at /{within}" if within else ""
            refuse(field, pointer, keyword, f"a schema must stand there{where}, not {json.dumps(child)[:40]}")


def _check_keywords(node: Schema, pointer: str, field: str) -> None:
    if node is _FALSE:
        return
    for keyword, value in node.items():
        if keyword in ANNOTATIONS:
            continue
        if keyword not in FORMS:
            why = REFUSED.get(keyword, "it is not a keyword that is understood here")
            refuse(field, pointer, keyword, f"{why}; take it out")
        form, fits = FORMS[keyword]
        if not fits(value):
            refuse(field, pointer, keyword, f"it is {json.dumps(value)[:60]}; it must be {form}")
    names = node.get("properties", {})
    for keyword, told in (("enum", node.get("enum")), ("const", node.get("const")), ("properties", [*names])):
        if any(_UNWRITTEN.search(text) for text in _strings(told)):
            refuse(
                field,
                pointer,
                keyword,
                "it holds a control character that JSON writes as \\u and digits, as no reply can",
            )
    if names and node.get("patternProperties"):
        refuse(field, pointer, "patternProperties", "it cannot stand beside properties")
    least = node.get("minProperties", 0)
    if least > 1 and least > len(set(node.get("required", ()))) + 1:
        refuse(
            field,
            pointer,
            "minProperties",
            "more than one name beyond those in required cannot be asked for, as they might repeat",
        )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(part)


def _check_finite(nodes: Mapping[str, Schema], field: str) -> None:
    """Refuse a schema that only an endless value satisfies, such as a list's end that is a required list's end."""
    finite: set[str] = set()
    grown = True
    while grown:
        found = {pointer for pointer, node in nodes.items() if pointer not in finite and _finite(node, pointer, finite)}
        finite |= found
        grown = bool(found)
    if "" in finite:
        return
    endless = next((p for p, node in nodes.items() if p not in finite and "$ref" in node), None)
    if endless is not None:  # else it is unsatisfiable for another reason, which the grammar's maker tells
        refuse(field, endless, "$ref", "only a value without end satisfies it: it comes back to itself")


def _finite(node: Schema, pointer: str, finite: set[str]) -> bool:
    """Whether `node` has a finite value, given that those at `finite` have one. Other contradictions are let pass."""
    if "$ref" in node and _target(node) not in finite:
        return False
    if any(f"{pointer}/allOf/{index}" not in finite for index in range(len(node.get("allOf", ())))):
        return False
    if node is _FALSE:
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in node and not any(f"{pointer}/{keyword}/{i}" in finite for i in range(len(node[keyword]))):
            return False
    types = node.get("type", ["null"])
    types = {types} if isinstance(types, str) else set(types)
    if "object" in types and len(types) == 1:
        listed = node.get("properties", {})
        return all(
            pointer + pointer_to("properties", name) in finite for name in node.get("required", ()) if name in listed
        )
    if "array" in types and len(types) == 1 and (least := node.get("minItems", 0)):
        first = len(node.get("prefixItems", ()))
        needed = [f"{pointer}/prefixItems/{index}" for index in range(min(first, least))]
        needed += [f"{pointer}/items"] if least > first and "items" in node else []
        return all(place in finite for place in needed)
    return True


def _target(node: Schema) -> str:
    return unquote(node["$ref"].removeprefix("#"))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _merges(node: Schema) -> bool:
    used = {key for key in node if key not in ANNOTATIONS and key not in DEFINITIONS}
    return "allOf" in used or (len(used) > 1 and bool(used & IN_PLACE))


def _close(nodes: Mapping[str, Schema]) -> None:
    for node in nodes.values():
        names = node.get("properties")
        if names and "additionalProperties" not in node and "minProperties" not in node:
            node.update({} if set(node.get("required", ())) - set(names) else {"additionalProperties": False})


def refuse(field: str, pointer: str, keyword: str, why: str) -> NoReturn:
    """RequestError about a keyword of the schema at `pointer`."""
    raise RequestError(field, f"{field} at {pointer}{pointer_to(keyword)}: {why}")
