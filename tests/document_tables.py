"""Tables of documents as stages write them, for the tests of all rooms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.data.schema import DOCUMENTS, SPLIT, Document, TableWriter
from gristmill.data.step import Rule, first_broken

CORPUS = DOCUMENTS.append(SPLIT)  # what every corpus has; one that stage `corpus` made has more


def write_rows(directory: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema = DOCUMENTS) -> None:
    """One part in `directory`, row groups cut as the stages cut them."""
    directory.mkdir(parents=True, exist_ok=True)
    sized = [row | {"bytes": len(row["text"].encode())} for row in rows]
    with TableWriter(directory / "part-00000.parquet", schema) as writer:
        writer.add(pa.RecordBatch.from_pylist(sized, schema.append(pa.field("bytes", pa.int64()))))


def write_documents(directory: Path, documents: Iterable[Document]) -> None:
    """The same for documents, which get their ids."""
    write_rows(directory, [document._asdict() | {"id": document.id} for document in documents])


def write_corpus(directory: Path, texts: dict[str, list[str]]) -> None:
    """A corpus of texts by domain: domains in turn, each document twice, first in the train split, then for
    validation."""
    rows = [
        Document(text, "test", domain, "en", "CC0-1.0", f"{domain}#{number}")._asdict()
        | {"id": f"{number:016x}", "split": split}
        for split in ("train", "validation")
        for domain, documents in texts.items()
        for number, text in enumerate(documents)
    ]
    write_rows(directory / "documents", rows, CORPUS)


def first_reasons(batch: pa.RecordBatch, rules: Sequence[Rule]) -> list[str | None]:
    """The first rule that each row breaks, or None where all hold."""
    return [None if place < 0 else rules[place].reason for place in first_broken(batch, rules)]
