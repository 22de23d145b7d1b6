"""One GGUF file: its metadata, and its tensors by name, multiplied out where they are quantized.

Nothing in the file is trusted: every count, length and offset is checked against the file's size before it is used, so
that a damaged or hostile file costs no more memory than it has bytes.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GristmillError
from ..tokenizer.formats.gguf_metadata import MAGIC, TYPES, fault_of_types, read_string, read_value

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_ALIGNMENT = "general.alignment"
# What others than this module's readers are handed, and so must be what the specification says.
_TYPES = dict.fromkeys(("general.architecture", "general.name", "general.license"), str) | TYPES


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. `shape` is in torch's order (GGUF lists the fastest-running dimension first), `start` and
    `size` are in bytes from the beginning of the file."""

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int


class GGUFFile:
    """Metadata (`fields`) and tensors of one GGUF file; every error names the file and the key or tensor."""

    def __init__(self, path: Path):
        self.path = path
        self._gguf = gguf_package()
        if not path.is_file():
            raise GristmillError(f"{path} does not exist")
        try:
            with open(path, "rb") as opened:
                self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, entries, end = self._head()
            if fault := fault_of_types(self.get, _TYPES):
                raise ValueError(fault)
            self.tensors = self._placed(entries, end)
        except (struct.error, ValueError, UnicodeDecodeError, KeyError, OverflowError) as error:
            raise GristmillError(f"{path} is not a whole GGUF file ({error}); get it again") from None

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python's own type, or `default` where the file lacks the key."""
        value = self.fields.get(key, default)
        return value.tolist() if isinstance(value, np.ndarray) else value

    def require(self, key: str) -> Any:
        if key not in self.fields:
            raise GristmillError(f"{self.path}: metadata key {key} is missing")
        return self.get(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """In torch's order."""
        if name not in self.tensors:
            raise GristmillError(f"{self.path}: tensor {name} is missing")
        return self.tensors[name].shape

    def read(self, name: str) -> Tensor:
        """One tensor in float32 as memory of its own, multiplied out if it is quantized; its values are finite."""
        stored = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, stored.size, stored.start)
        try:
            with np.errstate(all="ignore"):
                values = self._gguf.quants.dequantize(raw.reshape(*stored.shape[:-1], -1), stored.kind)
        except NotImplementedError:
            raise GristmillError(
                f"{self.path}: tensor {name} is {stored.kind.name}, which the gguf package cannot read"
            ) from None
        tensor = torch.from_numpy(values.astype(np.float32)).view(stored.shape)
        if not torch.isfinite(tensor).all():
            raise GristmillError(f"{self.path}: tensor {name} holds NaN or infinity; the file is damaged, get it again")
        return tensor

    def _head(self) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, int]], int]:
        """Metadata, `{tensor: (dimensions, type, offset)}`, and where the tensors' directory ends."""
        data = self._data
        magic, version, num_tensors, num_pairs = struct.unpack_from("<4sIQQ", data, 0)
        if magic != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}, only {_VERSIONS[0]} and {_VERSIONS[1]} are known")
        at = 24
        fields: dict[str, Any] = {}
        for _ in range(num_pairs):
            key, at = read_string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            if key in fields:
                raise ValueError(f"metadata key {key} stands twice")
            fields[key], at = read_value(data, at + 4, kind)
        entries: dict[str, tuple[list[int], int, int]] = {}
        for _ in range(num_tensors):
            name, at = read_string(data, at)
            (dimensions,) = struct.unpack_from("<I", data, at)
            if name in entries or not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise ValueError(f"tensor {name} stands twice or has {dimensions} dimensions")
            *sizes, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, at + 4)
            entries[name] = (sizes, kind, offset)
            at += 4 + 8 * dimensions + 12
        return fields, entries, at

    def _placed(self, entries: dict[str, tuple[list[int], int, int]], end: int) -> dict[str, StoredTensor]:
        """The tensors with their places, all of which lie inside the file and apart from each other."""
        alignment = self.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment not in (1 << bits for bits in range(3, 21)):
            raise ValueError(f"{_ALIGNMENT} is {alignment!r}, not a power of two from 8 on")
        base = -(-end // alignment) * alignment
        tensors = {}
        for name, (sizes, number, offset) in entries.items():
            try:
                kind = self._gguf.GGMLQuantizationType(number)
                block, block_bytes = self._gguf.GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise ValueError(f"tensor {name} is of an unknown type {number}") from None
            if min(sizes) < 1 or sizes[0] % block:
                raise ValueError(f"tensor {name} of type {kind.name} cannot have the dimensions {sizes}")
            size = math.prod(sizes) // block * block_bytes
            if offset % alignment or base + offset + size > len(self._data):
                raise ValueError(f"tensor {name} goes beyond the end of the file or starts in an odd place")
            tensors[name] = StoredTensor(tuple(reversed(sizes)), kind, base + offset, size)
        before = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < before:
                raise ValueError(f"tensor {name} overlaps another one")
            before = tensor.start + tensor.size
        return tensors


def gguf_package() -> Any:
    """The `gguf` package; GristmillError names the extra that brings it."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise GristmillError("GGUF files need the gguf package: pip install 'gristmill[gguf]'") from None
    return gguf
