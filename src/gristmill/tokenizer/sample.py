"""Which text a tokenizer is trained on: a bounded part of the corpus, shared out by the mixture weights.

The corpus is read twice. The first pass, which reads no text where the corpus notes the size of its documents, decides
how many bytes of each document are taken; it holds some 150 bytes a document. The second gives the texts, a row group
at a time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.schema import part_files
from ..errors import GristmillError

I64 = NDArray[np.int64]


class RowGroup(NamedTuple):
    """One row group of a corpus file. Its rows are `first` to `first + rows` of the file; `drawn` bytes of their texts
    are in the sample."""

    shard: int
    number: int
    first: int
    rows: int
    drawn: int


class Sample:
    """A part of a corpus' documents of one split, at most `budget` bytes of text in all.

    Each domain gets bytes in proportion to its weight; what a small domain cannot fill goes to the others. Inside a
    domain documents are drawn by a hash of seed and id, so the sample is spread evenly and the same on every run.
    `quota` maps domains to their bytes. `shards` are the corpus' files, `take` says of each of their rows how many
    bytes of the text are drawn, `row_groups` lists those that hold any.
    """

    def __init__(self, corpus: Path, split: str, weights: Mapping[str, float], budget: int, seed: int):
        self.shards = part_files(corpus / "documents")
        self.take: list[I64] = []
        self.row_groups: list[RowGroup] = []
        found = [_documents(shard, split, seed) for shard in self.shards]
        names = sorted({name for documents in found for name in documents.domains})
        code = {name: number for number, name in enumerate(names)}
        domain = np.concatenate([_renumbered(documents, code) for documents in found])
        sizes = np.concatenate([documents.sizes for documents in found])
        keys = np.concatenate([documents.keys for documents in found])
        totals = np.array([sizes[domain == number].sum() for number in range(len(names))], np.int64)
        self.quota = share_out(budget, dict(zip(names, totals.tolist(), strict=True)), weights)

        take = np.zeros(len(sizes), np.int64)
        for name, number in code.items():
            members = np.flatnonzero(domain == number)
            take[members] = _draw(keys[members], sizes[members], self.quota[name])
        place = 0
        for shard, documents in enumerate(found):
            of_rows = np.zeros(documents.rows, np.int64)
            of_rows[documents.places] = take[place : place + len(documents.places)]
            place += len(documents.places)
            self.take.append(of_rows)
            self.row_groups += _row_groups(shard, documents.group_rows, of_rows)

    def texts(self) -> Iterator[tuple[str, str]]:
        """(domain, text) of the drawn documents in file order; the last one drawn of a domain is cut short."""
        for table in self._drawn(["text", "domain"]):
            yield from zip(table["domain"].to_pylist(), table["text"].to_pylist(), strict=True)

    def arrays(self) -> Iterator[pa.Array]:
        """The drawn texts, a row group at a time."""
        for table in self._drawn(["text"]):
            yield from table["text"].chunks

    def _drawn(self, columns: list[str]) -> Iterator[pa.Table]:
        for shard, groups in itertools.groupby(self.row_groups, key=lambda group: group.shard):
            yield from read_drawn(self.shards[shard], groups, self.take[shard], columns)


def read_drawn(
    shard: Path, groups: Iterable[RowGroup], take: NDArray[np.int64], columns: list[str]
) -> Iterator[pa.Table]:
    """Columns (`text` among them) of the documents in some row groups of a file of which `take` draws something; the
    texts are cut to so many bytes, at a whole character."""
    try:
        with pq.ParquetFile(shard) as file:
            for group in groups:
                table = file.read_row_group(group.number, columns=columns, use_threads=False)
                yield _cut(table, take[group.first : group.first + group.rows])
    except (pa.ArrowException, OSError) as error:
        raise GristmillError(f"{shard} is not a readable corpus file: {error}") from None


def _cut(table: pa.Table, take: I64) -> pa.Table:
    drawn = np.flatnonzero(take)
    table = table.take(drawn) if len(drawn) < len(take) else table
    too_long = np.flatnonzero(take[drawn] < pc.binary_length(table["text"]).to_numpy())
    if not len(too_long):
        return table
    texts = table["text"].to_pylist()
    for row in too_long:
        texts[row] = texts[row].encode()[: take[drawn[row]]].decode("utf-8", "ignore")
    place = table.schema.get_field_index("text")
    return table.set_column(place, "text", pa.array(texts, table["text"].type))


def split_column(texts: pa.Array, size: int) -> Iterator[pa.Array]:
    """A column of strings in parts of about `size` bytes."""
    step = max(1, len(texts) * size // max(texts.nbytes, 1))
    for start in range(0, len(texts), step):
        yield texts.slice(start, step)


def share_out(budget: int, available: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Split `budget` bytes over domains in proportion to `weights`, none above what is `available`.

    A domain that would get more than it has is filled, and the rest is shared among the others by their weights.
    """
    quota = dict.fromkeys(available, 0)
    unfilled = [domain for domain in sorted(available) if weights.get(domain, 0.0) > 0]
    while unfilled:
        total = sum(weights[domain] for domain in unfilled)
        fair = {domain: budget * (weights[domain] / total) for domain in unfilled}
        filled = [domain for domain in unfilled if available[domain] <= fair[domain]]
        if not filled:
            quota.update({domain: int(fair[domain]) for domain in unfilled})
            break
        for domain in filled:
            quota[domain] = available[domain]
            budget -= available[domain]
            unfilled.remove(domain)
    return quota


class _Documents(NamedTuple):
    """What is known of one file's documents of the split: their rows (`places`), `sizes` in bytes, `keys` by which they
    are drawn, and `codes` of their `domains`."""

    rows: int
    group_rows: list[int]
    places: I64
    sizes: I64
    keys: NDArray[np.uint64]
    codes: I64
    domains: list[str]


def _documents(shard: Path, split: str, seed: int) -> _Documents:
    try:
        with pq.ParquetFile(shard) as file:
            names = file.schema_arrow.names
            absent = [name for name in ("id", "domain", "split", "text") if name not in names]
            if absent:
                raise GristmillError(f"{shard} has no column {absent[0]!r}; it is no file of a corpus")
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            size = "bytes" if "bytes" in names else "text"
            parts = []
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=["id", "domain", "split", size], use_threads=False)
                if size == "text":
                    lengths = pc.binary_length(table["text"]).cast(pa.int64())
                    table = table.drop_columns("text").append_column("bytes", lengths)
                parts.append(table)
    except (pa.ArrowException, OSError) as error:
        raise GristmillError(f"{shard} is not a readable corpus file: {error}") from None
    if not parts:
        nothing = np.zeros(0, np.int64)
        return _Documents(0, [], nothing, nothing, nothing.astype(np.uint64), nothing, [])
    table = pa.concat_tables(parts)
    places = np.flatnonzero(pc.equal(table["split"], split).to_numpy())
    table = table.take(places)
    salt = f"{seed}:"
    digests = [hashlib.sha256((salt + id).encode()).digest()[:8] for id in table["id"].to_pylist()]
    domain = table["domain"].combine_chunks().dictionary_encode()
    return _Documents(
        rows=sum(groups),
        group_rows=groups,
        places=places,
        sizes=table["bytes"].to_numpy(),
        keys=np.frombuffer(b"".join(digests), ">u8").astype(np.uint64),
        codes=domain.indices.to_numpy().astype(np.int64),
        domains=domain.dictionary.to_pylist(),
    )


def _renumbered(documents: _Documents, code: Mapping[str, int]) -> I64:
    return np.array([code[name] for name in documents.domains], np.int64)[documents.codes]


def _row_groups(shard: int, rows: list[int], take: I64) -> Iterator[RowGroup]:
    first = 0
    for number, count in enumerate(rows):
        drawn = int(take[first : first + count].sum())
        if drawn:
            yield RowGroup(shard, number, first, count, drawn)
        first += count


def _draw(keys: NDArray[np.uint64], sizes: I64, quota: int) -> I64:
    """Bytes to take of each document: whole ones in the order of their keys until the quota is met, 0 of the rest."""
    order = np.argsort(keys, kind="stable")
    size = sizes[order]
    taken_before = np.cumsum(size) - size
    take = np.empty_like(size)
    take[order] = np.clip(quota - taken_before, 0, size)
    return take
