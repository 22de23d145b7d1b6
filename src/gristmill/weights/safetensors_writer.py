"""Writing safetensors files one tensor at a time, so that a model needs no second copy of itself to be saved.

The file is eight bytes of header length, a JSON header (name -> type, shape, offsets) and the tensors' bytes without
gaps. Specification: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..artifact import write_json
from .families import Shape

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: what stands in the header, and where its values come from when their turn is there."""

    name: str
    shape: Shape
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(tensors: Sequence[StoredTensor], directory: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `model.safetensors`, or above `max_shard_bytes` shards with their index, in place of what was there.

    Everything is written in a directory inside and moved when it is whole, the index last; only then do stale files
    go. A save that was killed leaves the old weights or the new ones, never some of each: where new shards bear the
    names of old ones, the old index goes first, and what is left without one is refused.
    """
    workplace = directory / ".weights.writing"
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir()
    try:
        shards = _shards(tensors, max_shard_bytes)
        names = [WEIGHTS] if len(shards) == 1 else [_shard_name(at, len(shards)) for at in range(len(shards))]
        for name, shard in zip(names, shards, strict=True):
            with open(workplace / name, "wb") as file:
                _write_file(shard, file)
        if len(shards) > 1:
            homes = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            total = sum(tensor.nbytes for tensor in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
            write_json(workplace / INDEX, index)
        before = {path.name for path in (*directory.glob(_SHARDS), directory / WEIGHTS, directory / INDEX)}
        if len(shards) > 1 and not before.isdisjoint(names):
            (directory / INDEX).unlink(missing_ok=True)
        written = [*names, INDEX] if len(shards) > 1 else names
        for name in written:
            os.replace(workplace / name, directory / name)
        # Readers take the single file before an index, and an index before its shards.
        for name in sorted(before - set(written), key=(WEIGHTS, INDEX).__contains__, reverse=True):
            (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _shards(tensors: Sequence[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _shard_name(at: int, number: int) -> str:
    return f"model-{at + 1:05}-of-{number:05}.safetensors"


def _write_file(tensors: Sequence[StoredTensor], file: BinaryIO) -> None:
    # Wide types first, so that every tensor starts at a multiple of its type's width.
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.nbytes]
        header[tensor.name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        values = tensor.make().contiguous()
        assert tuple(values.shape) == tensor.shape, tensor.name
        assert values.dtype == tensor.dtype, tensor.name
        file.write(values.flatten().view(torch.uint8).numpy().data)
