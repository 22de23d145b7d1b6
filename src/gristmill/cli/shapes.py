"""Which shape a user's MODEL means, and shapes with some fields changed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import GristmillError
from .common import plain_words

if TYPE_CHECKING:
    from ..model.config import ModelConfig


def source_of(target: str) -> str:
    """What is read for a user's MODEL: of a run directory its model, or its recipe where it has none yet."""
    from ..weights.locate import locate_model

    path = Path(target)
    if (path / "config.json").is_file() or not (path / "recipe.yaml").is_file():
        return target
    try:
        return str(locate_model(path))
    except GristmillError:
        return str(path / "recipe.yaml")


def shape_of(target: str) -> ModelConfig:
    """The shape that a user's MODEL means. Files go before presets: `./gpt2-xl` and a directory `gpt2-xl` are files."""
    from ..model.presets import preset

    path = Path(target)
    if not path.exists():
        if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
            raise GristmillError(
                f"{target} does not exist; give a preset's name, a model, a run, a recipe or config.json"
            )
        return preset(target)
    if path.suffix == ".gguf":
        raise GristmillError(f"{target}: bring it in first: gristmill import {target} --out DIR")
    if path.is_file():
        return _of_config_file(path) if path.suffix == ".json" else _of_recipe(path)
    if (path / "config.json").is_file():
        return _of_config_file(path / "config.json")
    if (source := source_of(target)) != target:
        return shape_of(source)
    raise GristmillError(f"{target} is neither a model directory (no config.json) nor a run directory (no recipe.yaml)")


def override(config: ModelConfig, overrides: list[str]) -> ModelConfig:
    """The shape with `field=value` applied, `experts.top_k=4` for a field inside; checked as a whole."""
    from ..model.config import ModelConfig

    data = config.model_dump(mode="json")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise GristmillError(f"--set {item}: expected field=value")
        *outer, last = key.strip().split(".")
        place, schema = data, _Fields(ModelConfig)
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
        return ModelConfig.model_validate(data)
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


def _of_config_file(path: Path) -> ModelConfig:
    from ..weights.families import read_config
    from ..weights.json_files import read_object

    return read_config(read_object(path, f"{path} does not exist"), path)[1]


def _of_recipe(path: Path) -> ModelConfig:
    from ..model.config import ModelConfig
    from ..recipe import load_recipe

    recipe = load_recipe(path)
    if recipe.base is None or recipe.tokenizer is None:
        missing = "base" if recipe.base is None else "tokenizer"
        raise GristmillError(f"{path} has no section {missing!r}, so there is no model to plan")
    multiple = recipe.tokenizer.pad_to_multiple
    vocab_size = -(-recipe.tokenizer.vocab_size // multiple) * multiple
    return ModelConfig(vocab_size=vocab_size, **recipe.base.model.model_dump())
