"""Puts what the tasks wrote in order: the artifact's `documents/part-NNNNN.parquet`.

The row groups of all tasks, one task after the other, are dealt out to parts; workers write the parts. Documents whose
name another one has already get a new one here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.errors import GristmillError

from ..pool import Mapper
from ..schema import DOCUMENTS, ROW_GROUP_BYTES, ROW_GROUP_ROWS, document_id, parquet_writer, read_columns
from .tally import Tally
from .worker import IDS, Group, read_groups, strings

PART_BYTES = 64 << 20  # of text; small enough that several workers have something to write
IDS_AT_A_TIME = 8_000_000  # 16 bytes each
MOST_REPEATED = 100_000


def assemble(tasks: list[Path], directory: Path, scratch: Path, mapper: Mapper, tally: Tally) -> Iterator[int]:
    """Write what the tasks left in their directories as parts, and put these in place as `directory`; yields how many
    documents each part brought."""
    groups = [group for task in tasks for group in read_groups(task)]
    repeated = _rename(tasks, groups, _repeated_ids(tasks), tally)
    parts: list[list[int]] = [[]]
    size = 0
    for number, group in enumerate(groups):
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(number)
        size += group.bytes
    scratch.mkdir(exist_ok=True)
    todo = [
        {
            "out": str(scratch.absolute() / f"part-{number:05d}.parquet"),
            "groups": [[str(groups[i].file), groups[i].bytes, repeated.get(i, [])] for i in part],
        }
        for number, part in enumerate(parts)
    ]
    for result in mapper("gristmill.data.collect.assemble:write_part", todo):
        yield result["rows"]
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(scratch, directory)


def write_part(task: dict[str, Any]) -> dict[str, Any]:
    """Write one part: `groups` lists row groups, their bytes, and the rows that get another id and origin."""
    out = Path(task["out"])
    if out.exists():  # finished by a run that was cut
        return {"rows": pq.read_metadata(out).num_rows}
    temporary = out.parent.parent / f".{out.name}.{os.getpid()}.writing"  # `out.parent` becomes `documents/`
    rows = 0
    waiting: list[pa.Table] = []
    waiting_bytes = 0
    with parquet_writer(temporary, DOCUMENTS) as writer:
        for place, (file, size, renamed) in enumerate(task["groups"], 1):
            table = _with_names(read_columns(file, DOCUMENTS.names), renamed)
            rows += table.num_rows
            waiting.append(table)
            waiting_bytes += size
            full = waiting_bytes >= ROW_GROUP_BYTES or sum(t.num_rows for t in waiting) >= ROW_GROUP_ROWS
            if full or place == len(task["groups"]):  # tasks end with row groups that are not full: they are joined
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=1 << 20)
                waiting, waiting_bytes = [], 0
    os.replace(temporary, out)
    return {"rows": rows}


def _with_names(table: pa.Table, renamed: list[tuple[int, str, str]]) -> pa.Table:
    """The table with the new (row, id, origin) of some rows."""
    for place, name in enumerate(("id", "origin") if renamed else (), 1):
        values = table[name].to_pylist()
        for entry in renamed:
            values[entry[0]] = entry[place]
        column = strings([value.encode() for value in values])
        table = table.set_column(DOCUMENTS.get_field_index(name), DOCUMENTS.field(name), column)
    return table


def _ids(task: Path) -> NDArray[np.uint64]:
    """The ids of a task's documents as numbers."""
    file = task / IDS
    return np.memmap(file, ">u8", "r") if file.exists() else np.zeros(0, ">u8")


def _repeated_ids(tasks: list[Path]) -> list[tuple[int, int]]:
    """(number among all documents, how many before it have the same id) of those whose id is not theirs alone.

    The ids are looked at range by range, so the memory that this takes does not grow with the documents."""
    total = sum(len(_ids(task)) for task in tasks)
    ranges = -(-total // IDS_AT_A_TIME)
    width = (1 << 64) // max(1, ranges) + 1
    found: list[tuple[int, int]] = []
    for number in range(ranges):
        ids, rows = _ids_within(tasks, number * width, min((number + 1) * width, 1 << 64) - 1)
        order = np.argsort(ids, kind="stable")
        ids, rows = ids[order], rows[order]
        same = np.flatnonzero(ids[1:] == ids[:-1]) + 1
        if len(found) + len(same) > MOST_REPEATED:
            raise GristmillError(
                f"more than {MOST_REPEATED:,} documents have the name (source and origin) of another one; is the field "
                "that is named as id_field no id?"
            )
        found += [(int(rows[place]), int(place - np.searchsorted(ids, ids[place]))) for place in same]
    return sorted(found)


def _ids_within(tasks: list[Path], low: int, high: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The ids from `low` to `high`, and their documents' numbers among all."""
    ids, rows = [], []
    start = 0
    for task in tasks:
        here = _ids(task)
        chosen = np.flatnonzero((here >= np.uint64(low)) & (here <= np.uint64(high)))
        ids.append(here[chosen].astype(np.uint64))
        rows.append(chosen + start)
        start += len(here)
    return np.concatenate(ids), np.concatenate(rows)


def _rename(
    tasks: list[Path], groups: list[Group], repeated: list[tuple[int, int]], tally: Tally
) -> dict[int, list[tuple[int, str, str]]]:
    """Row group -> (row, new id, new origin) of the documents whose name is taken: the origin gets `@2`, `@3`, ..."""
    starts = np.cumsum([0, *(group.rows for group in groups)])
    renamed: dict[int, list[tuple[int, str, str]]] = {}
    new: list[int] = []
    for number, documents in groupby(repeated, key=lambda found: int(np.searchsorted(starts, found[0], "right")) - 1):
        table = read_columns(groups[number].file, ["source", "origin"])
        for document, before in documents:
            row = document - int(starts[number])
            source, name = table["source"][row].as_py(), table["origin"][row].as_py()
            origin = f"{name}@{before + 1}"
            tally.problem("repeated_name", name)
            renamed.setdefault(number, []).append((row, document_id(source, origin), origin))
            new.append(int(renamed[number][-1][1], 16))
    if new:
        taken = np.array(new, np.uint64)
        if len(np.unique(taken)) < len(new) or any(np.isin(_ids(task), taken).any() for task in tasks):
            raise GristmillError("documents are called NAME and others NAME@2, NAME@3: give them names of their own")
    return renamed
