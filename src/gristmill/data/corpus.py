"""Reading a corpus (or what was collected for one) back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

from .schema import part_files


def read_documents(
    directory: Path | str, split: str | None = None, domain: str | None = None, columns: list[str] | None = None
) -> pa.Table:
    """The documents of an artifact `corpus` or `collected`, in file order. `split` is "train" or "validation";
    `columns` are those wanted, in the order wanted, None meaning all."""
    found = list(document_batches(directory, split, domain, columns))
    schema = pq.read_schema(part_files(Path(directory) / "documents")[0]).remove_metadata()
    return pa.Table.from_batches(found, schema if columns is None else pa.schema(map(schema.field, columns)))


def document_batches(
    directory: Path | str, split: str | None = None, domain: str | None = None, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The same, a row group at a time: in memory is what one holds, some 2 MB of text."""
    wanted = {name: value for name, value in (("split", split), ("domain", domain)) if value is not None}
    for path in part_files(Path(directory) / "documents"):
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names if columns is None else columns
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list({*names, *wanted}), use_threads=False)
                for name, value in wanted.items():
                    table = table.filter(pc.equal(table[name], value))
                yield from table.select(names).replace_schema_metadata().to_batches()


def domains(directory: Path | str) -> list[str]:
    """The domains of an artifact's documents, sorted."""
    batches = document_batches(directory, columns=["domain"])
    return sorted({name for batch in batches for name in batch["domain"].unique().to_pylist()})


def mixture_weights(directory: Path | str) -> dict[str, float]:
    """Each domain's share in training as stage `corpus` settled it; they sum to 1."""
    path = Path(directory) / "report.json"
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        raise GristmillError(f"{path} is missing or no corpus report; run stage 'corpus' again") from None
    return {str(domain): float(weight) for domain, weight in weights.items()}
