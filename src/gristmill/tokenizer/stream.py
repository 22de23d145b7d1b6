"""Token ids -> text while they are being generated."""

from __future__ import annotations

import codecs

from .tables import ByteTable


class TokenStream:
    """Emits text as token ids come, and only whole characters: bytes that may still become one are held back.

    The texts of all `push` calls and of `finish`, joined, are what decoding all ids at once gives.
    """

    def __init__(self, table: ByteTable, begins: bool = True):
        self._table = table
        self._begins = begins
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often its own, sometimes none."""
        text = self._table.bytes_of(token_id, self._begins)
        if self._begins and self._table.bytes_of(token_id, begins=False):
            self._begins = False
        return self._decoder.decode(text)

    def finish(self) -> str:
        """The replacement character for a character that was begun and never completed, else nothing."""
        return self._decoder.decode(b"", final=True)
