"""Compressed data as streams that end where the data break, and that no bomb can make endless.

A stream here never raises for damaged data: it ends there and remembers why in `problem`, so that what came before is
read. What it does raise is `BadInput`, when the data unpack to more than the limits allow.
"""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..config import LimitsConfig
from .formats.base import BadInput

CHUNK_BYTES = 1 << 16
RATIO_FREE_BYTES = 64 << 20  # the ratio is looked at beyond these: small files of one repeated word are no bombs
COMPRESSIONS = {b"\x1f\x8b\x08": "gz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\x00": "xz"}
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
           tarfile.TarError, NotImplementedError)  # fmt: skip


class Truncated(EOFError):
    """The data end before their format does."""


class Budget:
    """What may still be unpacked of one file: bytes in all layers of compression together, and members of archives."""

    def __init__(self, limits: LimitsConfig):
        self.limits = limits
        self.bytes, self.members = limits.max_unpacked_bytes, limits.max_members

    def spend(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise BadInput(f"unpacks to more than {self.limits.max_unpacked_bytes:,} bytes", "bomb")

    def member(self) -> None:
        self.members -= 1
        if self.members < 0:
            raise BadInput(f"holds more than {self.limits.max_members:,} files", "bomb")

    def check_ratio(self, unpacked: int, packed: int) -> None:
        if unpacked > RATIO_FREE_BYTES and unpacked > self.limits.max_ratio * packed:
            raise BadInput(f"unpacks to more than {self.limits.max_ratio:g} times its size", "bomb")


class Unpacked(io.RawIOBase):
    """A stream out of the `chunks` that `file` unpacks to, of which `packed` bytes were read so far."""

    def __init__(self, file: Any, chunks: Iterator[bytes], packed: Callable[[], int], budget: Budget):
        self._file, self._chunks, self._packed, self._budget = file, chunks, packed, budget
        self._rest = memoryview(b"")
        self._size = 0
        self.problem: tuple[str, str] | None = None  # (kind, detail), once the data broke

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fills the whole buffer while there are data, so that a `peek` shows as much as there is."""
        filled = 0
        while filled < len(buffer) and (self._rest or self._next()):
            part = self._rest[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            filled += len(part)
        return filled

    def _next(self) -> bool:
        if self.problem is not None:
            return False
        try:
            chunk = next(self._chunks, b"")
        except Truncated as error:
            self.problem = ("truncated", str(error))
            return False
        except _BROKEN as error:
            self.problem = ("broken", str(error) or type(error).__name__)
            return False
        self._size += len(chunk)
        self._budget.spend(len(chunk))
        self._budget.check_ratio(self._size, self._packed())
        self._rest = memoryview(chunk)
        return bool(chunk)


def problem_of(stream: BinaryIO) -> tuple[str, str] | None:
    """(kind, detail) of what broke a stream off, if it was one of these and did break."""
    raw = getattr(stream, "raw", None)
    return raw.problem if isinstance(raw, Unpacked) else None


def compression_of(head: bytes) -> str | None:
    """`gz`, `bz2`, `zst` or `xz` by the first bytes."""
    return next((kind for magic, kind in COMPRESSIONS.items() if head.startswith(magic)), None)


def unpack(stream: BinaryIO, kind: str, budget: Budget) -> BinaryIO:
    """The data that `stream` holds compressed."""
    counted = _Counted(stream)
    chunks = _zstd(counted) if kind == "zst" else _frames(counted, kind)
    return io.BufferedReader(Unpacked(stream, chunks, counted.position, budget), CHUNK_BYTES)


def member(stream: Any, packed: int, budget: Budget) -> BinaryIO:
    """The stream of an archive's member, which takes up `packed` bytes in it."""
    chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
    return io.BufferedReader(Unpacked(stream, chunks, lambda: packed, budget), CHUNK_BYTES)


class _Counted:
    """A file that knows how many bytes were read of it."""

    closed = False

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._count = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        return data

    def position(self) -> int:
        return self._count

    def close(self) -> None:
        """The file is closed by whoever opened it."""


class _Inflater:
    """zlib's decompressor for gzip, with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, size)

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail and not self._inflate.eof

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


def _frames(stream: _Counted, kind: str) -> Iterator[bytes]:
    """Unpacks gzip members, bz2 or xz streams, one behind the other."""
    make: dict[str, Callable[[], Any]] = {"gz": _Inflater, "bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}
    data = stream.read(CHUNK_BYTES)
    while data:
        frame = make[kind]()
        while not frame.eof:
            if frame.needs_input and not data and not (data := stream.read(CHUNK_BYTES)):
                raise Truncated("the compressed data end too early")
            chunk = frame.decompress(data, CHUNK_BYTES)
            data = b""
            if chunk:
                yield chunk
        data = frame.unused_data.lstrip(b"\0")  # tapes and some tools fill up with zeros
        while not data and (data := stream.read(CHUNK_BYTES)):
            data = data.lstrip(b"\0")
        if 0 < len(data) < 8:
            data += stream.read(8)
        if data and compression_of(data) != kind:
            raise ValueError("something else stands behind the compressed data")


def _zstd(stream: _Counted) -> Iterator[bytes]:
    import pyarrow as pa

    unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    try:
        while chunk := unpacked.read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        if "runcated" in str(error):
            raise Truncated("the compressed data end too early") from None
        raise
