"""The second phase, first part: what the columns of a document alone say of it, for every part of the corpus.

A task is one part: the annotated files of a fixed run of row groups. It reads columns, never texts, and leaves one
record a document (`RECORD`) for the decisions that need all of them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..config import CorpusConfig
from ..mixture import key_hashes
from ..pool import Result, Task
from ..schema import read_columns, work_of
from ..step import Rule, first_broken
from .chain import build_rules
from .work import Annotated, Place, Work

NO_REASON = -1
RECORD = np.dtype(
    [
        ("id", "S16"),
        ("domain", np.int32),  # place in the part's own list of domains
        ("bytes", np.int64),
        ("reason", np.int16),  # place in `reasons_of`, or NO_REASON
        ("work", np.uint64),  # hash of source and work
        ("document", np.uint64),  # hash of the id
    ]
)
_COLUMNS = ("id", "domain", "source", "origin", "bytes")


def judge_all(work: Work, annotated: Annotated, cuts: str) -> tuple[NDArray[Any], list[str]]:
    """The records of all documents, and the sorted domains that their `domain` counts."""
    parts = annotated.parts
    outputs = [work.path("judged", f"{part.number:05d}.npy") for part in parts]
    numbers = [part.number for part in parts]
    results = work.each(
        "judge:judge", numbers, lambda n: work.task(files=annotated.paths(parts[n]), cuts=cuts, out=outputs[n])
    )
    found = {number: result["domains"] for number, result in results}
    domains = sorted({name for names in found.values() for name in names})
    records = np.empty(len(annotated.files), RECORD)
    for part in annotated.parts:
        here = np.load(outputs[part.number])
        place_of = np.array([domains.index(name) for name in found[part.number]], np.int32)
        here["domain"] = place_of[here["domain"]]
        records[annotated.rows(part)] = here
    return records, domains


def judge(task: Task) -> Result:
    """Judge one part. The task gives `files`, `out`, `config`, `cuts` and its place; what comes back has the part's
    `domains`."""
    rules = rules_of(task["config"], task["cuts"])
    wanted = sorted({*_COLUMNS, *(name for rule in rules for name in rule.reads)})
    records = [np.empty(0, RECORD)]
    domains: dict[str, int] = {}
    for file in task["files"]:
        for batch in read_columns(file, wanted).to_batches():
            records.append(_records(batch, rules, domains))
    with Place.of(task).writing(Path(task["out"])) as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate(records))
    return {"domains": list(domains)}


def reasons_of(rules: tuple[Rule, ...]) -> list[str]:
    """The reasons that rules can give, in the rules' order, each once."""
    return list(dict.fromkeys(rule.reason for rule in rules))


@lru_cache(maxsize=1)
def rules_of(config: str, cuts: str) -> tuple[Rule, ...]:
    """The rules of a configuration, given as JSON; `cuts` are the perplexities between head, middle and tail."""
    return tuple(build_rules(CorpusConfig.model_validate_json(config), cuts))


def ids_of(column: pa.Array) -> NDArray[np.bytes_]:
    """Ids of 16 characters as numpy's fixed-size bytes."""
    fixed = pc.cast(column.cast(pa.binary()), pa.binary(16))
    return np.frombuffer(fixed.buffers()[1], "S16", len(fixed), fixed.offset * 16)


def _records(batch: pa.RecordBatch, rules: tuple[Rule, ...], domains: dict[str, int]) -> NDArray[Any]:
    records = np.empty(batch.num_rows, RECORD)
    records["id"] = ids_of(batch["id"])
    encoded = batch["domain"].dictionary_encode()
    places = [domains.setdefault(name, len(domains)) for name in encoded.dictionary.to_pylist()]
    records["domain"] = np.array(places, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
    records["bytes"] = batch["bytes"].to_numpy(zero_copy_only=False)
    codes = {reason: code for code, reason in enumerate(reasons_of(rules))}
    code_of = np.array([*(codes[rule.reason] for rule in rules), NO_REASON], np.int16)
    records["reason"] = code_of[first_broken(batch, rules)]
    origins = zip(batch["source"].to_pylist(), batch["origin"].to_pylist(), strict=True)
    records["work"] = key_hashes(f"{source}\0{work_of(origin)}" for source, origin in origins)
    records["document"] = key_hashes(batch["id"].to_pylist())
    return records
