"""Drawing documents by domain weights: the same for the same seed, without repeats until a domain is used up."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.errors import GristmillError

from ..schema import part_files, row_groups

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Draw(NamedTuple):
    """One drawn document. `row` is its position among all rows of `documents/` in file order; `epoch` counts from 0;
    `tokens` is its estimated length."""

    domain: str
    row: int
    id: str
    epoch: int
    tokens: float


def sample(
    directory: Path | str,
    weights: Mapping[str, float],
    *,
    seed: int,
    tokens: float | None = None,
    documents: int | None = None,
    split: str | None = "train",
    bytes_per_token: float = 4.0,
) -> Iterator[Draw]:
    """Draw whole documents of a corpus until `tokens`, or `documents`, are reached.

    Each domain has its share of what is drawn (of the tokens, or of the documents), true at every moment to one
    document: the next one always comes from the domain that is furthest behind (stride scheduling, Waldspurger and
    Weihl 1995). Inside a domain no document comes twice before all have come once; then they are shuffled anew.
    Another domain's size or weight never changes this order. 20 bytes a document are held in memory, and its id.
    """
    if (tokens is None) == (documents is None):
        raise GristmillError("sample: give either tokens or documents")
    directory = Path(directory) / "documents"
    positive = sorted(name for name, weight in weights.items() if weight > 0)
    rows, sizes, ids = _index(directory, split)
    for name in positive:
        if name not in rows:
            raise GristmillError(f"{directory} holds no document of {name!r}, which has the weight {weights[name]}")
    costs = sizes / bytes_per_token if tokens is not None else np.ones(len(sizes))
    limit = float(tokens if tokens is not None else documents or 0)
    return _draws(positive, weights, rows, costs, sizes / bytes_per_token, ids, limit, seed)


def _draws(
    names: list[str],
    weights: Mapping[str, float],
    rows: Mapping[str, I64],
    costs: F64,
    tokens: F64,
    ids: pa.ChunkedArray,
    limit: float,
    seed: int,
) -> Iterator[Draw]:
    streams = {name: _stream(name, rows[name], seed) for name in names}
    behind = [(0.0, name) for name in names]  # what was drawn of a domain, over its weight
    drawn = 0.0
    while drawn < limit and behind:
        progress, name = behind[0]
        epoch, row = next(streams[name])
        cost = max(float(costs[row]), 1e-9)  # an empty document must not be drawn for ever
        yield Draw(name, row, ids[row].as_py(), epoch, float(tokens[row]))
        drawn += cost
        heapq.heapreplace(behind, (progress + cost / weights[name], name))


def _stream(name: str, rows: I64, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, row) for ever."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    epoch = 0
    while True:
        for place in np.random.default_rng([seed, key, epoch]).permutation(len(rows)):
            yield epoch, int(rows[place])
        epoch += 1


def _index(directory: Path, split: str | None) -> tuple[dict[str, I64], I64, pa.ChunkedArray]:
    """The rows of each domain, and of all rows in file order their bytes of text and their ids."""
    domains, sizes, ids, chosen = [], [], [], []
    for path in part_files(directory):
        with pq.ParquetFile(path) as file:
            size_column = "bytes" if "bytes" in file.schema_arrow.names else "text"
            for batch in file.iter_batches(columns=["id", "domain", "split", size_column]):
                sizes.append(np.asarray(_lengths(batch[size_column]), np.int64))
                chosen.append(np.ones(len(batch), np.bool_) if split is None else _equal(batch["split"], split))
                domains.append(batch["domain"].dictionary_encode())
                ids.append(batch["id"])
    names = pa.chunked_array(domains).unify_dictionaries() if domains else pa.chunked_array([], pa.string())
    keep = np.concatenate(chosen) if chosen else np.zeros(0, np.bool_)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in names.chunks]) if domains else np.zeros(0, np.int32)
    known = names.chunk(0).dictionary.to_pylist() if domains else []
    rows = {name: np.flatnonzero((codes == code) & keep) for code, name in enumerate(known)}
    all_sizes = np.concatenate(sizes) if sizes else np.zeros(0, np.int64)
    return {name: found for name, found in rows.items() if len(found)}, all_sizes, pa.chunked_array(ids, pa.string())


def _lengths(column: pa.Array) -> pa.Array:
    return pc.binary_length(column) if pa.types.is_string(column.type) else column


def _equal(column: pa.Array, value: str) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(column, value))


def write_sample(
    directory: Path | str, out: Path, draws: Iterable[Draw], progress: Callable[[int], None] | None = None
) -> int:
    """Write the drawn documents to the Parquet file `out`, in file order, each once, with a column `copies` (int32)
    that says how often it was drawn. Returns how many different documents there are."""
    rows = np.fromiter((draw.row for draw in draws), np.int64)
    wanted, copies = np.unique(rows, return_counts=True)
    start = written = 0
    writer: pq.ParquetWriter | None = None
    for path, group, count in row_groups(Path(directory) / "documents"):
        low, high = np.searchsorted(wanted, [start, start + count])
        if high > low or writer is None:  # the first group gives the schema, even of an empty sample
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group).take(pa.array(wanted[low:high] - start))
            table = table.append_column("copies", pa.array(copies[low:high], pa.int32()))
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
            writer.write_table(table)
            written += len(table)
            if progress:
                progress(written)
        start += count
    if writer is not None:
        writer.close()
    return written
