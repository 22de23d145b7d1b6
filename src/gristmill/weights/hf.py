"""Writing a model as a Hugging Face `LlamaForCausalLM` directory: config, weights, tokenizer."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from .hf_config import CONFIG, write_config
from .layout import split_tensors
from .tokenizer_files import copy_tokenizer, special_token_ids

WEIGHTS = "model.safetensors"


def save_model(model: Decoder, directory: Path, tokenizer_dir: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `config.json`, `model.safetensors`, `generation_config.json` and the tokenizer's files into `directory`.

    The same weights give the same bytes. A tied head is left out of the file, as transformers does.
    GristmillError names a tensor that holds NaN or infinity, in the model or after rounding to `dtype`.
    """
    tensors = {name: cast(tensor, dtype, name) for name, tensor in split_tensors(model)}
    write_directory(tensors, model.config, directory, tokenizer_dir, dtype)


def write_directory(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype,
    **extra_settings: Any,
) -> None:
    """Write a model directory whose weight file holds `tensors` as they are; the extra settings join config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(tokenizer_dir, directory)
    write_config(directory, config, dtype, special_token_ids(directory, config.vocab_size), **extra_settings)
    _write_tensors(tensors, directory / WEIGHTS)
    # safetensors makes the file readable for its owner alone; a model is served by other users too.
    os.chmod(directory / WEIGHTS, stat.S_IMODE((directory / CONFIG).stat().st_mode))


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the file in a directory beside it and move it into place: safetensors leaves a file of a random name when
    it is killed, which a resumed stage could not tell from its own."""
    workplace = path.with_name(f".{path.name}.writing")
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir()
    save_file(dict(tensors), workplace / path.name, metadata={"format": "pt"})
    os.replace(workplace / path.name, path)
    workplace.rmdir()


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A contiguous copy on the CPU as `dtype`, whose values must be finite."""
    tensor = tensor.to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(tensor).all():
        raise GristmillError(f"{name} holds NaN or infinity as {dtype}; the model is not saved")
    return tensor
