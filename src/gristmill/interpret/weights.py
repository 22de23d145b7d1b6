"""The weights themselves: one row for every tensor, under the names that other tools know them by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model.decoder import Decoder
from ..weights.layout import split_tensors
from ..weights.tensor_files import TensorFiles

LARGEST_CHANNELS = 5


def stored_dtypes(directory: Path) -> dict[str, str]:
    """The type of each tensor in a model directory, by name: what the file holds, whatever it is loaded as."""
    files = TensorFiles(directory)
    return {name: _dtype(files.read(name)) for name in sorted(files.names())}


def weight_table(model: Decoder, dtypes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Name, shape, dtype, parameters and statistics of every tensor, q, k and v apart; the norm is Frobenius'.
    `dtypes` says how they are stored; a name it lacks has the model's own type."""
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": dtypes.get(name, _dtype(tensor)),
            "parameters": tensor.numel(),
            **_statistics(tensor),
            "norm": float(tensor.double().norm()),
        }
        for name, tensor in split_tensors(model)
    ]


def norm_table(model: Decoder) -> list[dict[str, Any]]:
    """The gains (gamma) of every RMSNorm, and the channels of the residual stream that each turns up most."""
    return [
        {
            "name": name,
            **_statistics(tensor),
            "largest_channels": tensor.abs().topk(min(LARGEST_CHANNELS, len(tensor))).indices.tolist(),
        }
        for name, tensor in split_tensors(model)
        if tensor.dim() == 1
    ]


def parameters_by_part(model: Decoder) -> dict[str, int]:
    """Where the parameters are: `embedding`, `attention`, `feed_forward`, `norms` and, when it is not tied, `head`."""
    parts: dict[str, int] = {}
    for name, tensor in split_tensors(model):
        part = _part(name)
        parts[part] = parts.get(part, 0) + tensor.numel()
    return parts


def _part(name: str) -> str:
    for mark, part in (("self_attn", "attention"), ("mlp", "feed_forward"), ("norm", "norms"), ("lm_head", "head")):
        if mark in name:
            return part
    return "embedding"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _statistics(tensor: Tensor) -> dict[str, float]:
    values = tensor.double()
    return {
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
    }
