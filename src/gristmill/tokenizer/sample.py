"""Which text a tokenizer is trained on: a bounded part of the corpus, shared out by the mixture weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.schema import part_files
from ..errors import GristmillError

BATCH_ROWS = 128


def read_batches(shard: Path, columns: list[str], row_groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one corpus file, or of some of its row groups, `BATCH_ROWS` at a time."""
    try:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=row_groups, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise GristmillError(f"{shard} is not a readable corpus file: {error}") from None


class Sample:
    """A part of a corpus' documents of one split, at most `budget` bytes of text in all.

    Each domain gets bytes in proportion to its weight; what a small domain cannot fill goes to the others. Inside a
    domain documents are drawn by a hash of seed and id, so the sample is spread evenly and the same on every run.
    `quota` maps domains to their bytes; `texts()` yields the documents in file order, the last drawn one cut short.
    """

    def __init__(self, corpus: Path, split: str, weights: Mapping[str, float], budget: int, seed: int):
        self._shards = part_files(corpus / "documents")
        self._split = split
        keys: dict[str, list[int]] = {}
        sizes: dict[str, list[int]] = {}
        for batch in self._batches(["id", "text", "domain", "split"]):
            lengths = pc.binary_length(batch["text"]).to_pylist()
            for id, domain, size in zip(batch["id"].to_pylist(), batch["domain"].to_pylist(), lengths, strict=True):
                digest = hashlib.sha256(f"{seed}:{id}".encode()).digest()
                keys.setdefault(domain, []).append(int.from_bytes(digest[:8], "big"))
                sizes.setdefault(domain, []).append(size)
        available = {domain: sum(sizes[domain]) for domain in sorted(sizes)}
        self.quota = share_out(budget, available, weights)
        self._take = {domain: _draw(keys[domain], sizes[domain], self.quota[domain]) for domain in available}

    def texts(self) -> Iterator[tuple[str, str]]:
        """(domain, text) of the drawn documents."""
        position = dict.fromkeys(self._take, 0)
        for batch in self._batches(["text", "domain", "split"]):
            for text, domain in zip(batch["text"], batch["domain"].to_pylist(), strict=True):
                take = int(self._take[domain][position[domain]])
                position[domain] += 1
                if take:
                    yield domain, text.as_buffer().to_pybytes()[:take].decode("utf-8", "ignore")

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for shard in self._shards:
            for batch in read_batches(shard, columns):
                yield batch.filter(pc.equal(batch["split"], self._split))


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


def _draw(keys: list[int], sizes: list[int], quota: int) -> np.ndarray:
    """Bytes to take of each document: whole ones in the order of their keys until the quota is met, 0 of the rest."""
    order = np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
    size = np.array(sizes, dtype=np.int64)[order]
    taken_before = np.cumsum(size) - size
    take = np.empty_like(size)
    take[order] = np.clip(quota - taken_before, 0, size)
    return take
