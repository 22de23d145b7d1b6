"""An Arrow column of strings as the kernel sees it: one array of bytes, and where each text begins and ends in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


class Texts(NamedTuple):
    """Text d is `data[offsets[d]:offsets[d + 1]]`, UTF-8."""

    data: U8
    offsets: I64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        """Bytes of all texts."""
        return int(self.offsets[-1] - self.offsets[0])

    def parts(self, size: int) -> Iterator[tuple[slice, Texts]]:
        """(which texts, those texts) in parts of about `size` bytes, at least one text each: what is worked out for one
        part stays in the processor's caches."""
        start = 0
        while start < len(self):
            end = int(np.searchsorted(self.offsets, self.offsets[start] + size, side="right")) - 1
            end = min(max(end, start + 1), len(self))
            yield slice(start, end), Texts(self.data, self.offsets[start : end + 1])
            start = end


def texts_of(column: pa.Array | pa.ChunkedArray) -> Texts:
    """The texts of a column of type string or large_string. The bytes are not copied (but for one of several chunks),
    the offsets are; a null is an empty text."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = array.cast(pa.large_string())
    if array.null_count:
        array = array.fill_null("")
    _, offsets, data = array.buffers()
    width = np.int32 if pa.types.is_string(array.type) else np.int64
    if offsets is None or not len(array):
        return Texts(_bytes(None), np.zeros(len(array) + 1, np.int64))
    found = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    return Texts(_bytes(data), found.astype(np.int64))


def _bytes(buffer: pa.Buffer | None) -> U8:
    """The buffer as an array that cannot be written to, whatever it is, so that the kernel is compiled for one type."""
    array = np.zeros(0, np.uint8) if buffer is None or not buffer.size else np.frombuffer(buffer, np.uint8)
    array = array.view()
    array.flags.writeable = False
    return array
