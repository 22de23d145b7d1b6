"""A step of the mill: a pure function from one batch of documents to another, with its columns declared.

A step adds columns (scores, flags, counts) or rewrites the text; it never takes a document out. What is taken out is
decided afterwards by rules, which look at columns only: so a threshold can change without a new pass over the texts,
and every removal has the name of the rule that asked for it.

Both are the same whether one process runs them, many, or a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """`apply` takes a batch that has the columns `reads` and returns it with the columns `writes` added or replaced.

    It keeps every other column, the order of the rows, and their number, but for a step that cuts long documents."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[pa.Field, ...]
    apply: Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class Rule:
    """`broken` says of each row whether it breaks the rule; `reason` (`family:field`) is what stands beside a removed
    document. A rule looks at the columns `reads` of all rows that it is asked about."""

    reason: str
    reads: tuple[str, ...]
    broken: Callable[[pa.RecordBatch], Mask]


def set_columns(batch: pa.RecordBatch, columns: dict[str, pa.Array], fields: Sequence[pa.Field]) -> pa.RecordBatch:
    """The batch with columns added, or replaced where it has one of that name; `fields` gives their types."""
    for field in fields:
        values = columns[field.name].cast(field.type)
        place = batch.schema.get_field_index(field.name)
        batch = batch.append_column(field, values) if place < 0 else batch.set_column(place, field, values)
    return batch


def check_chain(steps: Iterable[Step], schema: pa.Schema) -> pa.Schema:
    """The schema that the steps make of `schema`; ValueError names a step that reads a column nobody has written."""
    for step in steps:
        missing = [name for name in step.reads if name not in schema.names]
        if missing:
            raise ValueError(f"step {step.name!r} reads {', '.join(missing)}, which no earlier step writes")
        for field in step.writes:
            place = schema.get_field_index(field.name)
            schema = schema.append(field) if place < 0 else schema.set(place, field)
    return schema


def first_broken(batch: pa.RecordBatch, rules: Sequence[Rule]) -> NDArray[np.int64]:
    """int64 `[rows]`: the place of the first rule that each row breaks, or -1 where all hold."""
    found = np.full(batch.num_rows, -1)
    for place, rule in enumerate(rules):
        found[(found < 0) & rule.broken(batch)] = place
    return found
