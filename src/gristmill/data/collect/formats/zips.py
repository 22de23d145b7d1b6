"""Zip archives that cannot hurt: their directory is looked at before it is held in memory."""

from __future__ import annotations

import struct
import zipfile
from typing import Any, BinaryIO, cast

from .base import BadInput

_ENTRY = b"PK\x01\x02"  # each entry of the directory begins with it


def open_zip(stream: BinaryIO, max_entries: int, max_bytes: int) -> zipfile.ZipFile:
    """The archive in a stream that can be sought in. BadInput when it is none, or when its directory has more than
    `max_entries` entries or `max_bytes` bytes: zipfile holds more than half a kilobyte for each entry."""
    directory = _Directory(stream, max_entries, max_bytes)
    try:
        archive = zipfile.ZipFile(cast(Any, directory))
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        what = "its directory, at the end, is not there" if "not a zip file" in str(error) else error
        raise BadInput(f"is no whole zip archive: {what}") from None
    directory.is_read = True
    return archive


class _Directory:
    """The stream as zipfile sees it. How many entries an archive says it has binds nobody: zipfile reads the directory
    in one piece and takes what is in there, so that piece is what is looked at."""

    def __init__(self, stream: BinaryIO, max_entries: int, max_bytes: int):
        self._stream, self._max_entries, self._max_bytes = stream, max_entries, max_bytes
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self.is_read = False

    def read(self, size: int = -1) -> bytes:
        if self.is_read:
            return self._stream.read(size)
        if size > self._max_bytes:
            raise BadInput(f"has a directory of {size:,} bytes, more than {self._max_bytes:,}", "bomb")
        data = self._stream.read(size)
        if data.startswith(_ENTRY) and data.count(_ENTRY) > self._max_entries:
            raise BadInput(f"holds more than {self._max_entries:,} entries", "bomb")
        return data
