"""The tokens stage: every document of the corpus as `<|bos|> ids <|eos|>`, one flat file per split and domain.

A task is a few row groups of the corpus; it becomes a piece in `run.scratch`, a directory that appears by a rename
when it is whole. Tasks are done by worker processes (`data/engines.py`), and a killed stage repeats only the pieces
that were under way. At the end the pieces are joined in order, so what comes out does not depend on who made them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..artifact import Figures, StageRun, write_json, write_text
from ..data.corpus import mixture_weights
from ..data.engines import open_mapper
from ..data.pool import Result, Task
from ..data.schema import row_groups
from ..errors import GristmillError
from .config import TokensConfig
from .store import META, SPLITS, bin_path, idx_path
from .tokenizer import Tokenizer

ROW_GROUPS_PER_PIECE = 4  # of some 2 MB each
BATCH_ROWS = 1024  # what is encoded at a time

Group = tuple[str, str]  # (split, domain)


class Work(NamedTuple):
    """What one piece is made of: row groups of one corpus file, `rows` documents in all."""

    shard: Path
    row_groups: list[int]
    rows: int
    piece: Path


def pack(config: TokensConfig, run: StageRun) -> Figures:
    """Pack the corpus `run.inputs["corpus"]` with `run.inputs["tokenizer"]` into token files (see `store.py`).

    Figures: tokens and documents per split, bytes of text per token, and what this run took for what it encoded.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    corpus = run.inputs["corpus"]
    tokenizer = Tokenizer.load(run.inputs["tokenizer"])
    dtype = token_dtype(config.dtype, tokenizer.vocab_size)
    weights = mixture_weights(corpus)

    works = _divide(corpus, run.scratch)
    text_bytes, cpu_seconds = _encode(works, tokenizer, dtype, run)
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
    cpu_seconds += time.process_time() - cpu_started
    return {
        **_figures(counts),
        "bytes_per_second": round(text_bytes / (time.perf_counter() - started)),
        "cpu_seconds": round(cpu_seconds, 3),
        "mb_per_cpu_second": round(text_bytes / 1e6 / cpu_seconds, 2),
    }


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


def _encode(works: Sequence[Work], tokenizer: Tokenizer, dtype: np.dtype[Any], run: StageRun) -> tuple[int, float]:
    """Make the pieces that are not there; the bytes of text encoded for them, and other processes' CPU seconds."""
    missing = [work for work in works if not work.piece.exists()]
    total = sum(work.rows for work in works)
    done = total - sum(work.rows for work in missing)
    run.log.progress(done, total, "documents")
    if not missing:
        return 0, 0.0
    for torn in run.scratch.glob(".*.writing"):
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    shared = {"tokenizer": str(tokenizer.directory), "hash": tokenizer.hash, "dtype": dtype.name}
    shared["run"] = uuid.uuid4().hex
    write_text(run.scratch / "run", shared["run"])
    tasks = [
        shared | {"shard": str(work.shard), "row_groups": work.row_groups, "piece": str(work.piece)} for work in missing
    ]
    text_bytes = 0
    with open_mapper(run.engine, run.workers, tasks=len(tasks)) as mapper:
        mapper.prepare(f"{__name__}:load_tokenizer", shared)
        for work, result in zip(missing, mapper(f"{__name__}:write_piece", tasks), strict=True):
            text_bytes += result["bytes"]
            done += work.rows
            run.log.progress(done, total, "documents")
        return text_bytes, mapper.cpu_seconds


def load_tokenizer(task: Task) -> Result:
    """Load what `write_piece` encodes with. The task gives the directory `tokenizer` and its `hash`."""
    _loaded(task["tokenizer"], task["hash"]).encode_array(pa.array([], pa.large_string()))
    return {}


@lru_cache(maxsize=1)
def _loaded(directory: str, hash: str) -> Tokenizer:
    """The tokenizer of a directory; `hash` is there so that another one that takes its place is not mistaken for it."""
    return Tokenizer.load(directory)


def write_piece(task: Task) -> Result:
    """Write one piece: SPLIT/DOMAIN.bin and SPLIT/DOMAIN.sizes.npy (int64 [documents, 2], tokens and bytes of text).

    The task gives `shard`, `row_groups`, `piece`, `tokenizer`, `hash`, `dtype` and `run`, the mark of the run that it
    belongs to: a worker that outlived its run puts nothing into the next. The result is the `bytes` of text.
    """
    piece, shard, dtype = Path(task["piece"]), Path(task["shard"]), np.dtype(task["dtype"])
    tokenizer = _loaded(task["tokenizer"], task["hash"])
    working = piece.with_name(f".{piece.name}.{task['run'][:8]}-{uuid.uuid4().hex[:8]}.writing")
    working.mkdir()
    writers: dict[Group, _GroupWriter] = {}
    text_bytes = 0
    with ExitStack() as files:
        for batch in _batches(shard, task["row_groups"]):
            ordered, borders, groups = _by_group(batch)
            sizes = pc.binary_length(ordered).fill_null(0).to_numpy().astype(np.int64)
            flat, ends = _documents(*tokenizer.encode_array(ordered), tokenizer.bos_id, tokenizer.eos_id, dtype)
            text_bytes += int(sizes.sum())
            for group, first, last in zip(groups, borders[:-1], borders[1:], strict=True):
                if group not in writers:
                    path = bin_path(working, *_checked(group, shard))
                    writers[group] = _GroupWriter(files.enter_context(_create(path)))
                writers[group].file.write(flat[ends[first] : ends[last]].data)
                writers[group].sizes.append(
                    np.stack([np.diff(ends[first : last + 1]), sizes[first:last]], axis=1),
                )
    for group, writer in writers.items():
        np.save(_sizes_path(working, group), np.concatenate(writer.sizes))
    if (piece.parent / "run").read_text() != task["run"]:
        raise RuntimeError(f"another run has begun in {piece.parent}")
    if piece.exists():  # a task that was done twice has made the same
        shutil.rmtree(working)
    else:
        os.replace(working, piece)
    pa.default_memory_pool().release_unused()
    return {"bytes": text_bytes}


@dataclass
class _GroupWriter:
    """The documents of one split and domain inside one piece; `sizes` holds (tokens, bytes of text) of each."""

    file: BinaryIO
    sizes: list[NDArray[np.int64]] = field(default_factory=list)


def _batches(shard: Path, groups: list[int]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(BATCH_ROWS, groups, ["text", "split", "domain"], use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise GristmillError(f"{shard} is not a readable corpus file: {error}") from None


def _by_group(batch: pa.RecordBatch) -> tuple[pa.Array, list[int], list[Group]]:
    """The texts of a batch with those of a split and domain together, in their order; where each group begins, and
    where the last one ends; which these are."""
    split, domain = (batch[name].dictionary_encode(null_encoding="encode") for name in ("split", "domain"))
    names = list(itertools.product(split.dictionary.to_pylist(), domain.dictionary.to_pylist()))
    codes = split.indices.to_numpy() * len(domain.dictionary) + domain.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    texts = batch["text"] if len(found) == 1 else batch["text"].take(pa.array(order))
    return texts, [*starts.tolist(), len(codes)], [names[code] for code in found]


def _documents(
    ids: NDArray[np.uint32], offsets: NDArray[np.int64], bos_id: int, eos_id: int, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Documents with bos before and eos behind each, and int64 `[documents + 1]`: where each starts."""
    starts = offsets + 2 * np.arange(len(offsets))
    flat = np.empty(starts[-1], dtype)
    inside = np.ones(len(flat), np.bool_)
    for places, id in ((starts[:-1], bos_id), (starts[1:] - 1, eos_id)):
        flat[places] = id
        inside[places] = False
    flat[inside] = ids
    return flat, starts


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
                shutil.copyfileobj(part, file, 1 << 20)
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
