"""Reading a corpus (or what was collected for one) back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.errors import GristmillError

from .schema import part_files


def read_documents(
    directory: Path | str, split: str | None = None, domain: str | None = None, columns: list[str] | None = None
) -> pa.Table:
    """The documents of an artifact `corpus` or `collected`, in file order. `split` is "train" or "validation";
    `columns` are those wanted, in the order wanted, None meaning all."""
    filters = [(name, "==", value) for name, value in (("split", split), ("domain", domain)) if value is not None]
    files = part_files(Path(directory) / "documents")
    return pa.concat_tables(pq.read_table(file, columns=columns, filters=filters or None) for file in files)


def domains(directory: Path | str) -> list[str]:
    """The domains of an artifact's documents, sorted."""
    return sorted(set(read_documents(directory, columns=["domain"])["domain"].to_pylist()))


def mixture_weights(directory: Path | str) -> dict[str, float]:
    """Each domain's share in training as stage `corpus` settled it; they sum to 1."""
    path = Path(directory) / "report.json"
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        raise GristmillError(f"{path} is missing or no corpus report; run stage 'corpus' again") from None
    return {str(domain): float(weight) for domain, weight in weights.items()}
