"""The keywords of JSON Schema (draft 2020-12) that structured output understands, and what each may hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

# Where schemas stand within a schema.
DEFINITIONS = ("$defs", "definitions")
IN_MAPS = ("properties", "patternProperties", *DEFINITIONS)
IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties")
IN_PLACE = {"anyOf", "oneOf", "allOf", "$ref"}  # schemas of the same value, not of a part of it

# Keywords that say nothing about what is valid.
ANNOTATIONS = {
    "$comment", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "deprecated", "description",
    "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip

_BEYOND = "no grammar can keep it"
# Keywords that somebody may well use, and why they cannot be served.
REFUSED = {
    "contains": _BEYOND,
    "dependentRequired": _BEYOND,
    "dependentSchemas": _BEYOND,
    "else": _BEYOND,
    "if": _BEYOND,
    "maxContains": _BEYOND,
    "minContains": _BEYOND,
    "not": _BEYOND,
    "propertyNames": "it is not supported; patternProperties can say the same",
    "then": _BEYOND,
    "unevaluatedItems": _BEYOND,
    "unevaluatedProperties": "it is not supported; additionalProperties may say the same",
    "uniqueItems": _BEYOND,
    "additionalItems": "it is of an older draft; write prefixItems and items",
    "nullable": 'it is no keyword of JSON Schema; write "type": [..., "null"]',
}


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _types(value: Any) -> bool:
    return bool(value) and all(name in TYPES for name in ([value] if isinstance(value, str) else value))


def _multiple(value: Any) -> bool:
    return _number(value) and value > 0


def _anything(value: Any) -> bool:
    return True


# Keyword -> its form in words, and whether a value has it.
FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "$defs": ("an object of schemas", lambda value: isinstance(value, dict)),
    "$ref": ("a reference within the schema: # and a JSON pointer", lambda value: _text(value) and value[:1] == "#"),
    "additionalProperties": ("a schema", _anything),
    "allOf": ("an array of schemas, not empty", _schemas),
    "anyOf": ("an array of schemas, not empty", _schemas),
    "const": ("a value", _anything),
    "definitions": ("an object of schemas", lambda value: isinstance(value, dict)),
    "enum": ("an array of values, not empty", lambda value: isinstance(value, list) and bool(value)),
    "exclusiveMaximum": ("a number", _number),
    "exclusiveMinimum": ("a number", _number),
    "format": (f"one of {', '.join(FORMATS)}", lambda value: _text(value) and value in FORMATS),
    "items": ("a schema; an array of schemas is prefixItems", lambda value: isinstance(value, dict | bool)),
    "maxItems": ("a whole number, 0 or more", _count),
    "maxLength": ("a whole number, 0 or more", _count),
    "maxProperties": ("a whole number, 0 or more", _count),
    "maximum": ("a number", _number),
    "minItems": ("a whole number, 0 or more", _count),
    "minLength": ("a whole number, 0 or more", _count),
    "minProperties": ("a whole number, 0 or more", _count),
    "minimum": ("a number", _number),
    "multipleOf": ("a number above 0", _multiple),
    "oneOf": ("an array of schemas, not empty", _schemas),
    "pattern": ("a regex", _text),
    "patternProperties": ("an object of schemas", lambda value: isinstance(value, dict)),
    "prefixItems": ("an array of schemas, not empty", _schemas),
    "properties": ("an object of schemas", lambda value: isinstance(value, dict)),
    "required": (
        "an array of strings",
        lambda value: isinstance(value, list) and all(_text(name) for name in value),
    ),
    "type": (f"one or more of {', '.join(TYPES)}", lambda value: isinstance(value, str | list) and _types(value)),
}
