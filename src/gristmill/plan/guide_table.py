"""Tables of quantities to recompute: `guide.csv`, or a file of the same columns, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import GristmillError

REQUIRED = ("quantity", "inputs")
USUAL_TOLERANCE = 0.005


@dataclass(frozen=True)
class Row:
    """A line of a table. `where` names file and line for messages; `error` says why it cannot be computed. `printed` is
    what the documents say, as it is written there; empty strings and None stand for columns without a value."""

    id: str
    where: str
    quantity: str = ""
    inputs: Mapping[str, Any] | None = None
    unit: str = ""
    expected: float | None = None
    rel_tol: float = USUAL_TOLERANCE
    printed: str = ""
    verdict: str = ""
    note: str = ""
    error: str = ""


@cache
def guide_path() -> Path:
    return Path(__file__).parent / "guide.csv"


def read_table(path: Path) -> list[Row]:
    """The rows of a file, one for each line; a line that cannot be read becomes a row with an error. GristmillError
    where the file as a whole is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise GristmillError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} cannot be read: {error}") from None
    found = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    if not found:
        raise GristmillError(f"{path} holds no rows")
    return [_row(path, line, f"row {number}", fields) for number, (line, fields) in enumerate(found, 1)]


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GristmillError(f"{path} is not JSON: {error}") from None
    if isinstance(data, dict):
        data = data.get("rows", data.get("table", [data] if "quantity" in data else None))
    if not isinstance(data, list):
        raise GristmillError(f"{path} must hold a list of rows, objects with {', '.join(REQUIRED)}")
    return [(number, row if isinstance(row, dict) else {"": row}) for number, row in enumerate(data, 1)]


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if lacking := [name for name in REQUIRED if name not in columns]:
            raise GristmillError(
                f"{path} has no column {lacking[0]!r}; its first line must name columns, of which "
                f"{', '.join(REQUIRED)} are needed"
            )
        return [(reader.line_num, dict(fields)) for fields in reader]
    except csv.Error as error:
        raise GristmillError(f"{path} line {reader.line_num}: {error}") from None


def _row(path: Path, line: int, nameless: str, fields: dict[Any, Any]) -> Row:
    place = f"{path.name} {'row' if path.suffix.lower() == '.json' else 'line'} {line}"
    named = _text(fields.get("id"))
    row = Row(named or nameless, f"{place} ({named})" if named else place)
    if "" in fields and len(fields) == 1:
        return replace(row, error=f"is no object: {str(fields[''])[:60]!r}")
    if None in fields:
        return replace(row, error="has more cells than there are columns; a cell with a comma must stand in quotes")
    row = replace(row, quantity=_text(fields.get("quantity")))
    try:
        return replace(
            row,
            inputs=_inputs(fields.get("inputs")),
            unit=_text(fields.get("unit")),
            expected=_number(fields, "expected"),
            rel_tol=_tolerance(fields),
            printed=_printed(fields),
            verdict=_text(fields.get("verdict")),
            note=_text(fields.get("note")),
        )
    except GristmillError as error:
        return replace(row, error=str(error))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _inputs(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise GristmillError(f"column inputs is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GristmillError("column inputs must be a JSON object of names and values")
    return value


def _number(fields: dict[Any, Any], name: str) -> float | None:
    """None for a cell that is not there or empty."""
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number):
        raise GristmillError(f"column {name} must be a finite number, not {value!r}")
    return number


def _tolerance(fields: dict[Any, Any]) -> float:
    value = _number(fields, "rel_tol")
    if value is None:
        return USUAL_TOLERANCE
    if value < 0:
        raise GristmillError(f"column rel_tol must be at least 0, not {value:g}")
    return value


def _printed(fields: dict[Any, Any]) -> str:
    return "" if _number(fields, "guide_says") is None else _text(fields["guide_says"])
