"""One process's share of a checkpoint as a safetensors file, written without a second copy and hashed on the way.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of a JSON header, the header, the bytes.
Under the header's `DCP_SHARDING_INFO` stands where in its tensor each chunk begins, as torch's
`HuggingFaceStorageWriter` puts it down.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

FileEntry = dict[str, Any]  # {"sha256": hex, "bytes": int}

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
WRITE_BYTES = 8 << 20  # at a time: hashing and writing then find the bytes in the processor's cache


@dataclass
class Piece:
    """A chunk of the tensor `name` that begins at `offsets` and is `tensor`, on any device."""

    name: str
    offsets: tuple[int, ...]
    tensor: Tensor


def write_shard(path: Path, pieces: list[Piece]) -> FileEntry:
    """Write `pieces` (emptied on the way, so that copies are given back as they reach the file) and sync the file.

    OSError where it cannot be written. Each name may occur once.
    """
    pieces.sort(key=lambda piece: (-piece.tensor.element_size(), piece.name))  # so that all begin at multiples of that
    digest = hashlib.sha256()
    size = 0
    with open(path, "xb", buffering=0) as file:
        head = _header(pieces)
        pieces.reverse()
        while head or pieces:
            data = memoryview(head or _bytes(pieces.pop().tensor))
            head = b""
            for start in range(0, len(data), WRITE_BYTES):
                part = data[start : start + WRITE_BYTES]
                digest.update(part)
                size += len(part)
                while part:  # a raw file may take less than it is given
                    part = part[file.write(part) :]
                if hasattr(os, "posix_fadvise"):  # begin to write to the disk now: a third less time (Linux)
                    os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
            del data  # or the next tensor would be copied before this one is given back
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def file_entry(path: Path) -> FileEntry:
    """The entry that the file has now."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": os.fstat(file.fileno()).st_size}


def read_metadata(paths: Iterable[Path]) -> tuple[Metadata, dict[tuple[str, tuple[int, ...]], Path]]:
    """What shards hold together, as torch's planner wants it, and the file of each chunk by name and offsets."""
    tensors: dict[str, TensorStorageMetadata] = {}
    place: dict[tuple[str, tuple[int, ...]], Path] = {}
    for path in paths:
        header = _read_header(path)
        where = json.loads(header.pop("__metadata__")["DCP_SHARDING_INFO"])
        for name, entry in header.items():
            offsets, sizes = where[name]["saved_offsets"], entry["shape"]
            ends = torch.Size(start + length for start, length in zip(offsets, sizes, strict=True))
            properties = TensorProperties(dtype=DTYPE_OF[entry["dtype"]])
            tensor = tensors.setdefault(name, TensorStorageMetadata(properties, ends, []))
            tensor.size = torch.Size(max(pair) for pair in zip(tensor.size, ends, strict=True))
            tensor.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            place[name, tuple(offsets)] = path
    return Metadata(tensors), place  # type: ignore[arg-type]


def read_into(tensors: dict[str, Tensor], metadata: Metadata, place: dict[tuple[str, tuple[int, ...]], Path]) -> None:
    """Fill this process's `tensors` (DTensors: its shards of them) in place with what lies in the shards.

    Names, shapes and types have been compared before.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(tensors, metadata, is_coordinator=True)
    by_file: dict[Path, list[Any]] = {}
    for item in planner.create_local_plan().items:
        key = (item.storage_index.fqn, tuple(item.storage_index.offset or ()))
        by_file.setdefault(place[key], []).append(item)
    for path, items in by_file.items():
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for item in items:
                name = item.storage_index.fqn
                if item.lengths:
                    region = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    saved = file.get_slice(name)[region]
                else:
                    saved = file.get_tensor(name)
                planner.resolve_tensor(item).detach().copy_(saved)


def _header(pieces: list[Piece]) -> bytes:
    where = {piece.name: {"saved_offsets": list(piece.offsets)} for piece in pieces}
    assert len(where) == len(pieces), "a process holds one chunk of a tensor"
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(where)}
    }
    end = 0
    for piece in pieces:
        start, end = end, end + piece.tensor.numel() * piece.tensor.element_size()
        header[piece.name] = {
            "dtype": DTYPES[piece.tensor.dtype],
            "shape": list(piece.tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
