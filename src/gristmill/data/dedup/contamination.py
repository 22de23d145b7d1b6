"""Contamination: documents that hold text of evaluation sets.

An item of a set is some texts (a question, its answers). A document is contaminated by an item when they share an
n-gram of words, 13 of them as in GPT-3 (arXiv 2005.14165, appendix C); a text of an item that is shorter counts whole,
when it has a few words at least. Words are those of near-duplicates (`kernel/shingling.py`): marks and case do not
matter. An n-gram that many items share is the template of their set and proves nothing about any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gristmill.errors import GristmillError

from ..config import ContaminationConfig
from ..pool import Result, Task
from ..step import Mask, Rule, Step, set_columns
from .evaluations import find_sets, read_items
from .runs import new_keys
from .tables import F32, I64, U8, U64

if TYPE_CHECKING:
    from ..kernel.layout import Texts

_FIELDS = (pa.field("contaminated", pa.string()), pa.field("contamination_overlap", pa.float32()))
_PART_BYTES = 1 << 20
_SPARSE = 16  # bits of the filter for each n-gram: one in sixteen look-ups of another n-gram goes on to the table


@dataclass(frozen=True)
class Evaluations:
    """The n-grams of all sets. N-gram g has the hash `ngrams[g]` and belongs to `items[starts[g]:starts[g + 1]]`."""

    names: list[str]  # of the items: set, `#`, number of the row from 1
    sizes: I64  # n-grams of each item; 0 where all its texts are too short to look for
    lengths: tuple[int, ...]  # the numbers of words that n-grams have
    ngrams: U64  # ascending
    starts: I64
    items: I64
    bits: U8  # a bit for each value of a hash's upper bits, set where there is an n-gram
    shift: np.uint64  # what is left of a hash after it are those bits

    def coverage(self) -> dict[str, dict[str, int]]:
        """set -> how many `items` it has, and how many of them are `too_short` to look for."""
        found: dict[str, dict[str, int]] = {}
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            counts = found.setdefault(name.rpartition("#")[0], {"items": 0, "too_short": 0})
            counts["items"] += 1
            counts["too_short"] += not size
        return found


def contamination_step(config: ContaminationConfig) -> Step:
    """Reads the sets, and writes `contaminated` (the item that a text shares the largest part of its n-grams with, as
    SET#ROW, the first of equals; null where it shares none with any) and `contamination_overlap` (that part)."""
    evaluations = read_evaluations(config)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        items, overlaps = _matches(batch.column("text"), evaluations)
        names = [evaluations.names[item] if item >= 0 else None for item in items.tolist()]
        columns = {"contaminated": pa.array(names, pa.string()), "contamination_overlap": pa.array(overlaps)}
        return set_columns(batch, columns, _FIELDS)

    return Step("contamination", ("text",), _FIELDS, apply)


def contamination_rules(config: ContaminationConfig) -> list[Rule]:
    """One rule for each set: a document goes when it holds at least `min_overlap` of an item's n-grams, and one of
    them in any case."""

    def rule(name: str) -> Rule:
        def broken(batch: pa.RecordBatch) -> Mask:
            sets = [item is not None and item.rpartition("#")[0] == name for item in batch["contaminated"].to_pylist()]
            overlaps = batch["contamination_overlap"].to_numpy(zero_copy_only=False)
            return np.array(sets, np.bool_) & (overlaps >= np.float32(config.min_overlap))

        return Rule(f"contaminated:{name}", ("contaminated", "contamination_overlap"), broken)

    return [rule(name) for name in find_sets(config.sets)]


def read_evaluations(config: ContaminationConfig) -> Evaluations:
    """The n-grams of the sets that `config` names. GristmillError as in `evaluations.py`, and when nothing in them is
    long enough to look for."""
    names: list[str] = []
    owners: list[int] = []
    texts: list[str] = []
    for name, path in find_sets(config.sets).items():
        for number, item in enumerate(read_items(path, config.fields), 1):
            owners += [len(names)] * len(item)
            texts += item
            names.append(f"{name}#{number}")
    every, owners_of_every, lengths = _all_ngrams(texts, np.array(owners, np.int64), config)
    ngrams, items = _specific(every, owners_of_every, config.max_items)
    if not len(ngrams):
        raise GristmillError(
            f"corpus.contamination.sets: no text in them has {min(config.min_words, config.ngram)} words or more; "
            "lower corpus.contamination.min_words"
        )
    starts = np.flatnonzero(new_keys(ngrams))
    sizes = np.bincount(items, minlength=len(names))
    width = max(3, int(_SPARSE * len(starts)).bit_length())
    shift = np.uint64(64 - width)
    bits = np.zeros(1 << width, np.uint8)
    bits[ngrams >> shift] = 1
    packed = np.packbits(bits, bitorder="little")
    return Evaluations(names, sizes, lengths, ngrams[starts], np.append(starts, len(ngrams)), items, packed, shift)


def coverage(task: Task) -> Result:
    """Count the items of the sets that the task's `config` names, as `Evaluations.coverage`."""
    return read_evaluations(ContaminationConfig.model_validate(task["config"])).coverage()


def _all_ngrams(texts: list[str], owners: I64, config: ContaminationConfig) -> tuple[U64, I64, tuple[int, ...]]:
    """(hashes, items, lengths): every n-gram of every text, the item it belongs to, and how many words they have."""
    from ..kernel import shingling
    from ..kernel.hashes import tokens_of
    from ..kernel.layout import texts_of

    tokens, places = tokens_of(texts_of(pa.array(texts, pa.large_string())))
    words = np.diff(places)
    found, items, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], []
    for length in range(min(config.min_words, config.ngram), config.ngram + 1):
        hashes, offsets = np.empty(len(tokens), np.uint64), np.zeros(len(places), np.int64)
        shingling.ngrams(tokens, places, length, False, hashes, offsets)
        whole = words >= length if length == config.ngram else words == length
        mine = np.repeat(whole, np.diff(offsets))
        if mine.any():
            found.append(hashes[: offsets[-1]][mine])
            items.append(np.repeat(owners, np.diff(offsets))[mine])
            lengths.append(length)
    return np.concatenate(found), np.concatenate(items), tuple(lengths)


def _specific(ngrams: U64, items: I64, most: int) -> tuple[U64, I64]:
    """Each pair of n-gram and item once, by n-gram and then by item, without n-grams that more than `most` items share;
    an item that has no others keeps them."""
    order = np.lexsort((items, ngrams))
    order = order[new_keys(ngrams[order], items[order])]
    ngrams, items = ngrams[order], items[order]
    _, number, sharing = np.unique(ngrams, return_inverse=True, return_counts=True)
    specific = sharing[number] <= most
    specific |= ~np.isin(items, items[specific])
    return ngrams[specific], items[specific]


def _matches(column: pa.Array, evaluations: Evaluations) -> tuple[I64, F32]:
    """For each text the item it shares the largest part of n-grams with, or -1, and that part."""
    from ..kernel.layout import texts_of

    texts = texts_of(column)
    best, overlaps = np.full(len(texts), -1, np.int64), np.zeros(len(texts), np.float32)
    for place, part in texts.parts(_PART_BYTES):
        documents, ngrams = _found(part, evaluations)
        if not len(documents):
            continue
        counts = evaluations.starts[ngrams + 1] - evaluations.starts[ngrams]
        owners = np.repeat(documents, counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        items = evaluations.items[np.repeat(evaluations.starts[ngrams], counts) + within]
        pairs, hits = np.unique(np.stack([owners, items]), axis=1, return_counts=True)
        shares = hits / evaluations.sizes[pairs[1]]
        order = np.lexsort((pairs[1], -shares, pairs[0]))
        first = order[new_keys(pairs[0][order])]
        best[place][pairs[0][first]] = pairs[1][first]
        overlaps[place][pairs[0][first]] = shares[first]
    return best, overlaps


def _found(texts: Texts, evaluations: Evaluations) -> tuple[I64, I64]:
    """(document, n-gram) for every n-gram of the sets that a text holds, each once."""
    from ..kernel import shingling
    from ..kernel.hashes import tokens_of
    from .compiled import look_up

    tokens, places = tokens_of(texts)
    hashes, offsets = np.empty(len(tokens), np.uint64), np.zeros(len(places), np.int64)
    where, which = np.empty(len(tokens), np.int64), np.empty(len(tokens), np.int64)
    pairs = []
    for length in evaluations.lengths:
        shingling.ngrams(tokens, places, length, False, hashes, offsets)
        count = look_up(hashes[: offsets[-1]], evaluations.bits, evaluations.ngrams, evaluations.shift, where, which)
        documents = np.searchsorted(offsets, where[:count], side="right") - 1
        pairs.append(np.stack([documents, which[:count]]))
    documents, ngrams = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return documents, ngrams
