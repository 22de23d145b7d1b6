"""What this machine really reaches, as `gristmill plan calibrate` measured it, kept in a file of the user's.

One JSON object: who measured what and when, and for the processor and the accelerator a list of ceilings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .. import hardware
from ..errors import GristmillError
from .device import MEASURED, Device, devices
from .step_time import Efficiency, usual_efficiency

VERSION = 1
FILE = "ceilings.json"


@dataclass(frozen=True)
class Ceiling:
    """One measured figure: the median of `repeats` runs, and by how much the middle half of them differs from it
    (a share). `how` says what was timed. `value` None: it could not be measured, and `how` says why."""

    id: str  # such as `memory.copy`, `flops.bf16`
    value: float | None
    unit: str
    spread: float
    repeats: int
    how: str


@dataclass(frozen=True)
class EngineFit:
    """What the engine reached on this machine with some model, fitted to its measured steps (plan/step_fit.py):
    `efficiency` by name, and the median relative error on `samples` steps that the fit had not seen."""

    model: str
    dtype: str
    efficiency: dict[str, float]
    error: float
    samples: int
    date: str


@dataclass(frozen=True)
class Calibration:
    """The ceilings of one kind of device ("cpu", "cuda") of this machine, and what the engine makes of them where that
    was measured. `date`: ISO 8601."""

    kind: str
    name: str
    memory_bytes: float
    date: str
    versions: dict[str, str]
    ceilings: tuple[Ceiling, ...]
    engine: EngineFit | None = None

    def value(self, id: str) -> float | None:
        return next((ceiling.value for ceiling in self.ceilings if ceiling.id == id), None)

    def device(self, id: str) -> Device:
        """As the planner takes it. Where the card is a known one, its datasheet gives what cannot be measured here:
        its price and power, and links to cards and nodes that are not there."""
        peaks = {
            ceiling.id.removeprefix("flops."): ceiling.value
            for ceiling in self.ceilings
            if ceiling.id.startswith("flops.") and ceiling.value is not None
        }
        bandwidth = self.value("memory.read") or self.value("memory.copy")
        if not peaks or bandwidth is None:
            raise GristmillError(
                f"{store()} holds no rate of products or of memory: run gristmill plan calibrate again"
            )
        measured = Device(
            id=id,
            name=self.name,
            memory_bytes=self.memory_bytes,
            memory_bandwidth=bandwidth,
            peak_flops=peaks,
            link_bandwidth=self.value("link.device_to_device"),
            host_link_bandwidth=self.value("link.host_to_device"),
            on_chip_bandwidth=self.value("memory.on_chip"),
            devices_per_node=1 if self.kind == "cpu" else 8,
            label="measured",
        )
        known = hardware.accelerator_named(self.name)
        if known is None:
            return measured
        cited = devices()[known]
        absent = [field.name for field in fields(Device) if getattr(measured, field.name) is None]
        return replace(measured, **{name: getattr(cited, name) for name in absent})


def store() -> Path:
    """Where the ceilings are kept: $XDG_CACHE_HOME or ~/.cache, gristmill/ceilings.json."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gristmill" / FILE


def keep(calibrations: Sequence[Calibration]) -> Path:
    """Write them over those of the same kinds; others stay where they can be read. The file is whole at any time."""
    path = store()
    found: dict[str, Calibration] = {}
    with suppress(GristmillError):
        found = {calibration.kind: calibration for calibration in kept()}
    found |= {calibration.kind: calibration for calibration in calibrations}
    text = json.dumps({"version": VERSION, "devices": [asdict(one) for one in found.values()]}, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}.partial")
        made.write_text(text + "\n", encoding="utf-8")
        made.replace(path)
    except OSError as error:
        raise GristmillError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def kept() -> list[Calibration]:
    """What was measured; nothing where nothing was. GristmillError for a file that is none of ours."""
    path = store()
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if read["version"] != VERSION:
            raise GristmillError(f"{path} is of another version of gristmill: run gristmill plan calibrate again")
        return [_calibration(row) for row in read["devices"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, GristmillError):
            raise
        raise GristmillError(f"{path} is damaged: run gristmill plan calibrate again") from None


def _calibration(row: dict[str, Any]) -> Calibration:
    names = {field.name for field in fields(Calibration)}
    ceilings = tuple(Ceiling(**ceiling) for ceiling in row["ceilings"])
    engine = None if row.get("engine") is None else EngineFit(**row["engine"])
    known = {name: value for name, value in row.items() if name in names}
    return Calibration(**known | {"ceilings": ceilings, "engine": engine})


def measured_device(id: str) -> Device:
    """The device "here" (the accelerator that was measured, else the processor) or "cpu"."""
    return calibration_of(id).device(id)


def calibration_of(id: str) -> Calibration:
    """What was measured of "here" or "cpu". GristmillError where nothing was, or on another processor."""
    found = {calibration.kind: calibration for calibration in kept()}
    if id != "cpu" and "cuda" in found and hardware.may_have_gpu():  # else it was measured on a machine that has one
        return found["cuda"]
    if "cpu" not in found:
        raise GristmillError(
            f"device {id!r}: nothing was measured on this machine yet; run gristmill plan calibrate first"
        )
    if found["cpu"].name != hardware.cpu_name():
        raise GristmillError(
            f"device {id!r}: {store()} was measured on {found['cpu'].name}, and this is {hardware.cpu_name()}; run "
            "gristmill plan calibrate again"
        )
    return found["cpu"]


def known_efficiency(device: Device) -> Efficiency:
    """What the engine reaches of a device's ceilings: as fitted on this machine where that was, else the usual."""
    if device.label != "measured" or device.id not in MEASURED:
        return usual_efficiency(device)
    fitted = calibration_of(device.id).engine
    if fitted is None:
        return usual_efficiency(device)
    names = {field.name for field in fields(Efficiency)}
    if not names <= set(fitted.efficiency):  # of a version that knew less of a step: its figures mean something else
        return usual_efficiency(device)
    return Efficiency(**{name: value for name, value in fitted.efficiency.items() if name in names})
