"""What a general compressor makes of the same bytes: the line every language model should stay under."""

from __future__ import annotations

import gzip

GZIP_LEVEL = 9


def gzip_bits_per_byte(text: bytes) -> float:
    """Bits per byte of `gzip -9` on one stream, header and checksum (18 bytes) included, no name or time in it."""
    return 8 * len(gzip.compress(text, compresslevel=GZIP_LEVEL, mtime=0)) / len(text)
