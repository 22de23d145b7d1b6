"""Near-duplicates of a whole corpus: candidates by locality-sensitive hashing, each checked before it is removed.

    sign_chunk       signatures as arrays, hashes of their bands sorted     one task for 65,536 documents
    pair_up          pairs that share a band and whose signatures agree     one task for 1,048,576 hashes
    find_components  who may have to do with whom (union-find)              one task
    collect_sets     the n-grams of the candidates, read from their texts   one task for 8,192 documents
    verify           exact comparison, in order                             one task for 8,192 candidates, or a
                                                                            component that is larger

The sizes of tasks are fixed, so the result depends neither on the number of workers nor on where they run. What is in
memory for each document: here 9 bytes for every eligible one and 24 for every removed one; in `find_components` 17, and
64 for every candidate. The rest waits on disk, about 700 bytes a document at 112 minima, and 8 for each n-gram of a
candidate.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import NearDuplicateConfig
from ..pool import Mapper, Task
from ..step import Mask
from .against import OtherCorpora
from .lsh import beside, least_equal
from .runs import key_ranges
from .tables import F64, I64, DocumentFiles, do, mapped, save_array
from .verify import VERDICT

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sizes:
    """How much one task does. Other sizes give the same result."""

    signed: int = 1 << 16  # documents
    paired: int = 1 << 20  # hashes
    read: int = 1 << 13  # documents
    verified: int = 1 << 13  # candidates


@dataclass(frozen=True)
class NearDuplicates:
    """Document `removed[i]` goes because `kept[i]`, which stays, has the Jaccard similarity `jaccard[i]` with it.
    `removed` ascends; numbers in `kept` that no document here has are those of other corpora (`OtherCorpora`)."""

    removed: I64
    kept: I64
    jaccard: F64
    candidates: int  # documents that were looked at closely
    compared: int  # pairs whose sets were compared
    similar: int  # of them, pairs at or above the threshold


def near_duplicates(
    files: DocumentFiles,
    eligible: Mask,
    config: NearDuplicateConfig,
    work: Path,
    mapper: Mapper,
    others: OtherCorpora | None = None,
    progress: Progress = lambda done, total, what: None,
    sizes: Sizes = Sizes(),
) -> NearDuplicates:
    """Which of the eligible documents to remove.

    `files` have the columns text, bytes and signature; a document without a signature stays. `eligible` is a mask of
    all their documents. `work` is a directory for this function alone: what is finished there is not done again, unless
    it was for another question. `progress` is told (done, total, what).
    """
    if not eligible.any():
        return _result([], np.zeros(0, np.int64), len(eligible), 0)
    selected = eligible if others is None else np.concatenate([eligible, others.kept])
    work = _begin(work, selected, config, sizes)

    def step(name: str, tasks: list[Task], what: str) -> list[Path]:
        return do(mapper, f"gristmill.data.dedup.{name}", tasks, lambda done, total: progress(done, total, what))

    signing = _signing(files, selected, config, work, others, sizes)
    texts = _reading(files, selected, config, work, others, sizes)
    own = int(np.count_nonzero(eligible))
    common: Task = {
        "chunks": [task["out"] for task in signing],
        "starts": [*(task["row"] for task in signing), int(np.count_nonzero(selected))],
        "fixed": own,
        "least": least_equal(config.threshold, config.permutations),
    }
    step("lsh:sign_chunk", signing, "chunks signed")
    pairs = step("lsh:pair_up", _pairing(common, config.bands, work, sizes), "bands compared")
    joining = common | {"pairs": [str(path) for path in pairs], "out": str(work / "members.npy")}
    step("components:find_components", [joining], "components found")
    candidates = mapped(work / "candidates.npy")
    sets = step("verify:collect_sets", texts, "candidates read")
    starts = [*np.searchsorted(candidates, [task["row"] for task in texts]).tolist(), len(candidates)]
    common |= {"sets": [str(path) for path in sets], "set_starts": starts, "threshold": config.threshold}
    verdicts = step("verify:verify", _verifying(common, config, work, sizes), "candidates verified")
    return _result(verdicts, np.flatnonzero(eligible), len(eligible), len(candidates))


def _begin(work: Path, selected: Mask, config: NearDuplicateConfig, sizes: Sizes) -> Path:
    """The directory in `work` that belongs to this question; what belongs to another one is removed."""
    question = json.dumps([config.model_dump(mode="json"), len(selected), astuple(sizes)]).encode()
    place = work / hashlib.sha256(question + np.packbits(selected).tobytes()).hexdigest()[:16]
    if not place.exists():
        shutil.rmtree(work, ignore_errors=True)
        place.mkdir(parents=True)
    if not (place / "selected.npy").exists():
        save_array(place / "selected.npy", selected)
    return place


def _shape(config: NearDuplicateConfig) -> Task:
    return {"permutations": config.permutations, "bands": config.bands, "rows": config.rows}


def _signing(
    files: DocumentFiles,
    selected: Mask,
    config: NearDuplicateConfig,
    work: Path,
    others: OtherCorpora | None,
    sizes: Sizes,
) -> list[Task]:
    tasks: list[Task] = []
    row = before = 0
    tables: list[tuple[DocumentFiles, list[str]]] = [(files, ["bytes"])]
    if others is not None:
        tables.append((others.signatures, []))
    for table, length in tables:
        for first_file, last_file in table.chunks(sizes.signed):
            first, last = before + int(table.starts[first_file]), before + int(table.starts[last_file])
            task = {
                "files": list(map(str, table.paths[first_file:last_file])),
                "first": first,
                "last": last,
                "row": row,
            }
            task |= {"selected": str(work / "selected.npy"), "length": length} | _shape(config)
            tasks.append(task | {"out": str(work / f"bands-{len(tasks):05d}.npy")})
            row += int(np.count_nonzero(selected[first:last]))
        before += len(table)
    return tasks


def _reading(
    files: DocumentFiles,
    selected: Mask,
    config: NearDuplicateConfig,
    work: Path,
    others: OtherCorpora | None,
    sizes: Sizes,
) -> list[Task]:
    tasks: list[Task] = []
    row = 0

    def add(paths: tuple[Path, ...], rows: int, **mask: Any) -> None:
        nonlocal row
        task = {"files": list(map(str, paths)), "row": row, "last_row": row + rows, "ngram": config.ngram}
        task |= {"candidates": str(work / "candidates.npy"), "out": str(work / f"offsets-{len(tasks):05d}.npy")}
        tasks.append(task | mask)
        row += rows

    for first_file, last_file in files.chunks(sizes.read):
        first, last = int(files.starts[first_file]), int(files.starts[last_file])
        rows = int(np.count_nonzero(selected[first:last]))
        add(files.paths[first_file:last_file], rows, first=first, last=last, selected=str(work / "selected.npy"))
    if others is not None:
        for path, rows in zip(others.documents.paths, others.documents.rows, strict=True):
            add((path,), rows, selected=None)
    return tasks


def _pairing(common: Task, bands: int, work: Path, sizes: Sizes) -> list[Task]:
    rows = common["starts"][-1]
    units = [(band, low, high) for band in range(bands) for low, high in key_ranges(rows, sizes.paired)]
    together = max(1, sizes.paired // max(rows, 1))
    return [
        common | {"units": units[place : place + together], "out": str(work / f"pairs-{place // together:05d}.npy")}
        for place in range(0, len(units), together)
    ]


def _verifying(common: Task, config: NearDuplicateConfig, work: Path, sizes: Sizes) -> list[Task]:
    files = {name: str(work / f"{name}.npy") for name in ("members", "borders", "candidates")}
    task = common | files | _shape(config)
    borders = mapped(work / "borders.npy")
    tasks: list[Task] = []
    first = 0
    while first < len(borders) - 1:
        last = max(first + 1, int(np.searchsorted(borders, borders[first] + sizes.verified, side="right")) - 1)
        out = str(work / f"verdicts-{len(tasks):05d}.npy")
        tasks.append(task | {"first": first, "last": last, "out": out})
        first = last
    return tasks


def _result(files: list[Path], numbers: I64, documents: int, candidates: int) -> NearDuplicates:
    """The verdicts of all tasks, with the documents' numbers instead of their rows. `numbers` are those of own rows."""
    verdicts = np.concatenate([np.zeros(0, VERDICT), *(mapped(path) for path in files)])
    verdicts = verdicts[np.argsort(verdicts["removed"])]
    counts = [mapped(beside(path, "counts")).tolist() for path in files]
    kept = verdicts["kept"]
    own = kept < len(numbers)
    named = documents + kept - len(numbers)
    named[own] = numbers[kept[own]]
    compared, similar = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return NearDuplicates(
        numbers[verdicts["removed"]], named, verdicts["jaccard"].copy(), candidates, compared, similar
    )


def cluster_roots(duplicate_of: I64) -> I64:
    """For each document the one that stands for its cluster: itself where `duplicate_of` is -1, else what is reached by
    following `duplicate_of` (an exact copy leads to a text that may itself be a near-duplicate of a third). Numbers
    beyond the documents, which are those of other corpora, stand for themselves. Cluster sizes are
    `np.unique(roots, return_counts=True)`."""
    roots = np.where(duplicate_of < 0, np.arange(len(duplicate_of)), duplicate_of)
    while True:
        inside = roots < len(roots)
        following = roots.copy()
        following[inside] = roots[roots[inside]]
        if np.array_equal(following, roots):
            return roots
        roots = following
