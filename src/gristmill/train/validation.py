"""Measurements during pre-training: bits per byte of each domain, or the loss on hidden tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.experts import mark_padding
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer
from .config import PretrainConfig
from .data import Hide, TokenBatch
from .objectives import masked_token_loss, next_token_loss
from .precision import autocast

ROWS = 8  # sequences in a pass


class Validation:
    """The first validation tokens of every domain as rows that do not overlap; attention as in training.

    Called with a model it gives `validation_bits_per_byte`, the mean by the domains' weights, and
    `validation_bits_per_byte/DOMAIN`; for masked tokens, `validation_loss` in nats a hidden token. Alone, the first of
    them is what `NAMES` says.
    """

    NAMES = ("validation_bits_per_byte", "validation_loss")

    def __init__(
        self,
        config: PretrainConfig,
        store: TokenStore,
        tokenizer: Tokenizer,
        masked: bool,
        hide: Hide | None,
        precision: str,
        device: torch.device,
    ):
        self._hide = hide
        self._precision, self._device = precision, device
        self._weights = store.weights
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes)
        self._batches = {name: self._batch(store, name, config, tokenizer.bos_id, masked) for name in store.domains}

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        measure = self._bits_per_byte if self._hide is None else self._hidden_loss
        found = {domain: measure(model, batch) for domain, batch in self._batches.items()}
        name = self.NAMES[0] if self._hide is None else self.NAMES[1]
        mean = float(np.average(list(found.values()), weights=[self._weights[domain] for domain in found]))
        return {name: mean, **{f"{name}/{domain}": value for domain, value in found.items()}}

    def _batch(self, store: TokenStore, domain: str, config: PretrainConfig, bos_id: int, masked: bool) -> TokenBatch:
        tokens = np.asarray(store.tokens("validation", domain)[: config.validation_tokens + 1]).astype(np.int64)
        length = min(config.sequence_length, len(tokens) - 1)
        if length < 1:
            raise GristmillError(f"domain {domain!r} has no validation tokens: raise corpus.validation_fraction")
        rows = (len(tokens) - 1) // length
        inputs = torch.from_numpy(tokens[: rows * length].reshape(rows, length))
        segments = (inputs == bos_id).cumsum(dim=1) if masked else None
        if self._hide is not None:
            hidden, weights = self._hide(tokens[: rows * length], rng=np.random.default_rng(0))
            if not weights.any():
                raise GristmillError(
                    f"none of the {rows * length} validation tokens of domain {domain!r} is hidden: raise "
                    "validation_tokens, mask_rate or corpus.validation_fraction"
                )
            return TokenBatch(
                torch.from_numpy(hidden).view_as(inputs), inputs, torch.from_numpy(weights).view(rows, length), segments
            )
        targets = torch.from_numpy(tokens[1 : rows * length + 1].reshape(rows, length))
        return TokenBatch(inputs, targets, torch.ones_like(targets, dtype=torch.float32), segments)

    def _bits_per_byte(self, model: Any, batch: TokenBatch) -> float:
        """Tokens that stand for no bytes are not counted."""
        sizes = self._token_bytes[batch.targets_BT]
        nats = self._total(model, replace(batch, weights_BT=(sizes > 0).float()), next_token_loss)
        return float(nats) / math.log(2) / float(sizes.sum())

    def _hidden_loss(self, model: Any, batch: TokenBatch) -> float:
        return float(self._total(model, batch, masked_token_loss)) / batch.weight

    def _total(self, model: Any, batch: TokenBatch, loss: Any) -> Tensor:
        nats = torch.zeros((), dtype=torch.float64, device=self._device)
        try:
            for rows in batch.split(ROWS):
                with autocast(self._precision, self._device):
                    nats += loss(model, rows)[0]
        finally:
            mark_padding(model, None)
        return nats
