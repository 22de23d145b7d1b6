"""How many tokens the text of a corpus is: counted in full, or on a sample and carried over by bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..schema import row_groups

CountTokens = Callable[[list[str]], Sequence[int]]
"""The number of tokens of each text, without those that begin or end a document."""

Group = tuple[str, str]  # (train, validation or a reason; domain)
SAMPLE_KEPT = 200  # documents of each split and domain
SAMPLE_REMOVED = 20  # documents of each reason and domain


class Tally(NamedTuple):
    documents: int
    bytes: int
    tokens: int


def count_corpus(directory: Path, count_tokens: CountTokens, exact: bool) -> dict[Group, Tally]:
    """Documents, bytes and tokens of the texts that were counted, for each group of the corpus' documents.

    With `exact` that is all of them. Otherwise at most `SAMPLE_KEPT` of each split and domain and `SAMPLE_REMOVED` of
    each reason and domain, those whose ids have the lowest hash.
    """
    tallies: dict[Group, Tally] = {}
    for table, label in (("documents", "split"), ("removed", "reason")):
        if not any((directory / table).glob("part-*.parquet")):
            continue
        wanted = None if exact else _lowest(directory / table, label)
        for batch in _read(directory / table, label, wanted):
            texts = batch["text"].to_pylist()
            groups = zip(batch[label].to_pylist(), batch["domain"].to_pylist(), strict=True)
            lengths = np.asarray(pc.binary_length(batch["text"])).tolist()
            for group, length, tokens in zip(groups, lengths, count_tokens(texts), strict=True):
                old = tallies.get(group, Tally(0, 0, 0))
                tallies[group] = Tally(old.documents + 1, old.bytes + length, old.tokens + int(tokens))
    return dict(sorted(tallies.items()))


def bytes_per_token(tallies: Mapping[Group, Tally]) -> float:
    """Over all that was counted; 0 where that has no token."""
    tokens = sum(tally.tokens for tally in tallies.values())
    return sum(tally.bytes for tally in tallies.values()) / tokens if tokens else 0.0


def _lowest(directory: Path, label: str) -> dict[tuple[Path, int], NDArray[np.int64]]:
    """The rows of the sample: (file, row group) -> rows in it."""
    ranks, places, groups = [], [], []
    numbers: dict[Group, int] = {}
    listed = list(row_groups(directory))
    for number, (path, group, rows) in enumerate(listed):
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group, columns=["id", "domain", label])
        digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in table["id"].to_pylist())
        ranks.append(np.frombuffer(digests, ">u8").astype(np.uint64))
        places.append(np.stack([np.full(rows, number), np.arange(rows)]))
        keys = zip(table[label].to_pylist(), table["domain"].to_pylist(), strict=True)
        groups.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64))
    most = SAMPLE_REMOVED if label == "reason" else SAMPLE_KEPT
    place, of_group = np.concatenate(places, axis=1), np.concatenate(groups)
    order = np.lexsort((np.concatenate(ranks), of_group))
    starts = np.searchsorted(of_group[order], np.arange(len(numbers)))
    within = np.arange(len(order)) - starts[of_group[order]]
    number, row = place[:, np.sort(order[within < most])]
    return {listed[n][:2]: row[number == n] for n in np.unique(number).tolist()}


def _read(
    directory: Path, label: str, wanted: Mapping[tuple[Path, int], NDArray[np.int64]] | None
) -> Iterator[pa.Table]:
    for path, group, _ in row_groups(directory):
        if wanted is None or (path, group) in wanted:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group, columns=["text", "domain", label])
            yield table if wanted is None else table.take(pa.array(wanted[path, group]))
