"""Batches as a pure function of the step, so that a resumed run sees exactly what an undisturbed one sees."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import GristmillError
from ..tokenizer.packing import best_fit, cut_by_stream
from ..tokenizer.store import TokenStore
from .config import Packing

I64 = NDArray[np.int64]


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


class Rows(Protocol):
    """The training sequences of one domain: `len(rows)` of them, row i a function of i."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row: ...

    def tokens(self, rows: I64) -> int:
        """How many tokens of documents stand in those rows, padding not counted."""
        ...

    def cut_documents(self) -> int:
        """How many documents stand in more than one row."""
        ...

    @property
    def offsets(self) -> I64:
        """int64 `[documents + 1]`: where each document starts in the domain's tokens, and where the last one ends."""
        ...


class Row(NamedTuple):
    """One sequence, each array `[sequence_length]`, as in `TokenBatch`."""

    inputs: I64
    targets: I64
    weights: NDArray[np.float32]
    segments: I64


class StreamRows:
    """A domain's documents as one stream of tokens, cut every `length` predictions; the last few are left out."""

    def __init__(self, store: TokenStore, domain: str, length: int, bos_id: int):
        self._store, self._domain, self._length, self._bos_id = store, domain, length, bos_id
        self._stream = _training_tokens(store, domain)
        if len(self) < 1:
            raise GristmillError(
                f"domain {domain!r} has fewer than {length + 1} training tokens: collect more of it, give "
                f"it weight 0 or set a smaller sequence_length"
            )

    def __len__(self) -> int:
        return max(len(self._stream) - 1, 0) // self._length

    def __getitem__(self, row: int) -> Row:
        start = row * self._length
        tokens = self._stream[start : start + self._length + 1].astype(np.int64)
        inputs = tokens[:-1]
        segments = (inputs == self._bos_id).cumsum()
        return Row(inputs, tokens[1:], np.ones(self._length, np.float32), segments)

    def tokens(self, rows: I64) -> int:
        return len(rows) * self._length

    def cut_documents(self) -> int:
        return cut_by_stream(self.offsets, self._length)

    @property
    def offsets(self) -> I64:
        return self._store.offsets("train", self._domain)


class BestFitRows:
    """A domain's documents packed into sequences of `length` tokens (`tokenizer/packing.py`).

    Every token is an input of one row, and every token but a document's first the target of one. The last token of a
    document and the padding predict nothing: their weight is 0. Documents in a row are numbered from 1; what pads it,
    bos tokens, has the number 0.
    """

    def __init__(self, store: TokenStore, domain: str, length: int, bos_id: int):
        self._stream, self._length, self._bos_id = _training_tokens(store, domain), length, bos_id
        self.offsets = store.offsets("train", domain)
        self.packed = best_fit(np.diff(self.offsets), length)
        self._filled = self.packed.sequence_tokens()
        if not len(self):
            raise GristmillError(f"domain {domain!r} has no training tokens: collect more of it or give it weight 0")

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, row: int) -> Row:
        inputs, targets = np.full((2, self._length), self._bos_id)
        weights, segments = np.zeros(self._length, np.float32), np.zeros(self._length, np.int64)
        place = 0
        for number, piece in enumerate(self.packed.pieces(row), start=1):
            first, behind = self.offsets[piece.document : piece.document + 2].tolist()
            size = piece.end - piece.start
            predicted = min(first + piece.end + 1, behind) - (first + piece.start + 1)
            tokens = self._stream[first + piece.start : first + piece.start + 1 + predicted]
            inputs[place : place + size] = tokens[:size]
            targets[place : place + predicted] = tokens[1:]
            weights[place : place + predicted] = 1
            segments[place : place + size] = number
            place += size
        return Row(inputs, targets, weights, segments)

    def tokens(self, rows: I64) -> int:
        return int(self._filled[rows].sum())

    def cut_documents(self) -> int:
        return self.packed.cut_documents


def _training_tokens(store: TokenStore, domain: str) -> NDArray[np.unsignedinteger[Any]]:
    """The tokens of a domain's training documents. Rows of them are read in no order, and the system is told so: it
    would else read far beyond each."""
    tokens = store.tokens("train", domain)
    if isinstance(tokens.base, mmap.mmap):
        tokens.base.madvise(mmap.MADV_RANDOM)
    return tokens


class PretrainBatches:
    """Draws sequences from the domains of a token store by their weights.

    A domain's documents are laid out in rows of `sequence_length` tokens, by `packing`: "stream" (`StreamRows`) or
    "best_fit" (`BestFitRows`, whose documents never see each other, whatever `document_mask` is). Sample number i takes
    its domain from the i-th number of one seeded stream and then the next row of that domain in an order shuffled anew
    each epoch: no row is seen twice before all of its domain have been seen once.
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
    ):
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self._directory, self._vocab_size = store.directory, store.vocab_size
        self.masked = document_mask or packing == "best_fit"
        self.domains = [name for name in store.domains if store.weights[name] > 0]
        kind = BestFitRows if packing == "best_fit" else StreamRows
        self.rows: dict[str, Rows] = {name: kind(store, name, sequence_length, bos_id) for name in self.domains}
        weights = np.array([store.weights[name] for name in self.domains])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.cumulative[-1] = 1.0
        self._orders: dict[int, tuple[int, I64]] = {}
        self._domain_of = np.empty(0, dtype=np.int64)
        self._rank_of = np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> TokenBatch:
        rows = [self._row(step * self.batch_size + i) for i in range(self.batch_size)]
        inputs, targets, weights, segments = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        highest = int(max(inputs.max(), targets.max()))
        if highest >= self._vocab_size:  # on a GPU an embedding without such a row ends the process
            raise GristmillError(
                f"{self._directory} holds the token id {highest}, but knows {self._vocab_size} tokens only: its "
                "files are damaged; run stage tokens again"
            )
        return TokenBatch(inputs, targets, weights, segments if self.masked else None)

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each domain is gone through in the first `steps` steps."""
        drawn = self._drawn(steps)
        return {name: drawn[name] / len(rows) for name, rows in self.rows.items()}

    def tokens(self, steps: int) -> int:
        """How many tokens of documents the first `steps` steps read, padding not counted."""
        total = 0
        for domain, (name, drawn) in enumerate(self._drawn(steps).items()):
            rows = self.rows[name]
            epochs, rest = divmod(drawn, len(rows))
            total += epochs * rows.tokens(np.arange(len(rows))) if epochs else 0
            total += rows.tokens(self._order(domain, epochs)[:rest]) if rest else 0
        return total

    def cut_documents(self) -> dict[str, float]:
        """Shares of the documents that stand in more than one row: `cut_documents` as they are laid out here and
        `cut_documents_stream` as packing "stream" lays them out."""
        documents = sum(len(rows.offsets) - 1 for rows in self.rows.values())
        here = sum(rows.cut_documents() for rows in self.rows.values())
        stream = sum(cut_by_stream(rows.offsets, self.sequence_length) for rows in self.rows.values())
        return {"cut_documents": here / documents, "cut_documents_stream": stream / documents}

    def _drawn(self, steps: int) -> dict[str, int]:
        """How many rows of each domain the first `steps` steps read."""
        samples = steps * self.batch_size
        self._extend(samples)
        drawn = np.bincount(self._domain_of[:samples], minlength=len(self.domains)).tolist()
        return dict(zip(self.domains, drawn, strict=True))

    def _row(self, sample: int) -> Row:
        self._extend(sample + 1)
        domain, rank = int(self._domain_of[sample]), int(self._rank_of[sample])
        rows = self.rows[self.domains[domain]]
        epoch, place = divmod(rank, len(rows))
        return rows[int(self._order(domain, epoch)[place])]

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

    def _order(self, domain: int, epoch: int) -> I64:
        """The rows of a domain as that epoch shuffles them; the last epoch's are kept."""
        known, order = self._orders.get(domain, (-1, None))
        if order is None or known != epoch:
            count = len(self.rows[self.domains[domain]])
            order = np.random.default_rng([self.seed, 1, domain, epoch]).permutation(count)
            self._orders[domain] = (epoch, order)
        return order


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
