"""The JSON files of a model directory, which others wrote: whatever is wrong with one is told in a line."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from ..errors import GristmillError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100

CONFIG = "config.json"  # of a model directory


def short(value: Any) -> str:
    """A value for a message, however long and deep it is."""
    return _SHORT.repr(value)


def read_value(path: Path, missing: str) -> Any:
    """The value in a JSON file. GristmillError says `missing` where there is no file, else what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise GristmillError(missing) from None
    except RecursionError:
        raise GristmillError(f"{path} is nested too deep to be read; get the file again") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise GristmillError(f"{path} is not JSON ({error}); get the file again") from None


def read_object(path: Path, missing: str) -> dict[str, Any]:
    """The same for a file that must hold an object."""
    value = read_value(path, missing)
    if not isinstance(value, dict):
        raise GristmillError(f"{path} must hold a JSON object")
    return value
