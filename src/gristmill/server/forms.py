"""The form that a request wants its reply in: OpenAI's `response_format`, and `structured_outputs` as vLLM takes it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..engine.sampling import STRUCTURES, RequestError
from .errors import ApiError

ANY_OBJECT = {"type": "object"}


class StructuredOutputs(BaseModel):
    """One of these alone."""

    model_config = ConfigDict(strict=True, extra="allow")

    schema_: dict[str, Any] | str | None = Field(default=None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = Field(default=None, description="The whole reply matches it.")
    choice: list[str] | None = Field(default=None, description="The reply is one of these.")
    grammar: str | None = Field(default=None, description="The reply is one of this EBNF grammar.")
    json_object: bool | None = Field(default=None, description="The reply is some JSON object.")

    def fields(self) -> dict[str, Any]:
        """The form as `SamplingParams` names it; ApiError where there is none, or more than one."""
        unknown = [name for name, value in (self.model_extra or {}).items() if value is not None]
        if unknown:
            message = f"structured_outputs has an unknown field {json.dumps(unknown[0])}"
            raise ApiError(400, message, "structured_outputs", "unknown_parameter")
        given = {
            "json_schema": self.schema_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object or None,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            message = "structured_outputs must hold one of json, regex, choice, grammar and json_object"
            raise ApiError(400, message, "structured_outputs", "invalid_value")
        return {"json_schema": ANY_OBJECT} if "json_object" in given else given


def form_of(response_format: dict[str, Any] | None, outputs: StructuredOutputs | None) -> dict[str, Any]:
    """The form as `SamplingParams` names it, empty where the reply is free; ApiError names the field at fault."""
    form = {} if response_format is None else _of_response_format(response_format)
    if outputs is None:
        return form
    if form:
        message = "response_format and structured_outputs contradict each other: give one of them"
        raise ApiError(400, message, "structured_outputs", "invalid_value")
    return outputs.fields()


def _of_response_format(given: dict[str, Any]) -> dict[str, Any]:
    kind, wrapped = given.get("type"), given.get("json_schema")
    if kind not in ("text", "json_object", "json_schema"):
        raise _refused('type must be "text", "json_object" or "json_schema"')
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _check_names(given, allowed, "response_format")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": ANY_OBJECT}
    if not isinstance(wrapped, dict) or not isinstance(wrapped.get("schema"), dict):
        raise _refused('json_schema must be {"name": ..., "schema": {...}}')
    if not isinstance(wrapped.get("name"), str) or not wrapped["name"]:
        raise _refused("json_schema.name must be a string that is not empty")
    if not isinstance(wrapped.get("strict"), bool | None):
        raise _refused("json_schema.strict must be true or false")
    # Every reply keeps to its schema here, strict or not.
    _check_names(wrapped, {"name", "schema", "strict", "description"}, "json_schema")
    return {"json_schema": wrapped["schema"]}


def _check_names(given: dict[str, Any], known: set[str], what: str) -> None:
    unknown = [name for name, value in given.items() if name not in known and value is not None]
    if unknown:
        raise _refused(f"{what} has an unknown field {json.dumps(unknown[0])}")


def _refused(message: str) -> ApiError:
    return ApiError(400, f"response_format: {message}", "response_format", "invalid_value")


def named(error: Exception, response_format: dict[str, Any] | None) -> Exception:
    """An engine's error about a form, by the request's own field."""
    if not isinstance(error, RequestError) or error.field not in STRUCTURES:
        return error
    field = (
        "structured_outputs" if response_format is None or response_format.get("type") == "text" else "response_format"
    )
    return ApiError(400, f"{field}: {error}", field, "invalid_value")
