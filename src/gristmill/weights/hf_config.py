"""`config.json` and `generation_config.json` of a model directory, beside what a family says of the shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..artifact import write_json
from ..errors import GristmillError
from ..model.config import ModelConfig
from .families import Family
from .families import write_config as family_settings

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`; GristmillError for a type that model files do not hold."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise GristmillError(f"dtype {dtype} is not one that models are saved in; use one of {', '.join(DTYPES)}")


def write_config(
    directory: Path, config: ModelConfig, family: Family, dtype: torch.dtype, token_ids: dict[str, int], **extra: Any
) -> None:
    """Write both config files. `token_ids` comes from `special_token_ids`; `extra` joins `config.json` as it is.

    The type of the weights stands in both of its forms: `torch_dtype` is the older name of `dtype`.
    """
    settings = {
        **family_settings(family, config),
        "use_cache": True,
        "bos_token_id": token_ids.get("bos"),
        "eos_token_id": token_ids.get("eos"),
        "pad_token_id": token_ids.get("pad"),
        "torch_dtype": dtype_name(dtype),
        "dtype": dtype_name(dtype),
        **extra,
    }
    write_json(directory / CONFIG, settings)
    # Either ends a reply: the end of a document, or the end of a turn in a chat.
    stops = [token_ids[name] for name in ("eos", "im_end", "turn_end") if name in token_ids]
    generation = {
        "bos_token_id": token_ids.get("bos"),
        "eos_token_id": list(dict.fromkeys(stops)),
        "pad_token_id": token_ids.get("pad"),
    }
    write_json(
        directory / GENERATION_CONFIG, {key: value for key, value in generation.items() if value not in (None, [])}
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """`config.json` of a model directory as a dictionary."""
    path = directory / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GristmillError(f"{directory} is not a model directory: it holds no {CONFIG}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} is not JSON ({error}); get the file again") from None
    if not isinstance(settings, dict):
        raise GristmillError(f"{path} must be a JSON object")
    return settings


def stored_dtype(settings: dict[str, Any], path: Path) -> torch.dtype:
    """The type of the weights that `config.json` states; float32 where it states none."""
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise GristmillError(f"{path}: dtype {name!r} is not supported, only {', '.join(DTYPES)}")
    return DTYPES[name]
