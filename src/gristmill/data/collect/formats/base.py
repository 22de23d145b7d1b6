"""What the readers of document formats share: what they yield, and how they refuse.

A reader is a generator `read(stream, name, ...)` over `Extracted`. `stream` is a binary file at its beginning; `name`
is what the file is called, for messages and for what its ending says. A reader holds no more than a bounded part of the
file in memory unless its docstring says otherwise, and raises nothing but `BadInput`.
"""

from __future__ import annotations

import lzma
import re
import zlib
from typing import BinaryIO, NamedTuple


class Extracted(NamedTuple):
    """One document out of a file. `part` says where it stands in it, "" for the whole file. `license`, `language` and
    `domain` are None where the file does not state them. `flags` are words joined by commas, in alphabetical order."""

    text: str
    part: str = ""
    license: str | None = None
    language: str | None = None
    flags: str = ""
    domain: str | None = None


class BadInput(Exception):
    """The file, or the rest of it, cannot be read; the message says what is wrong with it, without the file's name.
    `kind` is that of the problem in the report (`tally.PROBLEMS`)."""

    def __init__(self, message: str, kind: str = "broken"):
        super().__init__(message)
        self.kind = kind


# A document format that cannot be streamed is read whole up to this size; larger files are refused.
MAX_WHOLE_BYTES = 256 << 20
# What reading a file, compressed or not, can raise; zstd's errors are OSErrors.
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
REPAIRED = "repaired"  # the flag of a text whose bytes did not fit its encoding


def read_whole(stream: BinaryIO, limit: int) -> bytes:
    """All bytes of a stream. BadInput when there are more than `limit`, or when it breaks off."""
    try:
        data = stream.read(limit + 1)
    except READ_ERRORS as error:
        raise BadInput(f"cannot be read: {error}") from None
    if len(data) > limit:
        raise BadInput(f"is larger than {limit:,} bytes, the most that is read of such a file", "too_large")
    return data


def join_flags(*flags: str) -> str:
    """Flags in the form of the column: sorted, once each, joined by commas; empty ones are left out."""
    words = {word for flag in flags for word in flag.split(",") if word}
    return ",".join(sorted(words))


def language_code(tag: str) -> str | None:
    """The language of a tag or locale, without its country: `en` of `en-GB`, `en_US.UTF-8`; None for what is no tag."""
    match = re.match(r"[A-Za-z]{2,3}(?=$|[-_.@])", tag.strip())
    return match.group().lower() if match else None
