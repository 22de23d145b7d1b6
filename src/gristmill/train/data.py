"""Batches as a pure function of the step, so that a resumed run sees exactly what an undisturbed one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import GristmillError
from ..tokenizer.packing import cut_by_stream
from ..tokenizer.store import TokenStore
from .config import MixturePhase, Packing
from .mixture import Mixture
from .rows import I64, BestFitRows, PlainText, Row, Rows, StreamRows, Turn, TurnedText


class Hide(Protocol):
    """Masked language modelling (`fill_in_middle.mask_tokens`, all but the first and the last argument given)."""

    def __call__(self, row: I64, *, rng: np.random.Generator) -> tuple[I64, NDArray[np.float32]]:
        """Inputs `[n]` with some of the row's tokens hidden, and weights `[n]` of what is to be predicted."""
        ...


@dataclass(frozen=True)
class Shard:
    """Which rows of every batch one of `count` processes makes and learns from: an equal, contiguous block."""

    rank: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> range:
        """The numbers of this process's rows in a batch of all processes; GristmillError where they do not divide."""
        if batch_size % self.count:
            above = self.count * (batch_size // self.count + 1)
            raise GristmillError(
                f"a batch of {batch_size} sequences cannot be shared equally by {self.count} processes: set batch_size "
                f"to a multiple of {self.count} ({above}, say), or start a number of processes that divides it"
            )
        size = batch_size // self.count
        return range(self.rank * size, (self.rank + 1) * size)


WHOLE = Shard()


@dataclass(frozen=True)
class TokenBatch:
    """Inputs and what they should predict. `weights_BT` says how much each prediction counts, 0 for padding;
    `segments_BT` numbers the document of each input token, or is None where attention need not be masked. Batches are
    made on the CPU and stay there: only a forward pass copies what it needs to the device."""

    inputs_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    segments_BT: Tensor | None = None

    @property
    def weight(self) -> float:
        """What the loss terms of the batch weigh together."""
        return float(self.weights_BT.sum())

    @property
    def tokens(self) -> int:
        """Input places, padding counted."""
        return self.inputs_BT.numel()

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

    A domain's documents are laid out in rows of `sequence_length` tokens, by `packing`: "stream" (`StreamRows`) or
    "best_fit" (`BestFitRows`, whose documents never see each other, whatever `document_mask` is). Sample number i takes
    its domain by the i-th number of one seeded stream (`Mixture`; `phases` change the store's weights at given steps)
    and then the next row of that domain in an order shuffled anew each epoch: no row is seen twice before all of its
    domain have been seen once. A batch is a function of the step, and a process makes its own rows only.

    `turn` turns some of the documents to fill-in-the-middle (`TurnedText`). `hide` makes batches for
    masked language modelling, whose targets are the tokens themselves; what is hidden is drawn anew for each sample.
    """

    def __init__(
        self,
        store: TokenStore,
        batch_size: int,
        sequence_length: int,
        seed: int,
        document_mask: bool,
        bos_id: int,
        packing: Packing = "stream",
        *,
        phases: Sequence[MixturePhase] = (),
        turn: Turn | None = None,
        hide: Hide | None = None,
    ):
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self._directory, self._vocab_size = store.directory, store.vocab_size
        self.masked = document_mask or packing == "best_fit"
        self._hide = hide
        weights = {name: store.weights[name] for name in store.domains}
        self._mixture = Mixture(weights, phases, batch_size, seed, str(store.directory))
        kind = BestFitRows if packing == "best_fit" else StreamRows
        self.rows: dict[str, Rows] = {}
        for name in self._mixture.drawn_domains:
            text = PlainText(store, name) if turn is None else TurnedText(store, name, sequence_length, turn)
            self.rows[name] = kind(text, name, sequence_length, bos_id)
        self._orders: dict[str, tuple[int, I64]] = {}

    def __call__(self, step: int, shard: Shard = WHOLE) -> TokenBatch:
        rows = shard.rows(self.batch_size)
        first = step * self.batch_size
        domains, ranks = self._mixture.drawn(first + rows.start, first + rows.stop)
        columns = _empty(len(rows), self.sequence_length, self.masked)
        for place, (domain, rank) in enumerate(zip(domains.tolist(), ranks.tolist(), strict=True)):
            name = self._mixture.domains[domain]
            of_domain = self.rows[name]
            epoch, number = divmod(rank, len(of_domain))
            row = Row(*(None if column is None else column[place] for column in columns))  # type: ignore[arg-type]
            filled = of_domain.fill(int(self._order(name, epoch)[number]), epoch, row)
            if self._hide is not None:
                rng = np.random.default_rng([self.seed, 4, first + rows[place]])
                row.targets[:], row.weights[:] = row.inputs, 0  # padding is neither hidden nor predicted
                row.inputs[:filled], row.weights[:filled] = self._hide(row.targets[:filled], rng=rng)
        highest = int(max(columns.inputs.max(), columns.targets.max()))
        if highest >= self._vocab_size:  # on a GPU an embedding without such a row ends the process
            raise GristmillError(
                f"{self._directory} holds the token id {highest}, but knows {self._vocab_size} tokens only: its "
                "files are damaged; run stage tokens again"
            )
        return TokenBatch(*(None if column is None else torch.from_numpy(column) for column in columns))  # type: ignore[arg-type]

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each domain is gone through in the first `steps` steps."""
        drawn = self._mixture.counts(steps * self.batch_size)
        return {name: drawn[name] / len(rows) for name, rows in self.rows.items()}

    def tokens(self, steps: int) -> int:
        """How many tokens of documents the first `steps` steps read, padding not counted."""
        total = 0
        for name, drawn in self._mixture.counts(steps * self.batch_size).items():
            rows = self.rows[name]
            epochs, rest = divmod(drawn, len(rows))
            total += epochs * rows.tokens(np.arange(len(rows))) if epochs else 0
            total += rows.tokens(self._order(name, epochs)[:rest]) if rest else 0
        return total

    def cut_documents(self) -> dict[str, float]:
        """Shares of the documents that stand in more than one row: `cut_documents` as they are laid out here and
        `cut_documents_stream` as packing "stream" lays them out."""
        documents = sum(len(rows.text.documents) - 1 for rows in self.rows.values())
        here = sum(rows.cut_documents() for rows in self.rows.values())
        stream = sum(cut_by_stream(rows.text.documents, self.sequence_length) for rows in self.rows.values())
        return {"cut_documents": here / documents, "cut_documents_stream": stream / documents}

    def _order(self, name: str, epoch: int) -> I64:
        """The rows of a domain as that epoch shuffles them; the last epoch's are kept."""
        known, order = self._orders.get(name, (-1, None))
        if order is None or known != epoch:
            domain = self._mixture.domains.index(name)
            order = np.random.default_rng([self.seed, 1, domain, epoch]).permutation(len(self.rows[name]))
            self._orders[name] = (epoch, order)
        return order


def check_vocabulary(vocab_size: int, store: TokenStore) -> None:
    """GristmillError if a model of `vocab_size` tokens does not know all tokens of the store."""
    if store.vocab_size > vocab_size:
        raise GristmillError(
            f"{store.directory} has tokens of a vocabulary of {store.vocab_size}, the model knows {vocab_size}: pack "
            "the tokens with the model's tokenizer, or train a model with theirs"
        )


def _empty(rows: int, length: int, masked: bool) -> Row:
    """Columns of a batch, each `[rows, length]`, to be filled."""
    inputs, targets = np.empty((rows, length), np.int64), np.empty((rows, length), np.int64)
    segments = np.empty((rows, length), np.int64) if masked else None
    return Row(inputs, targets, np.empty((rows, length), np.float32), segments)


class ConversationBatches:
    """Right-padded batches of tokenised conversations; each epoch is shuffled anew.

    `examples` holds `(ids, mask)` pairs; the loss counts the predictions of tokens whose mask is 1.
    """

    def __init__(self, examples: list[tuple[list[int], list[int]]], batch_size: int, pad_id: int, seed: int):
        if len(examples) < batch_size:
            raise GristmillError(f"{len(examples)} examples do not fill one training batch of {batch_size}")
        self.examples, self.batch_size, self.pad_id, self.seed = examples, batch_size, pad_id, seed
        self.batches_per_epoch = len(examples) // batch_size

    def __call__(self, step: int, shard: Shard = WHOLE) -> TokenBatch:
        return pad_examples([self.examples[i] for i in self.indices(step, shard)], self.pad_id)

    def indices(self, step: int, shard: Shard = WHOLE) -> list[int]:
        """Which examples step `step` uses, or those of one process."""
        return epoch_indices(len(self.examples), self.batch_size, step, self.seed, shard)

    def weight(self, step: int) -> float:
        """What the loss terms of the whole step's batch weigh together, whoever makes its rows."""
        return float(sum(sum(self.examples[i][1][1:]) for i in self.indices(step)))


def epoch_indices(count: int, batch_size: int, step: int, seed: int, shard: Shard = WHOLE) -> list[int]:
    """The indices below `count` that step `step` uses, `batch_size` of them or one process's share; a seeded
    permutation per epoch, its rest dropped."""
    epoch, place = divmod(step, count // batch_size)
    rows = shard.rows(batch_size)
    return _epoch_order(count, epoch, seed)[place * batch_size :][rows.start : rows.stop].tolist()


@lru_cache(maxsize=4)
def _epoch_order(count: int, epoch: int, seed: int) -> I64:
    order = np.random.default_rng([seed, 2, epoch]).permutation(count)
    order.setflags(write=False)
    return order


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
