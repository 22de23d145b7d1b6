"""Counts and samples from the document tables of the data stages (columns: docs/architecture.md, "Documents")."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SAMPLE_CHARACTERS = 1200
COUNT_BYTES_BELOW = 2_000_000_000  # of Parquet: above it the texts are not read just to count their bytes


@lru_cache(maxsize=16)
def count_by(directory: Path, artifact_hash: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Documents and UTF-8 bytes of text for each combination of `keys`, sorted by it; `bytes` is None in a collection
    too large to read. `artifact_hash` only marks which contents the cached answer belongs to."""
    files = sorted(directory.glob("*.parquet"))
    with_bytes = sum(path.stat().st_size for path in files) < COUNT_BYTES_BELOW
    documents: dict[tuple[str, ...], int] = defaultdict(int)
    sizes: dict[tuple[str, ...], int] = defaultdict(int)
    for table in _row_groups(files, [*keys, "text"] if with_bytes else list(keys)):
        lengths = pc.binary_length(table["text"]) if with_bytes else pa.array([0] * len(table))
        grouped = table.select(list(keys)).append_column("bytes", lengths).group_by(list(keys))
        for row in grouped.aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
            key = tuple(str(row[name]) for name in keys)
            documents[key] += row["bytes_count"]
            sizes[key] += row["bytes_sum"] or 0
    return [
        {**dict(zip(keys, key, strict=True)), "documents": documents[key], "bytes": sizes[key] if with_bytes else None}
        for key in sorted(documents)
    ]


@lru_cache(maxsize=16)
def samples_by(directory: Path, artifact_hash: str, key: str, per_value: int) -> list[dict[str, Any]]:
    """The first `per_value` documents for each value of column `key`, sorted by it; long texts are cut, and
    `characters` says how long they were."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(directory.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                values = file.read_row_group(index, columns=[key])[key].to_pylist()
                wanted = []
                for row, value in enumerate(values):
                    if len(found[str(value)]) < per_value:
                        found[str(value)].append({})  # holds the place until the row is read below
                        wanted.append(row)
                if wanted:
                    rows = file.read_row_group(index).take(wanted).to_pylist()
                    for row in rows:
                        place = found[str(row[key])].index({})
                        found[str(row[key])][place] = _shortened(row)
    return [row for value in sorted(found) for row in found[value]]


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    text = str(row.get("text") or "")
    return {**row, "text": text[:SAMPLE_CHARACTERS], "characters": len(text)}


def _row_groups(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index, columns=columns)
