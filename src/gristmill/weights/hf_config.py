"""`config.json` and `generation_config.json` of a Hugging Face Llama directory, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ..artifact import write_json
from ..errors import GristmillError
from ..model.config import ModelConfig

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Our field -> the key of a Llama config. The rotary base stands apart: it has two forms.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

# What a Llama config may say beyond the shapes, and the only value this decoder computes.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`; GristmillError for a type that model files do not hold."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise GristmillError(f"dtype {dtype} is not one that models are saved in; use one of {', '.join(DTYPES)}")


def write_config(
    directory: Path, config: ModelConfig, dtype: torch.dtype, token_ids: dict[str, int], **extra: Any
) -> None:
    """Write both config files. `token_ids` comes from `special_token_ids`; `extra` joins `config.json` as it is.

    The rotary base stands in both of its forms: transformers 4 reads `rope_theta`, 5 reads `rope_parameters`. So does
    the type of the weights: `torch_dtype` is the older name of `dtype`.
    """
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, field) for field, key in _KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
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


def decoder_config(settings: dict[str, Any], path: Path) -> ModelConfig:
    """The shape that a Llama `config.json` describes; absent keys mean what they mean in transformers' LlamaConfig.

    GristmillError names the first key that this decoder does not compute. `path` is for the messages.
    """
    model_type = settings.get("model_type")
    if model_type != "llama":
        raise GristmillError(f"{path}: model_type {model_type!r} is not supported; this gristmill reads 'llama'")
    for key, value in _FIXED.items():
        if settings.get(key, value) != value:
            raise GristmillError(f"{path}: {key} = {settings[key]!r} is not supported, only {value!r}")
    rope = settings.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type != "default":
        raise GristmillError(f"{path}: rope_type {rope_type!r} in rope_parameters is not supported, only 'default'")
    values = {key: settings.get(key, _DEFAULTS.get(key)) for key in _KEYS.values()}
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        values["head_dim"] = hidden // heads
    shape = {field: values[key] for field, key in _KEYS.items()}
    shape["rope_theta"] = rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0
    try:
        return ModelConfig.model_validate(shape)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        raise GristmillError(f"{path}: {_KEYS.get(field, field) + ': ' if field else ''}{first['msg']}") from None


def stored_dtype(settings: dict[str, Any], path: Path) -> torch.dtype:
    """The type of the weights that `config.json` states; float32 where it states none."""
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise GristmillError(f"{path}: dtype {name!r} is not supported, only {', '.join(DTYPES)}")
    return DTYPES[name]
