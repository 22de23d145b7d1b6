"""The head of a GGUF file: its key-value pairs. They stand before the tensors, so that the first part of a file that
was cut for its size is enough. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.errors import GristmillError

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Of the keys that a tokenizer is made from: a type, or a list of one.
TYPES: dict[str, Any] = {
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.pre": str,
    "tokenizer.chat_template": str,
    "tokenizer.ggml.bos_token_id": int,
    "tokenizer.ggml.eos_token_id": int,
    "tokenizer.ggml.unknown_token_id": int,
    "tokenizer.ggml.padding_token_id": int,
    "tokenizer.ggml.add_bos_token": bool,
    "tokenizer.ggml.add_space_prefix": bool,
    "tokenizer.ggml.tokens": [str],
    "tokenizer.ggml.merges": [str],
    "tokenizer.ggml.token_type": [int],
    "tokenizer.ggml.scores": [float],
}


def fault_of_types(get: Callable[..., Any], types: Mapping[str, Any] = TYPES) -> str | None:
    """What is wrong with the first key whose value, where `get(key)` has one, is not of the type in `types`."""
    for key, kind in types.items():
        value = get(key)
        if value is None:
            continue
        if isinstance(kind, list):
            if not isinstance(value, list) or any(type(item) is not kind[0] for item in value):
                return f"metadata key {key} is not a list of {kind[0].__name__}"
        elif type(value) is not kind:
            return f"metadata key {key} is {str(value)[:40]!r}, not a {kind.__name__}"
    return None


def read_metadata(file: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file of version 2 or 3, little-endian. Arrays of numbers are numpy arrays."""
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != MAGIC or struct.unpack_from("<I", data, 4)[0] not in (2, 3):
                raise GristmillError(f"{file} is no GGUF file of version 2 or 3")
            (pairs,) = struct.unpack_from("<Q", data, 16)
            at = 24
            metadata: dict[str, Any] = {}
            for _ in range(pairs):
                key, at = read_string(data, at)
                (kind,) = struct.unpack_from("<I", data, at)
                metadata[key], at = read_value(data, at + 4, kind)
            return metadata
    except (struct.error, ValueError, UnicodeDecodeError, KeyError) as error:
        raise GristmillError(f"{file} is no whole GGUF file: its metadata breaks off or is damaged ({error})") from None


def read_value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return read_string(data, at)
    if kind == _ARRAY:
        item, count = struct.unpack_from("<IQ", data, at)
        return _array(data, at + 12, item, count)
    form = "<" + _SCALARS[kind]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def _array(data: mmap.mmap, at: int, item: int, count: int) -> tuple[Any, int]:
    if item == _STRING:
        strings = []
        for _ in range(count):
            value, at = read_string(data, at)
            strings.append(value)
        return strings, at
    size = count * struct.calcsize("<" + _SCALARS[item])
    if at + size > len(data):
        raise ValueError("an array goes beyond the end")
    return np.frombuffer(data[at : at + size], "<" + _SCALARS[item]), at + size


def read_string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    if at + 8 + length > len(data):
        raise ValueError("a string goes beyond the end")
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length
