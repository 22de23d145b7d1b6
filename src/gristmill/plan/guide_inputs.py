"""What a row of the guide's table hands to its formula: numbers by name, checked when they are read.

A number that a row lacks is taken from the model or the device that its labels `model` and `hardware` name, where
those are known; whatever was filled in so is told with the answer.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.presets import preset, preset_names
from .device import Device, device, devices

LARGEST = 1e300  # beyond it products overflow
PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8", "fp4", "int4")

BESIDE_NAMES = ("dense", "nvidia", "amd")

# What an input is called in hardware.toml's terms.
OF_DEVICE: dict[str, str] = {
    "peak_flops": "peak_flops",
    "bandwidth_bytes_per_s": "memory_bandwidth",
    "memory_bytes": "memory_bytes",
}


@dataclass(frozen=True)
class Answer:
    """A value, and how it came from the inputs, numbers filled in."""

    value: float
    formula: str


@dataclass(frozen=True)
class Formula:
    """How a quantity is computed: `of` answers from a row's inputs, in `unit`."""

    unit: str
    of: Callable[[Inputs], Answer]


class Inputs:
    """A row's inputs. Every method that reads one raises GristmillError that names it where it is missing or cannot
    be; `filled` says what came from which label, `read` which names were asked for."""

    def __init__(self, given: Mapping[str, Any]):
        self.given = {name: value for name, value in given.items() if value is not None}
        self.filled: dict[str, list[str]] = {}
        self.read: set[str] = {"model", "hardware", "precision"}

    def has(self, *names: str) -> bool:
        """Whether the row itself gives all of these."""
        self.read.update(names)
        return all(name in self.given for name in names)

    def number(self, name: str, default: float | None = None, zero: bool = False) -> float:
        """A finite number above 0, or from 0 on where `zero`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GristmillError(f"input {name!r} must be a number, not {value!r}")
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise GristmillError(f"input {name!r} must be a finite number, not {value}")
        if value < 0 or (value == 0 and not zero):
            raise GristmillError(f"input {name!r} must be {'at least' if zero else 'above'} 0, not {value:g}")
        return value

    def count(self, name: str, default: int | None = None, least: int = 1, most: int = 10**18) -> int:
        """A whole number."""
        value = self.number(name, default, zero=least == 0)
        if value != int(value):
            raise GristmillError(f"input {name!r} must be a whole number, not {value:g}")
        if not least <= value <= most:
            raise GristmillError(f"input {name!r} must be from {least:,} to {most:,}, not {value:,.15g}")
        return int(value)

    def share(self, name: str, default: float | None = None, zero: bool = True) -> float:
        """A fraction, at most 1."""
        value = self.number(name, default, zero)
        if value > 1:
            raise GristmillError(f"input {name!r} is a share and must be at most 1, not {value:g}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise GristmillError(f"input {name!r} must be true or false, not {value!r}")
        return value

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        value = self._get(name, default)
        if value not in known:
            raise GristmillError(f"input {name!r} must be one of {', '.join(known)}, not {value!r}")
        return str(value)

    def numbers(self, name: str, length: int | None = None, zero: bool = False) -> list[float]:
        """A list of numbers, none of them empty."""
        value = self._get(name, None)
        if not isinstance(value, list | tuple) or not value or (length is not None and len(value) != length):
            raise GristmillError(
                f"input {name!r} must be a list of {length or 'at least one'} number(s), not {value!r}"
            )
        return [Inputs({name: one}).number(name, zero=zero) for one in value]

    def raw(self, name: str) -> Any:
        return self._get(name, None)

    def model_label(self) -> tuple[str, ModelConfig] | None:
        """The preset that label `model` names, whatever its hyphens and case."""
        label = self.given.get("model")
        plain = _plain(str(label))
        found = next((name for name in preset_names() if _plain(name) == plain), None)
        return (found, preset(found)) if label is not None and found is not None else None

    def device_label(self) -> Device | None:
        """The device that label `hardware` names, behind whose name a precision may stand (`H200 BF16 dense`): the one
        of this name, or the only one whose name has all of these words (`A100 SXM 80GB`)."""
        label = str(self.given.get("hardware", "")).lower().replace("-", " ")
        words = [word for word in label.split() if word not in (*PRECISIONS, *BESIDE_NAMES)]
        if not words:
            return None
        exact = [id for id in devices() if _plain(id) == _plain("".join(words))]
        found = exact or [id for id in devices() if set(words) <= set(id.split("-"))]
        return device(found[0]) if len(found) == 1 else None

    def fill(self, name: str, value: Any, source: str) -> Any:
        """Notes that an input was taken from elsewhere."""
        told = self.filled.setdefault(source, [])
        if (text := f"{name} {shown(value)}") not in told:
            told.append(text)
        return value

    def refuse(self, name: str, why: str) -> GristmillError:
        return GristmillError(f"input {name!r} {why}")

    def missing(self, name: str) -> GristmillError:
        """Says which input a formula lacks, and which name the row may have meant, or which label is not known."""
        why = f"input {name!r} is missing"
        unread = [other for other in self.given if other not in self.read]
        if near := difflib.get_close_matches(name, unread, n=1, cutoff=0.75):
            return GristmillError(f"{why}; the row gives {near[0]!r}")
        for label, known, of in (
            ("model", preset_names(), self.model_label()),
            ("hardware", tuple(devices()), self.device_label()),
        ):
            given = self.given.get(label)
            applies = name in OF_DEVICE if label == "hardware" else name in OF_MODEL
            if given is not None and of is None and applies:
                near = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]}?" if near else ""
                return GristmillError(f"{why}, and {label} {given!r} is none that is known{hint}")
        return GristmillError(why)

    def _get(self, name: str, default: Any) -> Any:
        self.read.add(name)
        if name in self.given:
            return self.given[name]
        if default is not None:
            return default
        if name in OF_DEVICE and (found := self.device_label()) is not None:
            return self.fill(name, self._of_device(found, name), found.id)
        if name == "params" and (model := self.model_label()) is not None:
            return self.fill(name, model[1].num_parameters, model[0])
        if name in OF_MODEL and (model := self.model_label()) is not None:
            return self.fill(name, getattr(model[1], OF_MODEL[name]), model[0])
        raise self.missing(name)

    def _of_device(self, found: Device, name: str) -> float:
        if name != "peak_flops":
            value: float = getattr(found, OF_DEVICE[name])
            return value
        label = str(self.given.get("hardware")).lower()
        named = [precision for precision in PRECISIONS if re.search(rf"\b{precision}\b", label)]
        precision = self.given.get("precision", named[0] if named else "bf16")
        return found.peak(str(precision).lower())


# What an input is called in ModelConfig's terms, for those that are plain numbers there.
OF_MODEL: dict[str, str] = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "params": "num_parameters",
}


def shown(value: float) -> str:
    """A number in a formula: whole ones up to ten million with commas, large and small ones as powers of ten."""
    if isinstance(value, str | bool) or not isinstance(value, int | float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,.10g}"
    mantissa, exponent = f"{value:.9e}".split("e")
    return f"{float(mantissa):.10g}e{int(exponent)}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
