"""Slices of traffic as people write them: a name, a share, and the discounts that hold for all of it.

A discount is written as what goes, -30%, or as what stays, x0.7; a bare number could mean either and is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import GristmillError
from .cost import Slice


def slice_of(text: str) -> Slice:
    """Of `NAME:SHARE[:SAVING=-50%,...]`, a share as 0.4 or 40%, a saving's name being optional."""
    name, _, rest = text.partition(":")
    share, _, savings = rest.partition(":")
    items = [item.strip().rpartition("=") for item in savings.split(",") if item.strip()]
    return _made(name, share, [(saving, factor) for saving, _, factor in items], f"--slice {text}")


def slices_of_file(path: Path) -> list[Slice]:
    """Of a YAML or JSON file, a list of {name, share, savings: {batch: -50%}}."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GristmillError(f"--slices {path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) and "share" in each for each in found):
        raise GristmillError(f"--slices {path}: expected a list of {{name, share, savings: {{batch: -50%}}}}")
    slices = []
    for number, each in enumerate(found, 1):
        savings = each.get("savings") or {}
        if not isinstance(savings, dict):
            raise GristmillError(f"--slices {path}: savings of slice {number} must be a mapping, batch: -50%")
        name = str(each.get("name", number))
        slices.append(_made(name, str(each["share"]), list(savings.items()), f"--slices {path}, {name}"))
    return slices


def _made(name: str, share: str, savings: list[tuple[Any, Any]], what: str) -> Slice:
    try:
        part = float(share.strip().removesuffix("%")) / (100 if share.strip().endswith("%") else 1)
        factors = tuple(_factor(str(factor).strip()) for _, factor in savings)
    except ValueError:
        raise GristmillError(f"{what}: expected NAME:SHARE[:SAVING=-50%,...], a saving as -50% or x0.5") from None
    return Slice(part, factors, name.strip(), tuple(str(saving) for saving, _ in savings))


def _factor(text: str) -> float:
    """The price factor that -30 % or x0.7 means."""
    if text.startswith("x"):
        return float(text[1:])
    if text.startswith("-") and text.endswith("%"):
        return 1 - float(text[1:-1]) / 100
    raise ValueError(text)
