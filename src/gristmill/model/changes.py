"""A model's shape with some of its fields changed, as `field=value`. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import GristmillError, plain_words
from .config import ModelConfig


def override(config: ModelConfig, overrides: Iterable[str]) -> ModelConfig:
    """The shape with `field=value` applied, `experts.top_k=4` for a field inside; checked as a whole."""
    data = config.model_dump(mode="json")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise GristmillError(f"--set {item}: expected field=value")
        *outer, last = key.strip().split(".")
        place, schema = data, _Fields(type(config))
        for part in outer:
            schema.check(part, item)
            if not isinstance(place[part], dict):
                place[part] = {}
            place, schema = place[part], schema.inside(part)
        schema.check(last, item)
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise GristmillError(f"--set {item}: {value!r} is not a value") from None
    try:
        return type(config).model_validate(data)
    except ValidationError as error:
        _refuse(error)


class _Fields:
    """The fields of a config model, to check names against."""

    def __init__(self, model: type[BaseModel] | None):
        self.fields = {} if model is None else model.model_fields

    def check(self, name: str, item: str) -> None:
        if name not in self.fields:
            near = difflib.get_close_matches(name, self.fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(self.fields) or 'none'}"
            raise GristmillError(f"--set {item}: there is no field {name!r}; {hint}")

    def inside(self, name: str) -> _Fields:
        annotation = self.fields[name].annotation
        found = (t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
        return _Fields(next(found, None))


def _refuse(error: ValidationError) -> NoReturn:
    first: Any = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        what = str(first["ctx"]["error"])
    else:
        what = "is required" if first["type"] == "missing" else f"{plain_words(first['msg'])}, not {first['input']!r}"
    raise GristmillError(f"--set: {where + ': ' if where else ''}{what}") from None
