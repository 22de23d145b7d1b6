"""What benchmarks/real_run.py trains on and measures with, beside the run's own tokens: the texts that stage `corpus`
removed, as tokens; texts that no model has seen; and parts of bounded size in which all of it travels."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from gristmill.artifact import MANIFEST, Figures, StageFunction, StageRun, build, hash_json, read_manifest, write_json
from gristmill.data.config import CorpusConfig
from gristmill.data.corpus import document_batches, mixture_weights
from gristmill.data.schema import part_files, work_of
from gristmill.events import StageLog
from gristmill.recipe import load_recipe
from gristmill.tokenizer.config import TokensConfig
from gristmill.tokenizer.pack import pack
from gristmill.tokenizer.store import META, SPLITS, TokenStore, bin_path, idx_path

HELDOUT = "heldout.jsonl"
SIGNATURE_BANDS = 14  # of 8 minima each: equal in one band, a removed text may repeat a held-out one
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 2, "dict_size": 1 << 24, "lc": 1, "lp": 1, "pb": 1}]  # numbers of two bytes
PART = re.compile(r"part-(\d+)-of-(\d+)-([0-9a-f]{16})\.xz")


def add_removed(run: Path) -> dict[str, Figures]:
    """RUN/removed/{corpus,tokens}: what stage `corpus` took out, packed with the run's tokenizer.

    Together with the kept texts that is the collection as it was before deduplication and filters; what cleaning and
    redaction did to single texts stays. Left out is whatever repeats a validation text.
    """
    recipe = load_recipe(run / "recipe.yaml")
    artifacts = run / "artifacts"
    assert recipe.corpus is not None
    assert recipe.tokens is not None
    corpus = _build_once(
        run / "removed" / "corpus", "corpus", _removed, recipe.corpus, {"corpus": artifacts / "corpus"}
    )
    inputs = {"corpus": run / "removed" / "corpus", "tokenizer": artifacts / "tokenizer"}
    tokens = _build_once(run / "removed" / "tokens", "tokens", pack, recipe.tokens, inputs)
    return {"corpus": corpus, "tokens": tokens}


def join_raw(run: Path) -> Path:
    """RUN/raw/tokens: the run's tokens and the removed ones, in one store with the run's weights and validation."""
    inputs = {"tokens": run / "artifacts" / "tokens", "removed": run / "removed" / "tokens"}
    _build_once(run / "raw" / "tokens", "tokens", _together, TokensConfig(), inputs)
    return run / "raw" / "tokens"


def write_heldout(run: Path, domain_bytes: int) -> dict[str, dict[str, int]]:
    """RUN/heldout.jsonl: of each domain the first validation texts by id (a hash), up to `domain_bytes`."""
    columns = ["id", "domain", "text", "source"]
    rows = [
        row
        for batch in document_batches(run / "artifacts/corpus", "validation", columns=columns)
        for row in batch.to_pylist()
    ]
    found: dict[str, dict[str, int]] = {}
    with open(run / HELDOUT, "w", encoding="utf-8") as file:
        for row in sorted(rows, key=lambda row: row["id"]):
            counts = found.setdefault(row["domain"], {"documents": 0, "bytes": 0})
            size = len(row["text"].encode())
            if counts["bytes"] + size <= domain_bytes:
                counts["documents"] += 1
                counts["bytes"] += size
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return found


def _build_once(
    target: Path, kind: str, function: StageFunction, config: BaseModel, inputs: dict[str, Path]
) -> Figures:
    """`gristmill.artifact.build`, unless the artifact has been made of the same parents."""
    parents = {name: read_manifest(path).hash for name, path in inputs.items()}
    fingerprint = hash_json({"parents": parents, "config": config.model_dump(mode="json"), "name": str(target.name)})
    if (target / MANIFEST).exists() and read_manifest(target).fingerprint == fingerprint:
        return read_manifest(target).figures
    target.parent.mkdir(parents=True, exist_ok=True)
    log = StageLog.silent(kind)
    manifest = build(
        target, kind=kind, stage=kind, function=function, config=config, inputs=inputs, seed=0, fingerprint=fingerprint,
        log=log,
    )  # fmt: skip
    return manifest.figures


def _removed(config: CorpusConfig, run: StageRun) -> Figures:
    """A corpus of the removed texts of another, all for training."""
    corpus = run.inputs["corpus"]
    found = list(document_batches(corpus, "validation", columns=["id", "source", "origin"]))
    held = pa.Table.from_batches(found)
    ids = set(held["id"].to_pylist())
    works = {
        (source, work_of(origin))
        for source, origin in zip(held["source"].to_pylist(), held["origin"].to_pylist(), strict=True)
    }
    similar = _similar(corpus, ids)
    weights, figures, present = mixture_weights(corpus), {"documents": 0, "bytes": 0, "held_back": 0}, set()
    for part in part_files(corpus / "removed"):
        (run.out / "documents").mkdir(exist_ok=True)
        writer = None
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1024, use_threads=False):
                places = zip(
                    *(batch[name].to_pylist() for name in ("id", "source", "origin", "cluster", "duplicate_of")),
                    strict=True,
                )
                free = [
                    not (cluster in ids or twin in ids or id in similar or (source, work_of(origin)) in works)
                    for id, source, origin, cluster, twin in places
                ]
                kept = batch.filter(pa.array(free))
                figures["held_back"] += len(batch) - len(kept)
                figures["documents"] += len(kept)
                figures["bytes"] += pc.sum(kept["bytes"]).as_py() or 0
                present |= set(kept["domain"].to_pylist())
                table = pa.table(
                    {"text": kept["text"], "domain": kept["domain"], "split": pa.array(["train"] * len(kept))}
                )
                writer = writer or pq.ParquetWriter(run.out / "documents" / part.name, table.schema, compression="zstd")
                writer.write_table(table)
        if writer is not None:
            writer.close()
    write_json(run.out / "report.json", {"weights": {name: weights[name] for name in sorted(present)}})
    return figures


def _similar(corpus: Path, ids: set[str]) -> set[str]:
    """Ids of removed documents whose signature equals a validation document's in at least one band."""
    held: list[NDArray[np.uint64]] = []
    for names, bands, _ in _bands(corpus):
        held.append(bands[[name in ids for name in names]])
    known = np.concatenate(held)
    found: set[str] = set()
    for names, bands, kept in _bands(corpus):
        hit = np.zeros(len(bands), np.bool_)
        for band in range(SIGNATURE_BANDS):
            hit |= np.isin(bands[:, band], known[:, band])
        found.update(name for name, same in zip(names, hit & ~kept, strict=True) if same)
    return found


def _bands(corpus: Path) -> Iterator[tuple[list[str], NDArray[np.uint64], NDArray[np.bool_]]]:
    """Of each file of signatures: ids, a number for every band `[documents, bands]`, and which documents were kept.
    Documents too short for a signature are left out."""
    mix = np.random.default_rng(0).integers(1, 1 << 63, size=1 << 10, dtype=np.uint64) | np.uint64(1)
    for part in sorted((corpus / "signatures").glob("part-*.parquet")):
        table = pq.read_table(part, columns=["id", "signature", "kept"])
        table = table.filter(pc.greater(pc.binary_length(table["signature"]), 0))
        if len(table) == 0:
            continue
        flat = np.frombuffer(b"".join(table["signature"].to_pylist()), "<u4").reshape(len(table), SIGNATURE_BANDS, -1)
        bands = (flat.astype(np.uint64) * mix[: flat.shape[2]]).sum(axis=2, dtype=np.uint64)
        yield table["id"].to_pylist(), bands, table["kept"].to_numpy()


def _together(config: TokensConfig, run: StageRun) -> Figures:
    """The documents of two stores, the first one's first. Validation and weights are the first one's."""
    first, second = TokenStore.open(run.inputs["tokens"]), TokenStore.open(run.inputs["removed"])
    assert first.tokenizer_hash == second.tokenizer_hash
    meta = json.loads((first.directory / META).read_text(encoding="utf-8"))
    for split in SPLITS:
        for domain in first.domains:
            stores = [first, second] if split == "train" and domain in second.domains else [first]
            path = bin_path(run.out, split, domain)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for store in stores:
                    file.write(store.tokens(split, domain).data)
            offsets, counts = np.zeros(1, np.int64), {"documents": 0, "tokens": 0, "bytes": 0}
            for store in stores:
                starts = store.offsets(split, domain)
                offsets = np.concatenate([offsets, starts[1:] + offsets[-1]])
                counts["documents"] += len(starts) - 1
                counts["bytes"] += store.bytes(split, domain)
            counts["tokens"] = int(offsets[-1])
            np.save(idx_path(run.out, split, domain), offsets)
            meta["domains"][domain][split] = counts
    write_json(run.out / META, meta)
    return {"train_tokens": sum(meta["domains"][name]["train"]["tokens"] for name in first.domains)}


def pack_parts(run: Path, out: Path, part_bytes: int) -> list[Path]:
    """Tokenizer, tokens, removed tokens, held-out texts and recipe as OUT/part-NNN-of-NNN-SHA.xz of at most
    `part_bytes`: one tar archive, compressed as numbers of two bytes and cut."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part-*.xz*"):
        old.unlink()
    names = ("recipe.yaml", HELDOUT, "artifacts/tokenizer", "artifacts/tokens", "removed/tokens")
    pieces = _Pieces(out, part_bytes)
    with lzma.LZMAFile(pieces, "wb", filters=XZ) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:  # type: ignore[arg-type]
        for name in names:
            archive.add(run / name, name)
    return pieces.finish()


class _Pieces:
    """A file that is written into pieces of bounded size, whose names tell their number and hash."""

    def __init__(self, out: Path, limit: int):
        self._out, self._limit = out, limit
        self._paths: list[Path] = []
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        while len(self._waiting) >= self._limit:
            self._cut()
        return len(data)

    def finish(self) -> list[Path]:
        if self._waiting:
            self._cut()
        count = len(self._paths)
        return [
            path.rename(self._out / f"part-{number:03d}-of-{count:03d}-{_hash(path)}.xz")
            for number, path in enumerate(self._paths)
        ]

    def _cut(self) -> None:
        self._paths.append(self._out / f"part-{len(self._paths):03d}.xz.writing")
        self._paths[-1].write_bytes(self._waiting[: self._limit])
        del self._waiting[: self._limit]


def join_parts(parts: Path, run: Path) -> bool:
    """Unpack the parts into RUN once all of them lie in `parts`; False, and a line about it, while some are missing."""
    found = {
        int(m[1]): (path, m[3], int(m[2]))
        for path in sorted(parts.glob("part-*.xz"))
        if (m := PART.fullmatch(path.name))
    }
    if not found:
        sys.exit(f"{parts} holds no part-NNN-of-NNN-SHA.xz")
    count = next(iter(found.values()))[2]
    for path, digest, of in found.values():
        if of != count or _hash(path) != digest:
            sys.exit(f"{path} is damaged or of another set: bring it again")
    missing = [number for number in range(count) if number not in found]
    if missing:
        print(f"{len(found)} of {count} parts are here; missing: {', '.join(map(str, missing))}")
        return False
    run.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO(b"".join(found[number][0].read_bytes() for number in range(count)))
    with lzma.LZMAFile(whole) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        archive.extractall(run, filter="data")
    return True


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
