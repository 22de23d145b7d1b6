"""The validation text of a domain, as the tokens a model reads and as the bytes a compressor reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.corpus import read_documents
from ..errors import GristmillError
from ..tokenizer.store import TokenStore
from .bpb import domain_tokens


@dataclass(frozen=True)
class ValidationText:
    """One domain's documents: N tokens and exactly the bytes that they stand for."""

    token_ids: np.ndarray  # int64 [N]
    offsets: np.ndarray  # int64 [documents + 1]: where each document's tokens begin
    sizes: np.ndarray  # int64 [N]: bytes each token stands for, 0 for special tokens
    text: bytes

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Sums `[documents]` of one value a token, over the tokens that are counted: those that stand for bytes,
        but for the stream's first, which nothing predicts."""
        counted = self.sizes > 0
        counted[0] = False
        return np.add.reduceat(np.where(counted, values, 0), self.offsets[:-1])


def validation_text(
    corpus: Path,
    store: TokenStore,
    domain: str,
    token_bytes: np.ndarray,
    limit_tokens: int,
    max_document_tokens: int | None = None,
) -> ValidationText:
    """Validation tokens of a domain, chosen by `domain_tokens`, and the bytes of the same documents."""
    token_ids, offsets = domain_tokens(store, domain, limit_tokens, max_document_tokens)
    sizes = token_bytes[token_ids]
    if not sizes[1:].sum():
        raise GristmillError(f"domain {domain!r} has no validation text: raise corpus.validation_fraction")
    table = read_documents(corpus, split="validation", domain=domain, columns=["text"])
    texts = table.column("text").slice(0, len(offsets) - 1).to_pylist()
    return ValidationText(token_ids, offsets, sizes, _same_bytes(domain, texts, sizes, offsets))


def _same_bytes(domain: str, texts: list[str], sizes: np.ndarray, offsets: np.ndarray) -> bytes:
    """The documents' bytes, each cut where its tokens were.

    GristmillError where a document and its tokens differ in length: then they come from different corpora.
    """
    stale = "the tokens were packed from another corpus; run stage tokens again"
    if len(texts) < len(offsets) - 1:
        raise GristmillError(
            f"domain {domain!r} has {len(texts)} validation documents in the corpus, more in the tokens: {stale}"
        )
    parts = []
    for number, text in enumerate(texts):
        data = text.encode()
        counted = int(sizes[offsets[number] : offsets[number + 1]].sum())
        may_be_cut = sizes[offsets[number + 1] - 1] > 0  # a whole document ends with <|eos|>, which has no bytes
        if counted > len(data) or (counted < len(data) and not may_be_cut):
            raise GristmillError(
                f"validation document {number} of domain {domain!r} has {len(data)} bytes in the corpus and {counted} "
                f"in the tokens: {stale}"
            )
        parts.append(data[:counted])
    return b"".join(parts)
