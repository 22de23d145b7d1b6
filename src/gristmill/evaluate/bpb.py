"""Bits per byte: how many bits a model needs for each byte of text it has not seen.

The measure does not depend on the tokenizer, so models with different vocabularies, and a compressor such as gzip,
stand on one scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from ..tokenizer.store import TokenStore

HEAD_ROWS = 1024  # hidden states turned into logits at once: 32 MiB of fp32 for a vocabulary of 8192


@dataclass(frozen=True)
class BitsPerByte:
    """Bits spent on the predicted tokens, and the bytes these tokens stand for."""

    bits: float
    bytes: int

    @property
    def value(self) -> float:
        return self.bits / self.bytes


def bits_per_byte(
    model: Decoder,
    token_ids: np.ndarray,
    token_bytes: np.ndarray,
    *,
    window: int,
    stride: int,
    batch_size: int = 16,
) -> BitsPerByte:
    """Bits per byte of a stream `[N]` of `<|bos|> ... <|eos|>` documents; `token_bytes` is `[vocab]`.

    Only tokens that stand for bytes are counted. What the model spends on `<|eos|>` and `<|bos|>` is left out, since
    the compressor it is compared with is told nothing of documents either (nanochat counts the same way). Each
    counted token is predicted exactly once, the stream's first never; `stride == window` is the quick measure that
    reads every token once. ValueError where nothing can be counted.
    """
    token_ids = np.asarray(token_ids)
    sizes = token_bytes[token_ids[1:]]
    if not sizes.sum():
        raise ValueError("the stream predicts no token that stands for bytes")
    bits = token_bits(model, token_ids, window=window, stride=stride, batch_size=batch_size)
    return BitsPerByte(bits=float(bits[1:][sizes > 0].sum()), bytes=int(sizes.sum()))


@torch.inference_mode()
def token_bits(model: Decoder, token_ids: np.ndarray, *, window: int, stride: int, batch_size: int = 16) -> np.ndarray:
    """Bits of each token given those before it, float64 `[N]`; 0 for the first, which nothing predicts.

    At most `HEAD_ROWS` rows of logits exist at once, however large the batch.
    """
    tokens = torch.from_numpy(np.asarray(token_ids).astype(np.int64))
    bits = torch.zeros(len(tokens), dtype=torch.float64)
    spans = windows(len(tokens) - 1, window, stride)
    length = min(window, len(tokens) - 1)
    device = next(model.parameters()).device
    for at in range(0, len(spans), batch_size):
        batch = spans[at : at + batch_size]
        starts = torch.tensor([start for start, _, _ in batch])
        rows = starts[:, None] + torch.arange(length)  # stream position of every input
        scored = torch.zeros(rows.shape, dtype=torch.bool)
        for row, (start, first, end) in enumerate(batch):
            scored[row, first - start : end - start] = True
        hidden_NC = model.hidden_states(tokens[rows].to(device))[scored.to(device)]
        targets_N = rows[scored] + 1
        bits[targets_N] = _bits(model, hidden_NC, tokens[targets_N].to(device))
    return bits.numpy()


def windows(predictions: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows over a stream as `(start, first, end)`: inputs `start` to `start + min(window, predictions)`, of which
    those from `first` to `end` are scored. Scored spans tile `0..predictions` without gap or overlap.

    All windows have one length: the last is moved back rather than cut, so that its predictions see more, not less.
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride ({stride}) must be between 1 and window ({window})")
    length = min(window, predictions)
    spans = [(0, 0, length)] if length > 0 else []
    while spans and spans[-1][2] < predictions:
        first = spans[-1][2]
        end = min(first + stride, predictions)
        spans.append((end - length, first, end))
    return spans


def domain_tokens(
    store: TokenStore, domain: str, limit_tokens: int, max_document_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Validation tokens of a domain, at most `limit_tokens`: `(token_ids [N], offsets [documents + 1])`.

    Documents come in file order, each whole or cut after `max_document_tokens`; the last is cut where the limit
    falls. The offsets say where each one's tokens begin, so that a compressor can be given the same bytes.
    """
    starts = store.offsets("validation", domain)
    lengths = np.diff(starts)
    if max_document_tokens is not None:
        lengths = lengths.clip(max=max_document_tokens)
    offsets = np.concatenate([[0], lengths.cumsum()]).clip(max=limit_tokens).astype(np.int64)
    offsets = offsets[: int(np.searchsorted(offsets, offsets[-1])) + 1]
    tokens = store.tokens("validation", domain)
    pieces = [tokens[start : start + length] for start, length in zip(starts, np.diff(offsets), strict=False)]
    return np.concatenate([np.empty(0, dtype=np.int64), *pieces]).astype(np.int64), offsets


def _bits(model: Decoder, hidden_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Bits `[N]`, float64 on the CPU, that the head gives the targets."""
    parts = []
    for hidden, targets in zip(hidden_NC.split(HEAD_ROWS), targets_N.split(HEAD_ROWS), strict=True):
        nats = F.cross_entropy(model.logits(hidden).float(), targets, reduction="none")
        parts.append(nats.cpu().double() / math.log(2))
    return torch.cat(parts)
