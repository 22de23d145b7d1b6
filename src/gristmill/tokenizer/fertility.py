"""Fertility: how many tokens a tokenizer makes of text it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Fertility:
    """Counts over a text; a word is a stretch without white space, bytes are those of UTF-8."""

    tokens: int
    words: int
    bytes: int

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(self.words, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Count tokens, words and bytes of `texts`."""
    texts = list(texts)
    return Fertility(
        tokens=sum(len(ids) for ids in tokenizer.encode_batch(texts)),
        words=sum(len(text.split()) for text in texts),
        bytes=sum(len(text.encode()) for text in texts),
    )
