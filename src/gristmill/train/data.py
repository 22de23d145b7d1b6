"""Batches as a pure function of the step, so that a resumed run sees exactly what an undisturbed one sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import GristmillError
from ..tokenizer.store import TokenStore


@dataclass(frozen=True)
class TokenBatch:
    """Inputs and what they should predict. `weights_BT` says how much each prediction counts, 0 for padding;
    `segments_BT` numbers the document of each input token, or is None where attention need not be masked."""

    inputs_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    segments_BT: Tensor | None = None

    def split(self, size: int | None) -> list[TokenBatch]:
        """Micro-batches of at most `size` rows; None keeps the batch whole."""
        if size is None or size >= len(self.inputs_BT):
            return [self]
        columns = [
            column.split(size) if column is not None else None
            for column in (self.inputs_BT, self.targets_BT, self.weights_BT, self.segments_BT)
        ]
        count = len(columns[0] or ())
        return [TokenBatch(*(column[i] if column is not None else None for column in columns)) for i in range(count)]  # type: ignore[arg-type]


class PretrainBatches:
    """Draws sequences from the domains of a token store by their weights.

    A domain's tokens are cut into blocks of `sequence_length` predictions. Sample number i takes its domain from the
    i-th number of one seeded stream and then the next block of that domain in an order shuffled anew each epoch: no
    block is seen twice before all of its domain have been seen once.
    """

    def __init__(
        self, store: TokenStore, batch_size: int, sequence_length: int, seed: int, document_mask: bool, bos_id: int
    ):
        self.store, self.batch_size, self.sequence_length = store, batch_size, sequence_length
        self.seed, self.document_mask, self.bos_id = seed, document_mask, bos_id
        self.domains = [name for name in store.domains if store.weights[name] > 0]
        self.blocks = {name: (len(store.tokens("train", name)) - 1) // sequence_length for name in self.domains}
        for name, count in self.blocks.items():
            if count < 1:
                raise GristmillError(
                    f"domain {name!r} has fewer than {sequence_length + 1} training tokens: collect more of it, give "
                    f"it weight 0 or set a smaller sequence_length"
                )
        weights = np.array([store.weights[name] for name in self.domains])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.cumulative[-1] = 1.0
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._domain_of = np.empty(0, dtype=np.int64)
        self._rank_of = np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> TokenBatch:
        rows = [self._row(step * self.batch_size + i) for i in range(self.batch_size)]
        tokens = torch.from_numpy(np.stack(rows))
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        segments = (inputs == self.bos_id).cumsum(dim=1) if self.document_mask else None
        return TokenBatch(inputs, targets, torch.ones_like(targets, dtype=torch.float32), segments)

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each domain is gone through in the first `steps` steps."""
        samples = steps * self.batch_size
        self._extend(samples)
        drawn = np.bincount(self._domain_of[:samples], minlength=len(self.domains)).tolist()
        return {name: count / self.blocks[name] for name, count in zip(self.domains, drawn, strict=True)}

    def _row(self, sample: int) -> np.ndarray:
        self._extend(sample + 1)
        domain, rank = int(self._domain_of[sample]), int(self._rank_of[sample])
        name = self.domains[domain]
        epoch, place = divmod(rank, self.blocks[name])
        start = int(self._order(domain, epoch)[place]) * self.sequence_length
        tokens = self.store.tokens("train", name)[start : start + self.sequence_length + 1]
        return tokens.astype(np.int64)

    def _extend(self, samples: int) -> None:
        """Know the domain of each of the first `samples` samples, and how many of that domain came before it."""
        if samples <= len(self._domain_of):
            return
        samples = max(samples, 2 * len(self._domain_of), 4096)
        drawn = np.random.default_rng([self.seed, 0]).random(samples)
        self._domain_of = np.searchsorted(self.cumulative, drawn, side="right").clip(max=len(self.domains) - 1)
        self._rank_of = np.empty(samples, dtype=np.int64)
        for domain in range(len(self.domains)):
            mine = self._domain_of == domain
            self._rank_of[mine] = np.arange(mine.sum())

    def _order(self, domain: int, epoch: int) -> np.ndarray:
        key = (domain, epoch)
        if key not in self._orders:
            count = self.blocks[self.domains[domain]]
            self._orders[key] = np.random.default_rng([self.seed, 1, domain, epoch]).permutation(count)
        return self._orders[key]


class ConversationBatches:
    """Right-padded batches of tokenised conversations; each epoch is shuffled anew.

    `examples` holds `(ids, mask)` pairs; the loss counts the predictions of tokens whose mask is 1.
    """

    def __init__(self, examples: list[tuple[list[int], list[int]]], batch_size: int, pad_id: int, seed: int):
        if len(examples) < batch_size:
            raise GristmillError(f"{len(examples)} examples do not fill one training batch of {batch_size}")
        self.examples, self.batch_size, self.pad_id, self.seed = examples, batch_size, pad_id, seed
        self.batches_per_epoch = len(examples) // batch_size

    def __call__(self, step: int) -> TokenBatch:
        return pad_examples([self.examples[i] for i in self.indices(step)], self.pad_id)

    def indices(self, step: int) -> list[int]:
        """Which examples step `step` uses."""
        return epoch_indices(len(self.examples), self.batch_size, step, self.seed)


def epoch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The `batch_size` indices below `count` that step `step` uses; a seeded permutation per epoch, rest dropped."""
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng([seed, 2, epoch]).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def check_lengths(examples: list[tuple[list[int], list[int]]], max_seq_len: int) -> None:
    """GristmillError if a conversation is longer than the model was made for."""
    longest = max(len(ids) for ids, _ in examples)
    if longest > max_seq_len:
        raise GristmillError(
            f"the longest conversation has {longest} tokens, more than base.model.max_seq_len ({max_seq_len})"
        )


def pad_examples(examples: list[tuple[list[int], list[int]]], pad_id: int) -> TokenBatch:
    """One right-padded batch from `(ids, mask)` pairs."""
    longest = max(len(ids) for ids, _ in examples)
    tokens = torch.full((len(examples), longest), pad_id, dtype=torch.int64)
    masks = torch.zeros(len(examples), longest)
    for row, (ids, mask) in enumerate(examples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        masks[row, : len(mask)] = torch.tensor(mask, dtype=torch.float32)
    return TokenBatch(tokens[:, :-1], tokens[:, 1:], masks[:, 1:])
