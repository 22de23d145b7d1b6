"""How the documents of a domain are laid out in rows of equal length: the training sequences of pre-training."""

from __future__ import annotations

import math
import mmap
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import GristmillError
from ..tokenizer.packing import best_fit, cut_by_stream
from ..tokenizer.store import TokenStore

I64 = NDArray[np.int64]

MARKS = 3  # <|fim_prefix|>, <|fim_middle|>, <|fim_suffix|>
SHORTEST = 8  # tokens; what is shorter has no middle to speak of


class Row(NamedTuple):
    """One sequence, each array `[sequence_length]`, as in `TokenBatch`; `segments` None where nobody needs them."""

    inputs: I64
    targets: I64
    weights: NDArray[np.float32]
    segments: I64 | None


class Rows(Protocol):
    """The training sequences of one domain: `len(rows)` of them, each a function of its number and the epoch."""

    def __len__(self) -> int: ...

    def fill(self, row: int, epoch: int, into: Row) -> int:
        """Write sequence `row` into those arrays; how many of its places are taken, padding standing behind them."""
        ...

    def tokens(self, rows: I64) -> int:
        """How many tokens stand in those rows, padding not counted."""
        ...

    def cut_documents(self) -> int:
        """How many documents stand in more than one row."""
        ...

    @property
    def text(self) -> Text: ...


class Turn(Protocol):
    """Fill-in-the-middle (`fill_in_middle.py`)."""

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` pieces are turned."""
        ...

    def __call__(self, tokens: I64, document_number: int, epoch: int) -> I64:
        """A piece turned: its tokens in another order and `MARKS` more."""
        ...


class Text(Protocol):
    """The tokens of a domain's training documents, one after the other."""

    def __len__(self) -> int: ...

    @property
    def documents(self) -> I64:
        """int64 `[documents + 1]`: where each document starts in the token store, and where the last one ends."""
        ...

    @property
    def pieces(self) -> I64:
        """int64 `[pieces + 1]`: where each piece starts in this text, and where the last one ends. A piece is a
        document or a part of one."""
        ...

    @property
    def longest(self) -> float:
        """Documents of more tokens are cut into pieces."""
        ...

    def read(self, start: int, end: int, epoch: int) -> NDArray[Any]:
        """The tokens from `start` to `end` (behind the last)."""
        ...


class PlainText:
    """The documents as they are, each one piece."""

    longest = math.inf

    def __init__(self, store: TokenStore, domain: str):
        self._store, self._domain = store, domain
        self._stream = _training_tokens(store, domain)

    def __len__(self) -> int:
        return len(self._stream)

    @cached_property
    def documents(self) -> I64:
        return self._store.offsets("train", self._domain)

    @property
    def pieces(self) -> I64:
        return self.documents

    def read(self, start: int, end: int, epoch: int) -> NDArray[Any]:
        return self._stream[start:end]


class TurnedText:
    """The documents, some of them turned to fill-in-the-middle, by this rule:

    A document of more than `length - 3` tokens is cut into pieces of so many and a rest, any other is one piece; so
    that a piece with its three marks fits a row of `length`. Each piece is turned or not by a coin of its own, the same
    in every epoch, those of less than `SHORTEST` tokens never; a turned one is three tokens longer. So lengths, and
    with them the rows, never change; where a piece is cut in three is drawn anew each epoch.
    """

    def __init__(self, store: TokenStore, domain: str, length: int, turn: Turn):
        self._stream, self._turn = _training_tokens(store, domain), turn
        self.documents: I64 = store.offsets("train", domain)
        self.longest = length - MARKS
        self._starts = cut_documents(self.documents, self.longest)
        lengths = np.diff(self._starts)
        self._turned = turn.coins(len(lengths)) & (lengths >= SHORTEST)
        self.pieces = self._starts + MARKS * np.concatenate([[0], np.cumsum(self._turned)])

    def __len__(self) -> int:
        return int(self.pieces[-1])

    def read(self, start: int, end: int, epoch: int) -> NDArray[Any]:
        first = int(self.pieces.searchsorted(start, side="right")) - 1
        behind = int(self.pieces.searchsorted(end, side="left"))
        parts = [self._piece(piece, epoch) for piece in range(first, behind)]
        skipped = start - int(self.pieces[first])
        together = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return together[skipped : skipped + end - start]

    def _piece(self, piece: int, epoch: int) -> I64:
        tokens = self._stream[self._starts[piece] : self._starts[piece + 1]].astype(np.int64)
        if not self._turned[piece]:
            return tokens
        turned = self._turn(tokens, piece, epoch)
        assert len(turned) == len(tokens) + MARKS
        return turned


def cut_documents(documents: I64, longest: int) -> I64:
    """Starts of the pieces, and the end of the last, where documents (starts, and the end of the last) longer than
    `longest` are cut every so many tokens."""
    counts = -(-np.diff(documents) // longest)
    first = np.cumsum(counts) - counts  # number of each document's first piece
    number_in_document = np.arange(counts.sum()) - np.repeat(first, counts)
    return np.append(np.repeat(documents[:-1], counts) + longest * number_in_document, documents[-1])


class StreamRows:
    """A domain's text as one stream of tokens, cut every `length` predictions; the last few are left out."""

    def __init__(self, text: Text, domain: str, length: int, bos_id: int):
        self.text, self._length, self._bos_id = text, length, bos_id
        if len(self) < 1:
            raise GristmillError(
                f"domain {domain!r} has {len(text)} training tokens, too few for one sequence of {length} "
                f"and the token behind it: collect more of it, give it weight 0 or set a smaller sequence_length"
            )

    def __len__(self) -> int:
        return max(len(self.text) - 1, 0) // self._length

    def fill(self, row: int, epoch: int, into: Row) -> int:
        start = row * self._length
        tokens = self.text.read(start, start + self._length + 1, epoch)
        into.inputs[:], into.targets[:], into.weights[:] = tokens[:-1], tokens[1:], 1
        if into.segments is not None:
            np.cumsum(into.inputs == self._bos_id, out=into.segments)
        return self._length

    def tokens(self, rows: I64) -> int:
        return len(rows) * self._length

    def cut_documents(self) -> int:
        return cut_by_stream(self.text.documents, self._length)


class BestFitRows:
    """A domain's text packed into sequences of `length` tokens (`tokenizer/packing.py`).

    Every token is an input of one row, and every token but a piece's first the target of one. The last token of a
    piece and the padding predict nothing: their weight is 0. Pieces in a row are numbered from 1; what pads it, bos
    tokens, has the number 0.
    """

    def __init__(self, text: Text, domain: str, length: int, bos_id: int):
        self.text, self._length, self._bos_id = text, length, bos_id
        self._pieces = np.asarray(text.pieces)
        self.packed = best_fit(np.diff(self._pieces), length)
        self._filled = self.packed.sequence_tokens()
        if not len(self):
            raise GristmillError(f"domain {domain!r} has no training tokens: collect more of it or give it weight 0")

    def __len__(self) -> int:
        return len(self.packed)

    def fill(self, row: int, epoch: int, into: Row) -> int:
        assert into.segments is not None, "packed documents are always masked"
        place = 0
        for number, part in enumerate(self.packed.pieces(row), start=1):
            first, behind = self._pieces[part.document : part.document + 2].tolist()
            size = part.end - part.start
            predicted = min(first + part.end + 1, behind) - (first + part.start + 1)
            tokens = self.text.read(first + part.start, first + part.start + 1 + predicted, epoch)
            end = place + size
            into.inputs[place:end] = tokens[:size]
            into.targets[place : place + predicted] = tokens[1:]
            into.weights[place:end] = 1
            if predicted < size:
                into.targets[end - 1], into.weights[end - 1] = self._bos_id, 0
            into.segments[place:end] = number
            place = end
        into.inputs[place:] = into.targets[place:] = self._bos_id
        into.weights[place:] = into.segments[place:] = 0
        return place

    def tokens(self, rows: I64) -> int:
        return int(self._filled[rows].sum())

    def cut_documents(self) -> int:
        return int((np.diff(self.text.documents) > min(self.text.longest, self._length)).sum())


def _training_tokens(store: TokenStore, domain: str) -> NDArray[np.unsignedinteger[Any]]:
    """The tokens of a domain's training documents. Rows of them are read in no order, and the system is told so: it
    would else read far beyond each. Still memory-mapped, but no `np.memmap`, whose every slice takes a microsecond."""
    tokens = store.tokens("train", domain)
    if isinstance(tokens.base, mmap.mmap):
        tokens.base.madvise(mmap.MADV_RANDOM)
    return np.asarray(tokens)
