"""`config.json` and `generation_config.json` of a model directory, beside what a family says of the shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..artifact import write_json
from ..errors import GristmillError
from ..model.config import ModelConfig
from .families import Family
from .families import write_config as family_settings
from .json_files import CONFIG as CONFIG
from .json_files import read_object, short

GENERATION_CONFIG = "generation_config.json"
TokenIds = int | list[int]  # of one special token, or of several that do the same
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`; GristmillError for a type that model files do not hold."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise GristmillError(f"dtype {dtype} is not one that models are saved in; use one of {', '.join(DTYPES)}")


def write_config(
    directory: Path,
    config: ModelConfig,
    family: Family,
    dtype: torch.dtype,
    token_ids: Mapping[str, int],
    published: Mapping[str, TokenIds] | None = None,
    **extra: Any,
) -> None:
    """Write both config files. `token_ids` comes from `special_token_ids`; what `published_token_ids` found of the
    model's own goes before it. `extra` joins `config.json` as it is.

    The type of the weights stands in both of its forms: `torch_dtype` is the older name of `dtype`.
    """
    named: dict[str, TokenIds] = {**token_ids, **(published or {})}
    settings = {
        **family_settings(family, config),
        "use_cache": True,
        **{f"{name}_token_id": named.get(name) for name in ("bos", "eos", "pad")},
        "torch_dtype": dtype_name(dtype),
        "dtype": dtype_name(dtype),
        **extra,
    }
    write_json(directory / CONFIG, settings)
    # Either ends a reply: the end of a document, or the end of a turn in a chat.
    found = [named[name] for name in ("eos", "im_end", "turn_end") if name in named]
    stops = [stop for ids in found for stop in (ids if isinstance(ids, list) else [ids])]
    generation = {
        "bos_token_id": named.get("bos"),
        "eos_token_id": list(dict.fromkeys(stops)),
        "pad_token_id": named.get("pad"),
    }
    write_json(
        directory / GENERATION_CONFIG, {key: value for key, value in generation.items() if value not in (None, [])}
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """`config.json` of a model directory as a dictionary."""
    return read_object(directory / CONFIG, f"{directory} is not a model directory: it holds no {CONFIG}")


def published_token_ids(settings: Mapping[str, Any], vocab_size: int) -> dict[str, TokenIds]:
    """The ids of `bos`, `eos` and `pad` that a `config.json` states, lists as lists. What is no id of the model (some
    state -1 for none) is left out."""

    found: dict[str, TokenIds] = {}
    for name in ("bos", "eos", "pad"):
        value: Any = settings.get(f"{name}_token_id")
        ids = value if isinstance(value, list) else [value]
        if ids and all(type(one) is int and 0 <= one < vocab_size for one in ids):
            found[name] = value
    return found


def stored_dtype(settings: dict[str, Any], path: Path) -> torch.dtype:
    """The type of the weights that `config.json` states; float32 where it states none."""
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    if not isinstance(name, str) or name not in DTYPES:
        raise GristmillError(f"{path}: dtype {short(name)} is not supported, only {', '.join(DTYPES)}")
    return DTYPES[name]
