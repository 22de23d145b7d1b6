"""Documents of corpora that exist already: what they hold is a duplicate here.

A corpus keeps the digests and signatures of its documents in `signatures/part-*.parquet`, in the order of its input,
kept documents and removed ones; the kept ones stand in the same order in `documents/part-*.parquet`. What their
signatures are made of stands in the table's metadata: other n-grams or another number of minima cannot be compared.

The documents of other corpora are numbered behind the documents of this one: with N here, the first one there is N.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

from ..config import NearDuplicateConfig
from ..schema import read_columns
from ..step import Mask
from .tables import I64, DocumentFiles

METADATA = b"gristmill.signatures"
VERSION = 1  # of what tokens, hashes and permutations are: another one gives other signatures of the same text


def signature_schema(config: NearDuplicateConfig | None) -> pa.Schema:
    """The schema of `signatures/`: of every document its id, digest, signature (null where there is none) and whether
    it was kept; and in the metadata what the signatures are made of."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("signature", pa.binary()),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
    return pa.schema(fields, {METADATA: json.dumps(_made_of(config))})


def _made_of(config: NearDuplicateConfig | None) -> dict[str, int] | None:
    if config is None:
        return None
    return {"version": VERSION, "ngram": config.ngram, "permutations": config.permutations}


@dataclass(frozen=True)
class OtherCorpora:
    """The corpora that a new one is compared with; their documents count on from one to the next."""

    signatures: DocumentFiles
    kept: Mask  # of all rows of `signatures`
    documents: DocumentFiles

    @classmethod
    def open(cls, config: NearDuplicateConfig) -> OtherCorpora:
        """The corpora in `config.against`. GristmillError names one that is none, or that was signed otherwise."""
        signatures: list[Path] = []
        documents: list[Path] = []
        kept = [np.zeros(0, np.bool_)]
        for name in config.against:
            found = _parts(Path(name), "signatures")
            mine = [read_columns(path, ["kept"])["kept"].to_numpy() for path in found]
            texts = DocumentFiles.of(_parts(Path(name), "documents"))
            for path in found:
                _check(path, config)
            if len(texts) != sum(int(mask.sum()) for mask in mine):
                raise GristmillError(
                    f"{name}: signatures/ and documents/ do not belong together; make that corpus again"
                )
            signatures += found
            documents += texts.paths
            kept += mine
        return cls(DocumentFiles.of(signatures), np.concatenate(kept), DocumentFiles.of(documents))

    def __len__(self) -> int:
        """How many documents the corpora hold."""
        return len(self.documents)

    def digests(self) -> Iterator[Any]:
        """The digests of their documents, one array a file."""
        for path, start, end in zip(
            self.signatures.paths, self.signatures.starts[:-1], self.signatures.starts[1:], strict=True
        ):
            yield read_columns(path, ["digest"])["digest"].filter(pa.array(self.kept[start:end]))

    def ids(self, numbers: I64) -> list[str]:
        """The ids of documents, counted from 0 for the first one there."""
        starts = self.documents.starts
        found: dict[int, str] = {}
        wanted = np.unique(numbers)
        for path, start, end in zip(self.documents.paths, starts[:-1], starts[1:], strict=True):
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)]
            if len(here):
                ids = read_columns(path, ["id"])["id"].take(pa.array(here - start)).to_pylist()
                found.update(zip(here.tolist(), ids, strict=True))
        return [found[number] for number in numbers.tolist()]


def _parts(corpus: Path, table: str) -> list[Path]:
    files = sorted((corpus / table).glob("part-*.parquet"))
    if not files:
        raise GristmillError(
            f"corpus.near_duplicates.against: {corpus} holds no {table}/part-*.parquet; name the directory of a "
            "finished corpus, such as runs/NAME/artifacts/corpus"
        )
    return files


def _check(path: Path, config: NearDuplicateConfig) -> None:
    found = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"null"))
    wanted = _made_of(config)
    if found != wanted:
        raise GristmillError(
            f"corpus.near_duplicates.against: {path.parents[1]} has signatures of {_words(found)}, this corpus of "
            f"{_words(wanted)}; give both the same ngram and permutations"
        )


def _words(made_of: dict[str, int] | None) -> str:
    if made_of is None:
        return "no documents (near_duplicates was off)"
    version = "" if made_of.get("version") == VERSION else f", version {made_of.get('version')}"
    return f"{made_of.get('permutations')} minima of {made_of.get('ngram')}-grams{version}"
