"""Which shape a user's MODEL means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GristmillError
from ..model.changes import override as override

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


def any_shape_of(target: str) -> ModelConfig:
    """As `shape_of`, and of a BERT or a T5 that of its encoder or encoder-decoder."""
    path = Path(target)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file() and file.suffix == ".json":
        from ..weights.json_files import read_object

        if read_object(file, f"{file} does not exist").get("model_type") in ("bert", "t5"):
            from ..weights.encoders import read_encoder_config

            return read_encoder_config(file)
    return shape_of(target)


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
