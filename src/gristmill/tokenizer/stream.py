"""Token ids -> text while they are being generated."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TokenStream:
    """Emits text as token ids come, and only whole characters: bytes that may still become one are held back.

    The texts of all `push` calls and of `finish`, joined, are what decoding all ids at once gives.
    """

    def __init__(self, id_to_bytes: Sequence[bytes]):
        self._id_to_bytes = id_to_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often its own, sometimes none."""
        return self._decoder.decode(bytes_of(self._id_to_bytes, token_id))

    def finish(self) -> str:
        """The replacement character for a character that was begun and never completed, else nothing."""
        return self._decoder.decode(b"", final=True)


def bytes_of(id_to_bytes: Sequence[bytes], token_id: int) -> bytes:
    """The bytes of a token; none for the unused ids by which a model's table may exceed its tokenizer's vocabulary."""
    return id_to_bytes[token_id] if 0 <= token_id < len(id_to_bytes) else b""
