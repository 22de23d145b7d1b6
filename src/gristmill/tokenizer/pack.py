"""The tokens stage: every document of the corpus as `<|bos|> ids <|eos|>`, one flat file per split and domain.

Work goes by a few row groups of the corpus at a time: they become a piece in `run.scratch`, a directory that appears by
a rename when it is whole, so a killed stage repeats one piece at most. At the end the pieces are joined in order.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..artifact import Figures, StageRun, write_json
from ..data.corpus import mixture_weights
from ..data.schema import row_groups
from ..errors import GristmillError
from ..events import StageLog
from .bulk import BulkEncoder
from .config import TokensConfig
from .sample import read_batches
from .store import META, SPLITS, bin_path, idx_path
from .tokenizer import Tokenizer

ROW_GROUPS_PER_PIECE = 16  # of some 2 MB each

Group = tuple[str, str]  # (split, domain)


class Work(NamedTuple):
    """What one piece is made of: row groups of one corpus file, `rows` documents in all."""

    shard: Path
    row_groups: list[int]
    rows: int
    piece: Path


def pack(config: TokensConfig, run: StageRun) -> Figures:
    """Pack the corpus `run.inputs["corpus"]` with `run.inputs["tokenizer"]` into token files (see `store.py`).

    Figures: tokens and documents per split, bytes of text per token, and the speed of what this run encoded.
    """
    corpus = run.inputs["corpus"]
    tokenizer = Tokenizer.load(run.inputs["tokenizer"])
    dtype = token_dtype(config.dtype, tokenizer.vocab_size)
    weights = mixture_weights(corpus)

    started = time.perf_counter()
    works = _divide(corpus, run.scratch)
    packer = _Packer(tokenizer, dtype, run.log, total=sum(work.rows for work in works))
    for work in works:
        packer.pack(work)
    seconds = time.perf_counter() - started

    pieces = [work.piece for work in works]
    groups = _groups(pieces, weights, corpus)
    counts = {group: _join(pieces, group, run.out) for group in groups}
    write_json(
        run.out / META,
        {
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.name,
            "tokenizer_hash": tokenizer.hash,
            "domains": {
                domain: {"weight": weights[domain], **{split: counts[split, domain] for split in SPLITS}}
                for domain in sorted({domain for _, domain in groups})
            },
        },
    )
    return {**_figures(counts), "bytes_per_second": round(packer.text_bytes / seconds)}


def token_dtype(name: str, vocab_size: int) -> np.dtype[Any]:
    """The integer type of stored ids; GristmillError where the vocabulary does not fit."""
    if name == "auto":
        name = "uint16" if vocab_size <= 1 << 16 else "uint32"
    dtype = np.dtype(name).newbyteorder("<")
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise GristmillError(
            f"tokens.dtype is {name}, which cannot hold {vocab_size} token ids; set it to uint32 or auto"
        )
    return dtype


def _divide(corpus: Path, scratch: Path) -> list[Work]:
    """The pieces of a corpus in order; none spans two files."""
    try:
        found = list(row_groups(corpus / "documents"))
    except (pa.ArrowInvalid, OSError) as error:
        raise GristmillError(f"{corpus / 'documents'} holds an unreadable file: {error}") from None
    works = []
    for shard, of_shard in itertools.groupby(found, key=lambda group: group[0]):
        numbered = [(number, rows) for _, number, rows in of_shard]
        for start in range(0, len(numbered), ROW_GROUPS_PER_PIECE):
            numbers, rows = zip(*numbered[start : start + ROW_GROUPS_PER_PIECE], strict=True)
            works.append(Work(shard, list(numbers), sum(rows), scratch / f"{shard.stem}-{start:05d}"))
    return works


@dataclass
class _GroupWriter:
    """The documents of one split and domain inside one piece; `sizes` holds (tokens, bytes of text) of each."""

    file: BinaryIO
    sizes: list[tuple[int, int]] = field(default_factory=list)


class _Packer:
    """Encodes documents into pieces. `text_bytes`: how much text it has encoded."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], log: StageLog, total: int):
        self._encoder = BulkEncoder(tokenizer, dtype)
        self._bos, self._eos = (np.array([id], dtype).tobytes() for id in (tokenizer.bos_id, tokenizer.eos_id))
        self._log, self._total = log, total
        self._done = self.text_bytes = 0

    def pack(self, work: Work) -> None:
        """Write the piece, unless it is there: SPLIT/DOMAIN.bin and SPLIT/DOMAIN.sizes.npy (int64 [documents, 2])."""
        if work.piece.exists():
            self._advance(work.rows)
            return
        working = work.piece.with_name(f"{work.piece.name}.working")
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        writers: dict[Group, _GroupWriter] = {}
        for batch in read_batches(work.shard, ["text", "split", "domain"], work.row_groups):
            sizes = pc.binary_length(batch["text"]).to_pylist()
            groups = zip(batch["split"].to_pylist(), batch["domain"].to_pylist(), strict=True)
            documents = self._encoder.encode(batch["text"].to_pylist())
            for group, ids, size in zip(groups, documents, sizes, strict=True):
                if group not in writers:
                    writers[group] = _GroupWriter(_create(bin_path(working, *_checked(group, work.shard))))
                writers[group].file.write(self._bos + ids.tobytes() + self._eos)
                writers[group].sizes.append((len(ids) + 2, size))
                self.text_bytes += size
            self._advance(len(batch))
        for group, writer in writers.items():
            writer.file.close()
            np.save(_sizes_path(working, group), np.array(writer.sizes, dtype=np.int64))
        os.replace(working, work.piece)

    def _advance(self, documents: int) -> None:
        self._done += documents
        self._log.progress(self._done, self._total, "documents")


def _groups(pieces: list[Path], weights: Mapping[str, float], corpus: Path) -> list[Group]:
    """Every split of every domain that occurs in the pieces, sorted; checks that they agree with the weights."""
    found = {(path.parent.name, path.stem) for piece in pieces for path in piece.glob("*/*.bin")}
    if not found:
        raise GristmillError(f"{corpus} holds no documents; there is nothing to pack")
    domains = sorted({domain for _, domain in found})
    for domain in domains:
        if domain not in weights:
            raise GristmillError(f"{corpus / 'report.json'} gives no weight to the domain {domain!r}")
    for domain, weight in sorted(weights.items()):
        if weight > 0 and ("train", domain) not in found:
            raise GristmillError(f"{corpus} holds no training documents of {domain!r}, which has the weight {weight}")
    return [(split, domain) for split in SPLITS for domain in domains]


def _join(pieces: list[Path], group: Group, out: Path) -> dict[str, int]:
    """Write a group's two files from its pieces, each through a temporary name; returns the counts for meta.json."""
    target = bin_path(out, *group)
    present = [piece for piece in pieces if bin_path(piece, *group).exists()]
    temporary = target.with_name(f".{target.name}.writing")
    with _create(temporary) as file:
        for piece in present:
            with open(bin_path(piece, *group), "rb") as part:
                shutil.copyfileobj(part, file)
    os.replace(temporary, target)

    sizes = np.concatenate([np.zeros((1, 2), np.int64), *(np.load(_sizes_path(piece, group)) for piece in present)])
    tokens, text_bytes = sizes.sum(axis=0)
    target = idx_path(out, *group)
    temporary = target.with_name(f".{target.name}.writing")
    with _create(temporary) as file:
        np.save(file, np.cumsum(sizes[:, 0]))
    os.replace(temporary, target)
    return {"documents": len(sizes) - 1, "tokens": int(tokens), "bytes": int(text_bytes)}


def _figures(counts: Mapping[Group, Mapping[str, int]]) -> Figures:
    totals = {
        f"{split}_{what}": sum(count[what] for (of_split, _), count in counts.items() if of_split == split)
        for split in SPLITS
        for what in ("documents", "tokens")
    }
    text_bytes = sum(count["bytes"] for count in counts.values())
    tokens = sum(count["tokens"] for count in counts.values())
    return {**totals, "bytes_per_token": round(text_bytes / tokens, 4)}


def _checked(group: Group, shard: Path) -> Group:
    split, domain = group
    if split not in SPLITS:
        raise GristmillError(f"{shard} holds a document of the split {split!r}; known are {' and '.join(SPLITS)}")
    if not domain or domain.startswith(".") or "/" in domain:
        raise GristmillError(f"{shard} holds a document of the domain {domain!r}, which cannot be a file's name")
    return group


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "wb")


def _sizes_path(piece: Path, group: Group) -> Path:
    return bin_path(piece, *group).with_suffix(".sizes.npy")
