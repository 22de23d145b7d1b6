"""Documents, removed ones among them, a report of them and an artifact that holds both, for the report's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.artifact import write_json
from gristmill.data.config import CorpusConfig
from gristmill.data.mixture import settle_mixture
from gristmill.data.report import count, make_report, merge
from gristmill.data.step import Rule

EVIL = '<img src="https://evil.example/x" onerror="alert(1)"></pre><script>alert(2)</script>&amp;'
REASONS = ("exact_duplicate", "gopher_quality:min_words", "privacy:email", "contaminated:quiz", "near_duplicate")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text", "source", "domain", "language", "license", "origin")),
        *((name, pa.string()) for name in ("split", "reason", "duplicate_of")),
        *((name, pa.int64()) for name in ("bytes", "words", "cluster_size")),
        *((name, pa.float32()) for name in ("hash_ratio", "similarity")),
        ("pii_email", pa.int32()),
    ]
)
Row = dict[str, Any]


def rule(reason: str, *reads: str) -> Rule:
    return Rule(reason, reads, lambda batch: np.zeros(len(batch), np.bool_))


RULES = [
    rule("gopher_quality:min_words", "words"),
    rule("gopher_quality:max_symbol_ratio", "hash_ratio", "domain"),
    rule("privacy:email", "pii_email"),
]
ORDER = ["exact_duplicate", *(one.reason for one in RULES), "near_duplicate"]


def make_rows(number: int, seed: int = 0) -> list[Row]:
    source = random.Random(seed)
    rows: list[Row] = []
    for i in range(number):
        reason = source.choice(REASONS) if source.random() < 0.5 else None
        text = " ".join(source.choice(["mill", "é", "東京", EVIL]) for _ in range(source.randrange(1, 60)))
        row = {
            "id": f"{i:016x}",
            "text": text,
            "source": source.choice(["kjv", "pages", EVIL]),
            "domain": source.choice(["books", "web", "poems"]),
            "language": source.choice(["en", "fr"]),
            "license": source.choice(["MIT", "", "public domain"]),
            "origin": f"file {i}",
            "split": None if reason else "validation" if i % 7 == 0 else "train",
            "reason": reason,
            "duplicate_of": f"{source.randrange(4):016x}" if reason in ("exact_duplicate", "near_duplicate") else None,
            "bytes": len(text.encode()),
            "words": len(text.split()),
            "cluster_size": 1 if i > 3 else 9,
            "hash_ratio": source.choice([0.0, 0.1, 0.25, 3.5, None]),
            "similarity": 0.8125 if reason == "near_duplicate" else None,
            "pii_email": source.choice([0, 0, 2, None]),
        }
        rows.append(row)
    return rows


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


CLUSTERS = [f"{i:016x}" for i in range(4)]
READ = {"books": (40, 5000), "web": (60, 9000), "poems": (20, 100)}


def report_of(rows: Sequence[Row], **config: Any) -> dict[str, Any]:
    settings_ = CorpusConfig.model_validate(config)
    part = count(batch_of(rows), RULES, read=READ, clusters=CLUSTERS)
    sizes: dict[str, int] = {}
    for row in rows:
        if row["split"] == "train":
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + row["bytes"]
    return make_report(
        merge([part]),
        settings_,
        settle_mixture(sizes, settings_.mixture),
        order=ORDER,
        rules=RULES,
        near_duplicates={"pairs_compared": 10, "removed": 3},
        evaluation_sets={"quiz": {"items": 40, "too_short": 12}},
        problems=[{"source": "local", "origin": "dump.gz", "problem": "truncated gzip"}],
    )


def write_corpus(directory: Path, rows: Sequence[Row]) -> Path:
    """An artifact `corpus` with its report, in small row groups."""
    for name, column, mine in (
        ("documents", "split", [row for row in rows if row["reason"] is None]),
        ("removed", "reason", [row for row in rows if row["reason"] is not None]),
    ):
        (directory / name).mkdir(parents=True)
        table = pa.Table.from_pylist(mine, schema=SCHEMA).select(["id", "text", "domain", column])
        pq.write_table(table, directory / name / "part-00000.parquet", row_group_size=16)
    write_json(directory / "report.json", report_of(rows))
    return directory


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]
