"""The families of models that are read from and written to Hugging Face directories, one small module each.

A family says how the keys of `config.json` become our configuration and back, and which tensors our parameters are
stored as. A model is saved as the first family that can hold it whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import GristmillError
from ...model.config import ModelConfig
from ..json_files import short
from .deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from .effective import differences, effective
from .family import Family as Family
from .family import Layout as Layout
from .family import Part as Part
from .family import Shape as Shape
from .family import Transform as Transform
from .gemma import GEMMA2, GEMMA3
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .llama import LLAMA, MINISTRAL, MISTRAL
from .mixtral import MIXTRAL
from .mpt import MPT
from .nemotron import NEMOTRON
from .olmo2 import OLMO2
from .own import OWN
from .qwen import QWEN2, QWEN3, QWEN3_MOE
from .settings import Settings

# A model is saved as the first of these that can hold it.
FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2, GPT2, GPT_NEOX, NEMOTRON, MPT, MIXTRAL, QWEN3_MOE,
    DEEPSEEK_V2, DEEPSEEK_V3,
)  # fmt: skip
MOST_PARAMETERS = 2**50
EXTRA = "gristmill"  # the key under which we keep the fields that change nothing that transformers computes


def read_config(settings: Mapping[str, Any], path: Path) -> tuple[Family, ModelConfig]:
    """The family that a `config.json` names, and the configuration in it; absent keys mean what they mean in
    transformers. `path` is for the messages.

    GristmillError names the first key whose value this decoder does not compute, or the sizes that do not fit.
    """
    family = _named(settings, path)
    config = _parse(family, Settings(settings, path), path)
    if config.num_parameters > MOST_PARAMETERS:
        raise GristmillError(f"{path}: its sizes make a model of {config.num_parameters:,} parameters")
    extra = settings.get(EXTRA)
    if not extra:
        return family, config
    if not isinstance(extra, dict):
        raise GristmillError(f"{path}: {EXTRA} must be an object, not {short(extra)}")
    whole = _validated(family, _merged(config.model_dump(), extra), path)
    if changed := differences(effective(whole), effective(config)):
        raise GristmillError(f"{path}: {EXTRA} says {' and '.join(changed)}, which contradicts the other keys")
    return family, whole


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` from which `read_config` makes `config` again, without those of tokens and types."""
    settings = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        **family.write(config),
    }
    back = read_config(settings, Path("config.json"))[1]
    extra = _changes(back.model_dump(mode="json"), config.model_dump(mode="json"))
    return settings | ({EXTRA: extra} if extra else {})


def family_of(config: ModelConfig) -> Family:
    """The first family of transformers that can hold `config` whole; GristmillError names the one that comes nearest
    and the fields that it lacks."""
    nearest: tuple[int, str] | None = None
    for family in FAMILIES:
        try:
            missing = _missing(family, config)
        except GristmillError:  # its keys cannot even say what comes near
            continue
        reason = None if missing else family.refuses(config)
        if not missing and reason is None:
            return family
        # A whole group of fields that is absent weighs more than a field of another value.
        weight = sum(1 if "=" in field else 5 for field in missing)
        lacks = f"has no {' with '.join(missing)}" if missing else f"takes no model whose {reason}"
        if nearest is None or weight < nearest[0]:
            nearest = (weight, f"the nearest, {family.model_type}, {lacks}")
    found = "" if nearest is None else f": {nearest[1]}"
    raise GristmillError(f"no family of transformers can hold this model{found}")


def home_of(config: ModelConfig) -> Family:
    """The family that a model is saved as: `family_of`, or gristmill's own format where there is none."""
    try:
        return family_of(config)
    except GristmillError:
        return OWN


def _missing(family: Family, config: ModelConfig) -> list[str]:
    """What `family` cannot hold of `config`, as `field = value`."""
    path = Path("config.json")
    settings = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings, **family.write(config)}
    return differences(effective(config), effective(_parse(family, Settings(settings, path), path)))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `new` that differ from `old`, nested ones alone; `_merged` puts them back."""
    return {
        field: _changes(old[field], value) if isinstance(value, dict) and isinstance(old[field], dict) else value
        for field, value in new.items()
        if value != old[field]
    }


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(old) | {
        field: _merged(old[field], value) if isinstance(value, dict) and isinstance(old.get(field), dict) else value
        for field, value in changes.items()
    }


def _named(settings: Mapping[str, Any], path: Path) -> Family:
    model_type = settings.get("model_type")
    known = {family.model_type: family for family in (*FAMILIES, OWN)}
    if settings.get("text_config") is not None:
        raise GristmillError(
            f"{path}: model_type {short(model_type)} holds a text_config: models of images or sound are not read, "
            "only a checkpoint of the text model alone"
        )
    if not isinstance(model_type, str) or model_type not in known:
        raise GristmillError(f"{path}: model_type {short(model_type)} is not supported, only {', '.join(known)}")
    return known[model_type]


def _parse(family: Family, settings: Settings, path: Path) -> ModelConfig:
    return _validated(family, family.read(settings), path)


def _validated(family: Family, fields: Mapping[str, Any], path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        key, message = family.keys.get(field, field), first["msg"].removeprefix("Value error, ")
        for ours, theirs in family.keys.items():
            names = rf"{re.escape(ours)}|{re.escape(ours.rpartition('.')[2])}"
            message = re.sub(rf"(?<![\w.])(?:{names})(?= \()", theirs, message)
        raise GristmillError(f"{path}: {key + ': ' if key else ''}{message}") from None
