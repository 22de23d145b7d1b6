"""A tokenizer's vocabulary as the automata see it: the bytes of text that each token stands for.

Special tokens stand for no text and are in no automaton; ends of text are allowed by the matcher, not by a grammar.
Where the first token of a text loses its space (all kinds but bpe), such a token is there twice: by its own id as it
reads later in a text, and by an id above the vocabulary as it reads at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tokenizer.tokenizer import Tokenizer

# A byte that no UTF-8 holds marks what is not text; llguidance wants one such token, by which its own text ends.
_END = b"\xff<end of text>"


class Vocabulary:
    """Ids 0 to `vocab_size` - 1 of a model's logits, of which a tokenizer may lack the last or name more.

    `first_ids`: id -> the id above the vocabulary by which the token is known as the first of a text, for those that
    read differently there; None for one that is empty there. `text` and `ends`: int32 `[ceil(vocab_size / 32)]`, a bit
    for each token that is text, and for each of `stop_ids`.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int] = ()):
        from llguidance import LLTokenizer

        self.tokenizer = tokenizer
        self.size = vocab_size
        self.stop_ids = frozenset(i for i in (*tokenizer.stop_ids, *stop_ids) if i < vocab_size)
        table = tokenizer._text_bytes
        later = table.later[:vocab_size] + [b""] * max(0, vocab_size - len(table.later))
        for token_id in self.stop_ids:
            later[token_id] = b""
        self.first_ids: dict[int, int | None] = {}
        extra: list[bytes] = []
        for token_id, (at_first, as_later) in enumerate(zip(table.first, later, strict=False)):
            if as_later and at_first != as_later:
                self.first_ids[token_id] = vocab_size + len(extra) if at_first else None
                extra += [at_first] if at_first else []
        self.text = _bits((i for i, token in enumerate(later) if token), vocab_size)
        self.ends = _bits(self.stop_ids, vocab_size)
        tokens: Any = _Tokens([*later, *extra, _END])
        self.backend = LLTokenizer(tokens)
        self.num_words = len(self.text)
        self.backend_words = -(-self.backend.vocab_size // 32)
        self._moved = np.array(list(self.first_ids), dtype=np.int64)
        self._from = np.array([-1 if i is None else i for i in self.first_ids.values()], dtype=np.int64)

    def at_first(self, mask: NDArray[np.int32]) -> NDArray[np.int32]:
        """What the automata allow as a text's first token, int32 `[backend_words]`, by the vocabulary's ids."""
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        bits[self._moved] = np.where(self._from >= 0, bits[self._from], 0)
        return np.packbits(bits, bitorder="little").view(np.int32)


class _Tokens:
    """What `LLTokenizer` asks of a tokenizer. It is never asked for ids of text: grammars here force no tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids: list[int] = []

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("ids of text are not asked for")


def _bits(ids: Iterable[int], size: int) -> NDArray[np.int32]:
    words = np.zeros(-(-size // 32), dtype=np.uint32)
    for token_id in ids:
        words[token_id // 32] |= np.uint32(1 << token_id % 32)
    return words.view(np.int32)
