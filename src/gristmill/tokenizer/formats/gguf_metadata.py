"""The head of a GGUF file: its key-value pairs. They stand before the tensors, so that the first part of a file that
was cut for its size is enough. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.errors import GristmillError

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


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
                key, at = _string(data, at)
                (kind,) = struct.unpack_from("<I", data, at)
                metadata[key], at = _value(data, at + 4, kind)
            return metadata
    except (struct.error, ValueError, UnicodeDecodeError, KeyError) as error:
        raise GristmillError(f"{file} is no whole GGUF file: its metadata breaks off or is damaged ({error})") from None


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, at)
    if kind == _ARRAY:
        item, count = struct.unpack_from("<IQ", data, at)
        return _array(data, at + 12, item, count)
    form = "<" + _SCALARS[kind]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def _array(data: mmap.mmap, at: int, item: int, count: int) -> tuple[Any, int]:
    if item == _STRING:
        strings = []
        for _ in range(count):
            value, at = _string(data, at)
            strings.append(value)
        return strings, at
    size = count * struct.calcsize("<" + _SCALARS[item])
    if at + size > len(data):
        raise ValueError("an array goes beyond the end")
    return np.frombuffer(data[at : at + size], "<" + _SCALARS[item]), at + size


def _string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    if at + 8 + length > len(data):
        raise ValueError("a string goes beyond the end")
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length
