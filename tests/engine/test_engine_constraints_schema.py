"""JSON schemas: whatever a model would say, the reply parses and is valid; and what is said of a schema that cannot be
used."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from constraint_rooms import byte_level, constrained, sentencepiece, written

from gristmill.engine.constraints import Compiler
from gristmill.engine.sampling import RequestError
from gristmill.tokenizer.tokenizer import Tokenizer

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_level(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer, tokenizer.vocab_size)


def a_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A satisfiable schema at random, of bounded size."""
    shapes = ["string", "pattern", "integer", "number", "boolean", "enum", "const", "null", "format"]
    shapes += ["object", "object", "array", "anyOf", "tuple", "map", "ref"] if depth < 3 else []
    shape = rng.choice(shapes)
    inner = depth + 1
    if shape == "string":
        least = rng.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)}
    if shape == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-c]{1,4}$", "^x-[0-9]+$", "^(é|日本)?$"]), "maxLength": 12}
    if shape == "format":
        return {"type": "string", "format": rng.choice(["date", "date-time", "uuid", "ipv4"])}
    if shape == "integer":
        low = rng.randint(-300, 300)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}
    if shape == "number":
        return {"type": "number", "exclusiveMinimum": rng.choice([-2, 0.25]), "maximum": rng.choice([0.5, 17.5])}
    if shape == "enum":
        return {"enum": rng.sample([1, -2.5, "a", 'b"c', "日", None, True, [1, {"k": 2}]], rng.randint(1, 4))}
    if shape == "const":
        return {"const": rng.choice([{"z": 1, "a": [None, "x"]}, "né", 0, False])}
    if shape == "array":
        least = rng.randint(0, 2)
        return {
            "type": "array",
            "items": a_schema(rng, inner),
            "minItems": least,
            "maxItems": least + rng.randint(0, 2),
        }
    if shape == "tuple":
        parts = [a_schema(rng, inner) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "items": False}
    if shape == "map":
        return {"type": "object", "additionalProperties": a_schema(rng, inner), "maxProperties": 2}
    if shape == "anyOf":
        return {"anyOf": [a_schema(rng, inner) for _ in range(rng.randint(1, 3))]}
    if shape == "ref":
        return {"$defs": {"d": a_schema(rng, 3)}, "type": ["null", "boolean"], "title": "remark"}
    if shape == "object":
        names = rng.sample(["name", "b", "color", "a/b", 'q"', "né", "zz", "ab"], rng.randint(1, 4))
        required = [name for name in names if rng.random() < 0.6]
        return {"type": "object", "properties": {name: a_schema(rng, inner) for name in names}, "required": required}
    return {"type": shape}


def compact(text: str) -> bool:
    """No white space but one space behind a comma or a colon."""
    return not re.search(r"[\t\n\r]|(?<![,:]) ", _STRING.sub('""', text))


@pytest.mark.parametrize("seed", range(120))
def test_whatever_a_model_says_is_valid(compiler: Compiler, tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    schema = a_schema(rng)
    for _ in range(2):
        ids, ended = written(compiler, constrained(json_schema=schema), tokenizer.vocab_size, rng)
        text = tokenizer.decode(ids)
        assert ended, (schema, text)
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(["uuid", "ipv4"])).validate(
            value
        )
        assert compact(text), text
        assert len(ids) < 400


def test_the_order_of_properties_is_kept_and_no_others_come(compiler: Compiler, tokenizer: Tokenizer) -> None:
    names = ["zz", "b", "name", "a", "color"]
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}, "required": ["a", "b"]}
    seen = set()
    for seed in range(30):
        ids, _ = written(compiler, constrained(json_schema=schema), tokenizer.vocab_size, random.Random(seed))
        keys = tuple(json.loads(tokenizer.decode(ids)))
        assert keys == tuple(name for name in names if name in keys)
        seen.add(keys)
    assert len(seen) > 4


def test_a_name_does_not_come_again_in_another_spelling(compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": {"type": "integer"},
    }
    constraint = compiler.compile(constrained(json_schema=schema))
    assert constraint is not None
    table = tokenizer._table(True).later
    for text, fits in [('{"a":null,"ab":1}', True), ('{"a":null,"a":1}', False), (r'{"a":null,"\u0061":1}', False)]:
        matcher = constraint.start()
        assert all(matcher.accept(table.index(bytes([byte]))) for byte in text.encode()) == fits


def test_merged_objects_stay_open(compiler: Compiler, tokenizer: Tokenizer) -> None:
    parts = [{"type": "object", "properties": {name: {"type": "null"}}, "required": [name]} for name in ("a", "b")]
    ids, ended = written(compiler, constrained(json_schema={"allOf": parts}), tokenizer.vocab_size, random.Random(0))
    assert ended
    assert list(json.loads(tokenizer.decode(ids)))[:2] == ["a", "b"]


def test_lists_that_hold_lists_come_to_an_end(compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "$ref": "#/$defs/node"}
    for seed in range(5):
        ids, ended = written(compiler, constrained(json_schema=schema), tokenizer.vocab_size, random.Random(seed))
        assert ended
        json.loads(tokenizer.decode(ids))


def test_a_schema_as_text_is_the_same_constraint(compiler: Compiler) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    assert compiler.compile(constrained(json_schema=schema)) is compiler.compile(
        constrained(json_schema=json.dumps(schema))
    )
    turned = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
    assert compiler.compile(constrained(json_schema=schema)) is not compiler.compile(constrained(json_schema=turned))


def within(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}, "required": ["a/b"]}


AT = "/properties/a~1b/items"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (
            within({"type": "strin"}),
            f'json_schema at {AT}/type: it is "strin"; it must be one or more of null, boolean',
        ),
        (within({"uniqueItems": True}), f"json_schema at {AT}/uniqueItems: no grammar can keep it; take it out"),
        (within({"if": {}}), f"{AT}/if: no grammar"),
        (within({"foo": 1}), f"{AT}/foo: it is not a keyword that is understood here"),
        (within({"x-guidance": {"lenient": True}}), f"{AT}/x-guidance: it is not"),
        (within({"nullable": True}), f"{AT}/nullable: it is no keyword of JSON Schema"),
        (within({"type": "string", "pattern": "(?=a)b"}), f"{AT}/pattern: regex parse error"),
        (within({"type": "string", "pattern": "["}), f"{AT}/pattern: regex parse error"),
        (within({"format": "regex"}), f'{AT}/format: it is "regex"; it must be one of date-time'),
        (within({"minLength": "3"}), f'{AT}/minLength: it is "3"; it must be a whole number, 0 or more'),
        (within({"enum": []}), f"{AT}/enum: it is []; it must be an array of values, not empty"),
        (within({"enum": [1, {"k": ["a\x01"]}]}), f"{AT}/enum: it holds a control character"),
        (within({"properties": {"\x7f": {}}}), f"{AT}/properties: it holds a control character"),
        (within({"const": "\ud800"}), f"{AT}/const: it holds"),
        (within({"multipleOf": 0}), f"{AT}/multipleOf: it is 0; it must be a number above 0"),
        (within({"items": [{}]}), f"{AT}/items: a schema must stand there, not"),
        (within({"anyOf": [{}, 5]}), f"{AT}/anyOf: a schema must stand there at /1, not 5"),
        (within({"$ref": "#/$defs/x"}), f"{AT}/$ref: '#/$defs/x' leads to no schema"),
        (within({"$ref": "http://example.org/x"}), f'{AT}/$ref: it is "http://example.org/x"; it must be a reference'),
        (within({"minProperties": 2}), f"{AT}/minProperties: more than one name beyond"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "json_schema at /minimum: Unsatisfiable schema: minimum (5)"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "at /minItems: Unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "at /allOf: Unsatisfiable schema: incompatible types"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "at /required: Unsatisfiable"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "at /oneOf: oneOf constraints are not supported"),
        ({"$ref": "#"}, "at /$ref: only a value without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "/properties/a/$ref: only a value"),
        ({"$ref": "#/$defs/q", "$defs": {"q": {"pattern": "["}}}, "at /$defs/q/pattern: regex parse error"),
        ("{x", "json_schema is not JSON: "),
        ("[1]", "json_schema is [1]; a schema is a JSON object"),
        ({"maximum": float("nan")}, "json_schema is not JSON: NaN is no number of JSON"),
        ({"const": {1, 2}}, "json_schema cannot be written as JSON"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(compiler: Compiler, schema: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        compiler.compile(constrained(json_schema=schema))
    assert said in str(error.value)
    assert error.value.field == "json_schema"
    assert "\n" not in str(error.value)


def test_a_schema_that_is_far_too_deep_is_refused(compiler: Compiler) -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    for asked in (json.dumps({"items": json.loads('{"items":' * 200 + "{}" + "}" * 200)}), '{"items":' * 100_000):
        with pytest.raises(RequestError, match="json_schema"):
            compiler.compile(constrained(json_schema=asked))
    with pytest.raises(RequestError, match="json_schema"):
        compiler.compile(constrained(json_schema=schema))


def test_a_reply_of_a_kind_with_bytes_as_tokens_is_valid(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    compiler = Compiler(tokenizer, tokenizer.vocab_size)
    for seed in range(30):
        schema = a_schema(random.Random(seed))
        ids, ended = written(compiler, constrained(json_schema=schema), tokenizer.vocab_size, random.Random(seed))
        assert ended
        jsonschema.Draft202012Validator(schema).validate(json.loads(tokenizer.decode(ids)))
