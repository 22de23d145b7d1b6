"""Training a reference model: from documents, files, or the domains of a collection."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.data.kernel.layout import texts_of
from gristmill.data.training_text import prepare_out, read_paths
from gristmill.errors import GristmillError

from .arpa import write_arpa
from .counts import NgramCounts
from .kneser_ney import estimate
from .words import Tokenization

Figures = dict[str, Any]
MAX_ORDER = 6


def train_ngram(
    documents: Iterable[pa.RecordBatch | str], order: int, out: Path, tokenization: Tokenization = "words"
) -> Figures:
    """Train a model of n-grams up to `order` words on documents (strings, or batches with a column `text`) and write
    it to `out`: an ARPA file where the name ends in .arpa or .arpa.gz, else gristmill's own format. The same documents
    in the same order give the same bytes. GristmillError when there is no text."""
    counts = NgramCounts(order, tokenization)
    documents_read = bytes_read = 0
    for batch in _columns(documents):
        texts = texts_of(batch)
        counts.add(texts)
        documents_read += len(texts)
        bytes_read += texts.size
    tokens = counts.tokens
    model, discounts = estimate(counts)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.name.endswith((".arpa", ".arpa.gz")):
        write_arpa(model, out)
    else:
        model.save(out, discounts=[[round(value, 6) for value in of_order] for of_order in discounts], tokens=tokens)
    return {
        "documents": documents_read,
        "bytes": bytes_read,
        "tokens": tokens,
        "vocabulary": len(model.words),
        "ngrams": model.counts,
    }


def train_ngram_files(paths: Sequence[Path | str], order: int, out: Path) -> Figures:
    """The work of `gristmill data train-ngram`: train on the files and directories that `read_paths` reads."""
    if not 1 <= order <= MAX_ORDER:
        raise GristmillError(f"--order {order}: an n-gram has 1 to {MAX_ORDER} words")
    prepare_out(out)
    started = time.process_time()
    figures = train_ngram(read_paths(paths), order, out)
    return figures | {"mb_per_cpu_second": round(figures["bytes"] / 1e6 / max(time.process_time() - started, 1e-9), 2)}


def _columns(documents: Iterable[pa.RecordBatch | str]) -> Iterator[pa.Array]:
    """The documents as columns of text, strings being gathered to columns of about a megabyte."""
    waiting: list[str] = []
    size = 0
    for document in documents:
        if isinstance(document, str):
            waiting.append(document)
            size += len(document)
        if waiting and (size >= 1 << 20 or not isinstance(document, str)):
            yield pa.array(waiting, pa.large_string())
            waiting, size = [], 0
        if not isinstance(document, str):
            yield document.column("text")
    if waiting:
        yield pa.array(waiting, pa.large_string())
