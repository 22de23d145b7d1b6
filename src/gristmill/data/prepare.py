"""What can be said of each document by itself: cleaned, cut into pieces, judged by the rules, redacted, signed.

This is the part of stage `corpus` that runs in parallel. A task is one row group of what was collected; its result is
one Parquet file in the stage's scratch directory, put in place when it is whole, so a killed stage keeps what was done.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .clean import clean, drop_lines, pieces
from .config import CorpusConfig, RuleSet
from .minhash import shingles, signatures
from .privacy import KINDS, redact_batch
from .rules import judge
from .schema import DOCUMENTS, document_id
from .textbatch import TextBatch

BATCH_BYTES = 1 << 20  # text laid out at a time: the arrays of a batch are about 100 times as large
PREPARED = pa.schema(
    [
        *DOCUMENTS,
        pa.field("bytes", pa.int64()),
        pa.field("digest", pa.binary(16)),
        pa.field("reason", pa.string()),
        pa.field("signature", pa.binary()),
        *(pa.field(kind, pa.int32()) for kind in KINDS),
    ]
)
Row = dict[str, Any]


def prepare(task: dict[str, Any]) -> dict[str, Any]:
    """Prepare one row group. The task gives `file` and `group` (what to read), `out` (what to write) and `config`."""
    config = CorpusConfig.model_validate(task["config"])
    started = time.process_time()
    table = pq.ParquetFile(task["file"]).read_row_group(task["group"], use_threads=False)
    read: dict[str, list[int]] = {}
    rows: list[Row] = []
    for domain, documents in groupby(table.to_pylist(), key=lambda document: document["domain"]):
        group = list(documents)
        rules = config.rules.of(domain)
        count = read.setdefault(domain, [0, 0])
        count[0] += len(group)
        count[1] += sum(len(document["text"].encode("utf-8", "ignore")) for document in group)
        for batch in _batches(_cut(group, rules, config.max_document_bytes)):
            rows += _judge(batch, rules, config)
    result = pa.Table.from_pylist(rows, PREPARED)
    seconds = time.process_time() - started
    notes = {"read": json.dumps(read), "cpu_seconds": json.dumps(seconds)}
    out = Path(task["out"])
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    pq.write_table(result.replace_schema_metadata(notes), temporary, compression="zstd", compression_level=1)
    os.replace(temporary, out)
    return {"documents": table.num_rows}


def _cut(documents: list[Row], rules: RuleSet, max_bytes: int) -> Iterator[Row]:
    """The documents cleaned, and cut where they are too long. A piece's origin ends in `#` and its number."""
    for document in documents:
        text = clean(document["text"])
        if rules.page is not None:
            text = drop_lines(text, rules.page.dropped_lines)
        parts = pieces(text, max_bytes)
        if len(parts) < 2:
            yield document | {"text": text, "bytes": len(text.encode())}
            continue
        for number, part in enumerate(parts, 1):
            origin = f"{document['origin']}#{number}"
            identity = {"id": document_id(document["source"], origin), "origin": origin}
            yield document | identity | {"text": part, "bytes": len(part.encode())}


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row["bytes"]
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _judge(rows: list[Row], rules: RuleSet, config: CorpusConfig) -> list[Row]:
    """Add reason, counts of personal data, the redacted text, its digest and signature."""
    texts = [row["text"] for row in rows]
    for row, reason in zip(rows, judge(TextBatch(texts), rules, texts), strict=True):
        row["reason"] = reason if row["text"] else "empty"
        row["digest"] = hashlib.blake2b(row["text"].encode(), digest_size=16).digest()
        row |= dict.fromkeys(KINDS, 0)
    if config.privacy is not None:
        _redact(rows, config)
    if config.near_duplicates is not None:
        _sign(rows, config)
    return rows


def _redact(rows: list[Row], config: CorpusConfig) -> None:
    """Removed documents are redacted as well: no file of the corpus shall hold what the corpus must not."""
    assert config.privacy is not None
    texts, counts = redact_batch([row["text"] for row in rows], config.privacy.kinds)
    for i, row in enumerate(rows):
        row |= {kind: found[i] for kind, found in counts.items()}
        row["text"], row["bytes"] = texts[i], len(texts[i].encode())
        first = next((kind for kind in config.privacy.kinds if counts[kind][i]), None)
        if config.privacy.action == "drop" and first is not None:
            row["reason"] = row["reason"] or f"privacy:{first}"


def _sign(rows: list[Row], config: CorpusConfig) -> None:
    near = config.near_duplicates
    assert near is not None
    candidates = [row for row in rows if row["reason"] is None]
    found = shingles(TextBatch([row["text"] for row in candidates]), near.ngram)
    empty = np.diff(found.offsets) == 0
    for row, signature, without in zip(candidates, signatures(found, near.bands * near.rows), empty, strict=True):
        row["signature"] = None if without else signature.tobytes()
