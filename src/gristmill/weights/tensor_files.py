"""Reading tensors out of safetensors files by name, one at a time. Pickles are refused: they can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import GristmillError
from .families import Shape
from .json_files import read_value
from .safetensors_writer import INDEX, WEIGHTS

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


class TensorFiles:
    """The tensors of a model directory: one `model.safetensors`, or shards with their index."""

    def __init__(self, directory: Path):
        self.directory = directory
        files = _files(directory)
        self._shards = {file: _open(file) for file in files}
        self._home: dict[str, Path] = {}
        for file, shard in self._shards.items():
            for name in shard.keys():  # noqa: SIM118
                if name in self._home:
                    raise GristmillError(f"tensor {name} stands in {self._home[name]} and in {file}; get both again")
                self._home[name] = file

    def names(self) -> set[str]:
        return set(self._home)

    def shape(self, name: str) -> Shape:
        return tuple(self._shards[self._home[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored; it may be a view of the mapped file."""
        return self._shards[self._home[name]].get_tensor(name)

    def read_float(self, name: str) -> Tensor:
        """The same for a tensor of floating-point numbers, all of which must be finite."""
        tensor = self.read(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise GristmillError(
                f"{self.directory}: tensor {name} is {tensor.dtype}; only floating-point weights are read"
            )
        if not torch.isfinite(tensor).all():
            raise GristmillError(f"{self.directory}: tensor {name} holds NaN or infinity; the weights are damaged")
        return tensor

    def check(self, expected: Mapping[str, Shape]) -> None:
        """GristmillError names the first tensor that is missing, not expected, or of another shape."""
        for name, shape in expected.items():
            if name not in self._home:
                raise GristmillError(f"{self.directory}: tensor {name} is missing from the weights")
            if self.shape(name) != shape:
                raise GristmillError(
                    f"{self._home[name]}: tensor {name} has shape {list(self.shape(name))}, config.json asks for "
                    f"{list(shape)}"
                )
        for name in sorted(self.names() - set(expected)):
            raise GristmillError(
                f"{self._home[name]}: tensor {name} has no place in the model that config.json describes"
            )


def _files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    for pattern in _PICKLES:
        for pickle in sorted(directory.glob(pattern)):
            raise GristmillError(
                f"{pickle} is a pickle, which can run code when it is read; convert the model to safetensors"
            )
    raise GristmillError(f"{directory} holds no weights: looked for {WEIGHTS} and {INDEX}")


def _shards(index: Path) -> list[Path]:
    value = read_value(index, f"{index} is missing")
    try:
        names = list(dict.fromkeys(value["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise GristmillError(f"{index} is not an index of safetensors shards ({error!r})") from None
    if not names:
        raise GristmillError(f"{index} names no shards")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise GristmillError(f"{index}: shard {name!r} must be a .safetensors file beside the index")
        if not (index.parent / name).is_file():
            raise GristmillError(f"{index} lists {name}, which is missing")
    return [index.parent / name for name in names]


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise GristmillError(f"{file} is not a whole safetensors file ({error}); get it again") from None
