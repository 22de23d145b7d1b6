"""What one chunk of documents adds to the report, and how such parts are put together.

Parts hold whole numbers and the documents of lowest hash, nothing else: so they can be added in any order and however
the documents are cut into chunks, and the sum is the same. A part is a JSON object of some ten kilobytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..step import Rule
from . import bins

Part = dict[str, Any]
Entry = dict[str, Any]

KEPT = "kept"
SAMPLES = 5
EXCERPT_CHARACTERS = 300
MEMBERS = 8  # of a cluster to look at
LARGEST_CLUSTERS = 20
# Scores worth a histogram even where no rule looks at them.
SCORES = ("bytes", "language_score", "perplexity", "quality_score", "toxicity_score")
NO_VALUES = frozenset(("id", "text", "source", "origin", "domain"))  # columns that a sample shows anyway


def count(
    batch: pa.RecordBatch,
    rules: Sequence[Rule] = (),
    *,
    read: Mapping[str, Sequence[int]] | None = None,
    clusters: Collection[str] = (),
    samples: int = SAMPLES,
) -> Part:
    """What a chunk adds: `merge` puts parts together, `summary.make_report` makes the report of them.

    `batch` holds kept and removed documents: the columns of the corpus, `bytes`, `reason` (null where kept), `split`
    (null where removed), and as far as they exist `duplicate_of`, `similarity`, `cluster_size`, `pii_*`, and what
    `rules` read. `read` gives documents and bytes by domain as they were collected. `clusters` are the ids of the
    kept documents whose clusters will be shown (`largest_clusters`); `samples` documents of each reason are shown.
    """
    rows = _Rows(batch)
    part: Part = {
        "read": {domain: list(map(int, counts)) for domain, counts in (read or {}).items()},
        "reasons": rows.sums(rows.reasons, rows.domains),
        "splits": rows.sums(rows.splits, rows.domains),
        "languages": rows.sums(rows.languages, rows.sides),
        "rule_languages": rows.sums(rows.domains, [language or "" for language in rows.values("rule_language")]),
        "licenses": rows.sums(rows.values("license"), rows.sides),
        "sources": rows.sums(rows.values("source"), rows.sides),
        "personal_data": _personal_data(batch, rows),
        "histograms": _histograms(batch, rows, rules),
        "samples": _samples(batch, rows, rules, samples),
        "clusters": _clusters(batch, rows, frozenset(clusters)),
    }
    return part


def merge(parts: Iterable[Part], samples: int = SAMPLES) -> Part:
    """All parts as one; the parts given are not changed. `samples` is what `count` was given."""
    total: Part = {}
    for part in parts:
        for key, value in part.items():
            if key == "samples":
                _add_lowest(total.setdefault(key, {}), value, samples)
            elif key == "clusters":
                clusters = total.setdefault(key, {"sizes": {}, "counts": {}, "kept": {}, "members": {}})
                _add(clusters["sizes"], value["sizes"])
                _add(clusters["counts"], value["counts"])
                clusters["kept"].update(value["kept"])
                _add_lowest(clusters["members"], value["members"], MEMBERS)
            else:
                _add(total.setdefault(key, {}), value)
    return total


def largest_clusters(duplicate_of: NDArray[np.int64], most: int = LARGEST_CLUSTERS) -> NDArray[np.int64]:
    """The documents that most others are duplicates of, `[most]` at most; of equals the first. `duplicate_of` gives
    each document's number of the one it is a duplicate of, below 0 where there is none."""
    kept, counts = np.unique(duplicate_of[duplicate_of >= 0], return_counts=True)
    return np.asarray(kept[np.lexsort((kept, -counts))[:most]])


class _Rows:
    """The columns of a chunk that everything is grouped by, as lists."""

    def __init__(self, batch: pa.RecordBatch):
        self.batch = batch
        self.domains: list[str] = self.values("domain")
        self.bytes: list[int] = self.values("bytes")
        self.ids: list[str] = self.values("id")
        self.reasons = [reason or KEPT for reason in self.values("reason")]
        self.splits = [split or "removed" for split in self.values("split")]
        self.sides = [KEPT if reason == KEPT else "removed" for reason in self.reasons]
        found = self.values("detected_language")
        self.languages = [seen or said for seen, said in zip(found, self.values("language"), strict=True)]
        self.removed = np.array([side != KEPT for side in self.sides], np.bool_)

    def values(self, name: str) -> list[Any]:
        """A column as a list, of None where the chunk lacks it."""
        return self.batch[name].to_pylist() if name in self.batch.schema.names else [None] * self.batch.num_rows

    def sums(self, outer: list[str], inner: list[str]) -> dict[str, dict[str, list[int]]]:
        """outer -> inner -> [documents, bytes]."""
        found: dict[str, dict[str, list[int]]] = {}
        for one, other, size in zip(outer, inner, self.bytes, strict=True):
            entry = found.setdefault(one, {}).setdefault(other, [0, 0])
            entry[0] += 1
            entry[1] += size
        return found


def _personal_data(batch: pa.RecordBatch, rows: _Rows) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name in batch.schema.names:
        if name.startswith("pii_"):
            counts: dict[str, int] = dict.fromkeys(rows.domains, 0)
            for domain, number in zip(rows.domains, rows.values(name), strict=True):
                counts[domain] += number or 0
            found[name.removeprefix("pii_")] = counts
    return found


def _histograms(batch: pa.RecordBatch, rows: _Rows, rules: Sequence[Rule]) -> dict[str, Any]:
    """column -> domain -> cell -> [documents, of them removed]. Exact copies are not counted a second time."""
    wanted = sorted({*SCORES, *(name for rule in rules for name in rule.reads)} & set(batch.schema.names))
    first = np.array([reason != "exact_duplicate" for reason in rows.reasons], np.bool_)
    numbered = {domain: number for number, domain in enumerate(dict.fromkeys(rows.domains))}
    domain = np.array([numbered[name] for name in rows.domains], np.int64)
    found: dict[str, Any] = {}
    for name in wanted:
        values = bins.numbers(batch[name])
        if values is None:
            continue
        valid = first & ~np.isnan(values) if values.dtype.kind == "f" else first
        cells = bins.cells(values[valid])
        # Domain, cell and side as one number, so that one `unique` counts all three.
        keys, counts = np.unique((domain[valid] << 12 | (cells + 2048)) << 1 | rows.removed[valid], return_counts=True)
        names = list(numbered)
        column: dict[str, dict[str, list[int]]] = {}
        for key, number in zip(keys.tolist(), counts.tolist(), strict=True):
            cell = str((key >> 1 & 4095) - 2048)
            entry = column.setdefault(names[key >> 13], {}).setdefault(cell, [0, 0])
            entry[0] += number
            entry[1] += number * (key & 1)
        found[name] = column
    return found


def _samples(batch: pa.RecordBatch, rows: _Rows, rules: Sequence[Rule], most: int) -> dict[str, list[Entry]]:
    """Those whose ids have the lowest hash, of each reason and of what is kept of each domain (`kept/DOMAIN`)."""
    reads = {rule.reason: [name for name in rule.reads if name not in NO_VALUES] for rule in rules}
    groups: dict[str, list[tuple[str, int]]] = {}
    for row, (id, reason, domain) in enumerate(zip(rows.ids, rows.reasons, rows.domains, strict=True)):
        groups.setdefault(f"{KEPT}/{domain}" if reason == KEPT else reason, []).append((_rank(id), row))
    return {
        group: [
            _entry(batch, row, rank, [*reads.get(group, []), "duplicate_of", "similarity"])
            for rank, row in sorted(ranked)[:most]
        ]
        for group, ranked in groups.items()
    }


def _clusters(batch: pa.RecordBatch, rows: _Rows, wanted: frozenset[str]) -> dict[str, Any]:
    """`sizes`: cluster size -> clusters, of those whose kept document is here. `kept` and `members`: the documents of
    the wanted clusters."""
    sizes: dict[str, int] = {}
    for size, side in zip(rows.values("cluster_size"), rows.sides, strict=True):
        if side == KEPT and size is not None and size > 1:
            sizes[str(size)] = sizes.get(str(size), 0) + 1
    kept: dict[str, Entry] = {}
    members: dict[str, list[Entry]] = {}
    for row, (id, twin) in enumerate(zip(rows.ids, rows.values("duplicate_of"), strict=True)):
        if id in wanted:
            kept[id] = _entry(batch, row, _rank(id), [])
        if twin in wanted:
            members.setdefault(twin, []).append(_entry(batch, row, _rank(id), ["reason", "similarity"]))
    lowest = {twin: sorted(entries, key=_by_rank)[:MEMBERS] for twin, entries in members.items()}
    return {"sizes": sizes, "kept": kept, "members": lowest, "counts": {t: len(m) for t, m in members.items()}}


def _entry(batch: pa.RecordBatch, row: int, rank: str, values: Sequence[str]) -> Entry:
    """One document as the report shows it: where it comes from, how it begins, the columns asked for."""
    text = batch["text"][row].as_py()
    entry: Entry = {name: batch[name][row].as_py() for name in ("id", "source", "origin", "domain")}
    entry |= {"rank": rank, "text": text[:EXCERPT_CHARACTERS], "characters": len(text), "values": {}}
    for name in values:
        value = batch[name][row].as_py() if name in batch.schema.names else None
        if value is not None:
            entry["values"][name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return entry


def _rank(id: str) -> str:
    return hashlib.blake2b(id.encode(), digest_size=8).hexdigest()


def _by_rank(entry: Entry) -> tuple[str, str]:
    return entry["rank"], entry["id"]


def _add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add numbers, and lists of numbers, at every depth of the two objects."""
    for key, value in part.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        elif isinstance(value, list):
            total[key] = [a + b for a, b in zip(total[key], value, strict=True)] if key in total else list(value)
        else:
            total[key] = total.get(key, 0) + value


def _add_lowest(total: dict[str, list[Entry]], part: Mapping[str, list[Entry]], most: int) -> None:
    """Of the documents of both, those of lowest rank."""
    for key, entries in part.items():
        total[key] = sorted([*total.get(key, []), *entries], key=_by_rank)[:most]
