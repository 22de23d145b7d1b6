"""The weights themselves: one row for every tensor, under the names that other tools know them by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model.decoder import Decoder
from ..weights.layout import layout, split_tensors
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
    """The gains (gamma) of every norm as they are stored (Gemma's are 1 more than that), and the channels that each
    turns up most."""
    gains = {
        part.name for ours, parts in layout(model.config).items() for part in parts if ours.endswith("norm.weight")
    }
    return [
        {
            "name": name,
            **_statistics(tensor),
            "largest_channels": tensor.abs().topk(min(LARGEST_CHANNELS, len(tensor))).indices.tolist(),
        }
        for name, tensor in split_tensors(model)
        if name in gains
    ]


def parameters_by_part(model: Decoder) -> dict[str, int]:
    """Where the parameters are: `embedding`, `attention`, `feed_forward`, `norms` and, where the model has them,
    `positions`, `router` and an untied `head`."""
    return model.config.parameters_by_part()


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
