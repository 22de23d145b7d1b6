"""What every finder speaks of: a text as UTF-8 bytes, and finds as places in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

Bytes = memoryview
Found = Iterator[tuple[int, int]]  # (start, end) in bytes


def before(data: Bytes, start: int, size: int) -> bytes:
    """The rest of the line before `start`, at most `size` bytes of it."""
    return bytes(data[max(0, start - size) : start]).rpartition(b"\n")[2]


def after(data: Bytes, end: int, size: int) -> bytes:
    """At most `size` bytes from `end` on."""
    return bytes(data[end : end + size])


def matches(pattern: re.Pattern[bytes], data: Bytes, start: int, end: int) -> Iterator[re.Match[bytes]]:
    """The matches that begin between `start` and `end`; the pattern sees four bytes more, for what must not follow."""
    return (match for match in pattern.finditer(data, start, min(len(data), end + 4)) if match.start() < end)
