"""A back-off n-gram model: what its file holds, and how it scores a text.

All n-grams stand in one table of 16 bytes a slot: a 64-bit key, the log10 probability of the last word after the
others, and the log10 back-off weight of the n-gram as a context. Unigrams are the first slots, by word number; each
higher order is a hash table of its own. An n-gram's key is `slot of its first n-1 words << 32 | last word`.

The file is that table and the vocabulary behind a header, so that it can be mapped into memory: loading takes no time,
and the workers on one machine share its pages.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled
from gristmill.data.kernel.layout import Texts, texts_of
from gristmill.errors import GristmillError

from .words import Tokenization, hash_words, sentences

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]

UNKNOWN, BEGIN, END = 0, 1, 2  # numbers of words.SPECIAL
MAGIC = b"gristmill ngram\n"
FORMAT = 1

_CHUNK = 1 << 20  # bytes of text scored at a time
_ALIGNMENT = 64
_MAX_SLOTS = 0xFFFFFFF0
_NONE = np.uint32(0xFFFFFFFF)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class NgramModel:
    """A model of `order` words. `words` [vocabulary] begins with `<unk>`, `<s>`, `</s>`; `counts` are the n-grams of
    each order; `slots` are the ends of each order's part of `table` (uint64 [slots, 2]). `closed` says that of every
    n-gram its last n-1 words are in the model too, which saves look-ups."""

    def __init__(
        self,
        tokenization: Tokenization,
        words: list[bytes],
        counts: list[int],
        slots: list[int],
        table: U64,
        closed: bool = True,
    ):
        self.order, self.tokenization, self.closed = len(counts), tokenization, closed
        self.words, self.counts, self.slots, self.table = words, counts, slots, table

    @classmethod
    def load(cls, path: Path | str) -> NgramModel:
        """The model in a file that `save` wrote. GristmillError when it is another file, or torn."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                magic = file.read(len(MAGIC))
                size = int.from_bytes(file.read(8), "little") if magic == MAGIC else 0
                header = json.loads(file.read(size)) if magic == MAGIC else {}
        except OSError as error:
            raise GristmillError(f"{path}: {error.strerror or error}; name an n-gram model") from None
        except ValueError:
            raise GristmillError(f"{path} is torn: its header cannot be read; train it again") from None
        if magic != MAGIC or header.get("format") != FORMAT:
            hint = "KenLM's binary format is not read; name the ARPA file it was made from" if b"mmap" in magic else ""
            raise GristmillError(
                f"{path} is no n-gram model of gristmill; {hint or 'name one, or an ARPA file (.arpa)'}"
            )
        if path.stat().st_size != header["bytes"]:
            raise GristmillError(f"{path} is torn: {path.stat().st_size} bytes of {header['bytes']}; train it again")
        with path.open("rb") as file:
            file.seek(header["words"][0])
            words = file.read(header["words"][1]).split(b"\n")
        table = np.memmap(path, np.uint64, "r", header["table"][0], (header["slots"][-1], 2))
        plain = np.asarray(table)
        return cls(header["tokenization"], words, header["counts"], header["slots"], plain, header["closed"])

    def save(self, path: Path, **about: Any) -> None:
        """Write the model; the same model gives the same bytes. `about` is kept in the header, for people to read."""
        words = b"\n".join(self.words)
        header: dict[str, Any] = {
            "format": FORMAT,
            "tokenization": self.tokenization,
            "counts": self.counts,
            "slots": self.slots,
            "closed": self.closed,
            "about": about,
        }
        start = len(MAGIC) + 8 + _round_up(len(json.dumps(header)) + 200)
        table = _round_up(start + len(words))
        header |= {
            "words": [start, len(words)],
            "table": [table, self.table.nbytes],
            "bytes": table + self.table.nbytes,
        }
        text = json.dumps(header, sort_keys=True).encode().ljust(start - len(MAGIC) - 8)
        with path.open("wb") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text + words)
            file.write(bytes(table - start - len(words)))
            file.write(self.table.data)

    def score(self, texts: Texts) -> tuple[F64, NDArray[np.int64], NDArray[np.int64]]:
        """Of each text (log10 of its probability, its words and sentence ends, how many of them are unknown words)."""
        logs = np.zeros(len(texts))
        tokens = np.zeros(len(texts), np.int64)
        unknown = np.zeros(len(texts), np.int64)
        for place, part in texts.parts(_CHUNK):
            found = sentences(part, self.tokenization)
            ids = np.empty(2 * len(found.hashes), np.uint32)
            positions = np.empty(len(ids), np.uint32)
            ends = np.empty(len(part), np.int64)
            length = _number(*self._vocabulary, found.hashes, found.places, ids, positions, ends)
            words = self._word_logs(ids[:length], positions[:length])
            _add_up(words, ids[:length], positions[:length], ends, logs[place], tokens[place], unknown[place])
        return logs, tokens, unknown

    def perplexities(self, texts: Texts) -> F64:
        """10 ** (-log10 probability / (words + sentence ends)) of each text, as KenLM's `query` has it; nan where a
        text has no word."""
        logs, tokens, _ = self.score(texts)
        with np.errstate(invalid="ignore", over="ignore"):
            return cast(F64, np.power(10.0, -logs / np.where(tokens, tokens, np.nan)))

    def perplexity(self, text: str) -> float:
        """The perplexity of one text."""
        return float(self.perplexities(texts_of(pa.array([text], pa.large_string())))[0])

    def _word_logs(self, ids: U32, positions: U32) -> NDArray[np.float32]:
        """log10 of the probability of each word after those before it in its sentence."""
        values = self.table.view(np.float32)
        logs = values[:, 2][ids]
        shorter = ids
        for order in range(2, self.order + 1):
            found = np.full(len(ids), _NONE)
            first, last = self.slots[order - 2], self.slots[order - 1]
            _look_up(self.table, values, first, last, order, self.closed, ids, positions, shorter, found, logs)
            shorter = found
        return logs

    @cached_property
    def _vocabulary(self) -> tuple[U32, U64]:
        hashes = hash_words(self.words)
        slots = np.full(1 << (2 * len(hashes)).bit_length(), _NONE)
        _fill_vocabulary(slots, hashes)
        return slots, hashes


def empty_table(counts: list[int]) -> tuple[U64, list[int]]:
    """(a table with room for so many n-grams of each order, the end of each order's part). GristmillError when there
    are more than 32 bits can number."""
    slots = [counts[0]]
    for count in counts[1:]:
        slots.append(slots[-1] + count * 5 // 3 + 1)  # at most 60 % full
    if slots[-1] > _MAX_SLOTS:
        raise GristmillError("more than 2.5 billion n-grams: train on less text, or a smaller order")
    table = np.zeros((slots[-1], 2), np.uint64)  # costs no memory until `insert` comes to a part
    return table, slots


@compiled
def insert(table, first, last, contexts, words, found):  # type: ignore[no-untyped-def]
    """Fill the part of `table` from `first` to `last` with the n-grams `contexts[i]` (a slot), `words[i]`; uint32
    `found[i]` becomes the slot of each."""
    for slot in range(first, last):
        table[slot, 0] = _FREE
    for i in range(len(words)):
        key = (np.uint64(contexts[i]) << _HALF) | np.uint64(words[i])
        slot = _slot(table, first, last, key)
        table[slot, 0] = key
        found[i] = slot


@compiled
def find(table, first, last, contexts, words, found):  # type: ignore[no-untyped-def]
    """uint32 `found[i]` becomes the slot of the n-gram `contexts[i]`, `words[i]`, or 2**32 - 1 where there is none."""
    for i in range(len(words)):
        found[i] = _NONE
        if contexts[i] == _NONE:
            continue
        key = (np.uint64(contexts[i]) << _HALF) | np.uint64(words[i])
        slot = _slot(table, first, last, key)
        if table[slot, 0] == key:
            found[i] = slot


@compiled
def _slot(table, first, last, key):  # type: ignore[no-untyped-def]
    """The slot of the key, or the free one where it would go."""
    h = key * _MULTIPLIER
    h = (h ^ (h >> _HALF)) * _MULTIPLIER
    slot = first + np.int64(((h >> _HALF) * np.uint64(last - first)) >> _HALF)
    while table[slot, 0] != key and table[slot, 0] != _FREE:
        slot += 1
        if slot == last:
            slot = first
    return slot


@compiled
def _look_up(table, values, first, last, order, closed, ids, positions, shorter, found, logs):  # type: ignore[no-untyped-def]
    """Find the n-grams of one order that end at each word. `shorter` has the slots of the (n-1)-grams that end there.
    `logs` becomes the n-gram's probability, or is lowered by its context's back-off weight."""
    for i in range(len(ids)):
        if positions[i] < order - 1 or shorter[i - 1] == _NONE:
            continue
        if not closed or shorter[i] != _NONE:
            key = (np.uint64(shorter[i - 1]) << _HALF) | np.uint64(ids[i])
            slot = _slot(table, first, last, key)
            if table[slot, 0] == key:
                found[i] = slot
                logs[i] = values[slot, 2]
                continue
        logs[i] += values[shorter[i - 1], 3]


@compiled
def _fill_vocabulary(slots, hashes):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(slots) - 1)
    for number in range(len(hashes)):
        slot = hashes[number] & mask
        while slots[slot] != _NONE:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = number


@compiled
def _number(slots, vocabulary, hashes, places, ids, positions, ends):  # type: ignore[no-untyped-def]
    """The words' numbers, with `<s>` before each sentence. `positions` are those in the sentence, `ends[d]` is where
    document d ends in `ids`. Returns the length of `ids`."""
    mask = np.uint64(len(slots) - 1)
    length = 0
    for d in range(len(places) - 1):
        position = np.uint32(0)
        for i in range(places[d], places[d + 1]):
            if position == 0:
                ids[length], positions[length] = BEGIN, 0
                length += 1
                position = np.uint32(1)
            if hashes[i] == 0:
                ids[length], positions[length] = END, position
                length += 1
                position = np.uint32(0)
                continue
            slot = hashes[i] & mask
            while slots[slot] != _NONE and vocabulary[slots[slot]] != hashes[i]:
                slot = (slot + np.uint64(1)) & mask
            ids[length] = slots[slot] if slots[slot] != _NONE else np.uint32(UNKNOWN)
            positions[length] = position
            length += 1
            position += np.uint32(1)
        ends[d] = length
    return length


@compiled
def _add_up(words, ids, positions, ends, logs, tokens, unknown):  # type: ignore[no-untyped-def]
    start = 0
    for d in range(len(ends)):
        total = 0.0
        for i in range(start, ends[d]):
            if positions[i]:
                total += words[i]
                tokens[d] += 1
                unknown[d] += ids[i] == UNKNOWN
        logs[d] = total
        start = ends[d]


def _round_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
