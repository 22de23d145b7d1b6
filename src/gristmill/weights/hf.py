"""Writing a model as a Hugging Face directory: config, weights, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from .families import Family, Part, home_of
from .hf_config import TokenIds, write_config
from .layout import split_rows
from .safetensors_writer import MAX_SHARD_BYTES, StoredTensor, write_weights
from .safetensors_writer import WEIGHTS as WEIGHTS
from .tokenizer_files import copy_tokenizer, special_token_ids


def save_model(
    model: Decoder,
    directory: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    published: Mapping[str, TokenIds] | None = None,
) -> None:
    """Write `config.json`, `model.safetensors`, `generation_config.json` and the tokenizer's files into `directory`.

    The model is saved as the first family of transformers that can hold it (`families.family_of`), else in gristmill's
    own format. The same weights give the same bytes. A tied head is left out, as transformers does; above
    `max_shard_bytes` the weights are cut into shards. `published` are the ids of special tokens that a model from
    elsewhere states itself (`hf_config.published_token_ids`). GristmillError names a tensor that holds NaN or infinity,
    in the model or after rounding to `dtype`.
    """
    family = home_of(model.config)
    tensors = list(stored_tensors(model, family, dtype))
    write_directory(tensors, model.config, family, directory, tokenizer_dir, dtype, max_shard_bytes, published)


def stored_tensors(model: Decoder, family: Family, dtype: torch.dtype) -> Iterator[StoredTensor]:
    """Every tensor of `model` as `family` stores it, its values made when they are asked for. Parameters become
    `dtype`; buffers keep the type they are computed in."""
    state, buffers = model.state_dict(), dict(model.named_buffers())
    for ours, parts in family.layout(model.config).items():
        kind = buffers[ours].dtype if ours in buffers else dtype
        for part, rows in split_rows(state[ours].detach(), parts):
            yield StoredTensor(part.name, part.shape, kind, partial(_stored, part, rows, kind))


def _stored(part: Part, rows: Tensor, dtype: torch.dtype) -> Tensor:
    return cast(part.save(rows), dtype, part.name)


def write_directory(
    tensors: Sequence[StoredTensor],
    config: ModelConfig,
    family: Family,
    directory: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    published: Mapping[str, TokenIds] | None = None,
    **extra_settings: Any,
) -> None:
    """Write a model directory whose weight files hold `tensors` as they are; the extra settings join config.json."""
    token_ids = special_token_ids(tokenizer_dir, config.vocab_size)
    directory.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(tokenizer_dir, directory)
    write_weights(tensors, directory, max_shard_bytes)
    write_config(directory, config, family, dtype, token_ids, published, **extra_settings)


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A contiguous copy on the CPU as `dtype`, whose values must be finite."""
    tensor = tensor.to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(tensor).all():
        raise GristmillError(f"{name} holds NaN or infinity as {dtype}; the model is not saved")
    return tensor
