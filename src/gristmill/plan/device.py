"""The devices that the planner knows, each with its ceilings: cited from a datasheet, or measured on this machine."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ..errors import GristmillError
from ..hardware import known_accelerators

MEASURED = ("here", "cpu")  # this machine's accelerator, or its processor where it has none; its processor


@dataclass(frozen=True)
class Device:
    """One accelerator (or processor) and its ceilings, in SI units. None: no source states it, or it is not there."""

    id: str  # as in hardware.toml
    name: str
    memory_bytes: float  # what the driver reports, else the datasheet's
    memory_bandwidth: float  # byte/s
    peak_flops: Mapping[str, float] = field(hash=False)  # operations/s by precision, dense
    link_bandwidth: float | None = None  # byte/s from one device to others of its node, one direction
    host_link_bandwidth: float | None = None  # byte/s between host and device, one direction
    network_bandwidth: float | None = None  # byte/s of a device to those of other nodes, one direction
    cache_bytes: float | None = None  # the last cache before memory
    on_chip_bandwidth: float | None = None  # byte/s of the memories inside the multiprocessors
    devices_per_node: int = 8
    usd_per_hour: tuple[float, float] | None = None  # of one device, low and high
    price_date: str | None = None
    price_source: str | None = None
    tdp_watts: float | None = None
    label: Literal["cited", "measured"] = "cited"

    def peak(self, precision: str) -> float:
        """Operations/s of dense products in this precision; GristmillError where no figure is known."""
        if precision not in self.peak_flops:
            raise GristmillError(
                f"no figure is known of what {self.id} does in {precision}; known are {', '.join(self.peak_flops)}"
            )
        return self.peak_flops[precision]


@cache
def devices() -> Mapping[str, Device]:
    """All devices of datasheets by their ids."""
    return {id: _from_datasheet(id, figures) for id, figures in known_accelerators().items()}


def device(id: str) -> Device:
    """The device of this id; "here" and "cpu" are this machine's, as `gristmill plan calibrate` measured them.
    GristmillError names the nearest one where there is none, or says that nothing was measured."""
    if id in MEASURED:
        from .ceilings import measured_device

        return measured_device(id)
    known = devices()
    if id not in known:
        name = id.lower()
        near = [other for other in known if other.startswith(f"{name}-")]
        near = near or difflib.get_close_matches(name, [*known, *MEASURED], n=1, cutoff=0.4)
        meant = f"; did you mean {' or '.join(near)}? Known" if near else "; known"
        raise GristmillError(
            f"device {id!r} is not known{meant} are {', '.join(known)}, and here (this machine, as plan calibrate "
            "measured it)"
        )
    return known[id]


def _from_datasheet(id: str, figures: Mapping[str, Any]) -> Device:
    link = figures.get("nvlink_bandwidth", figures.get("infinity_fabric_bandwidth"))
    price = figures.get("usd_per_hour")
    on_chip = None
    if figures["name"].startswith("NVIDIA") and {"num_units", "clock_hz"} <= set(figures):
        on_chip = figures["num_units"] * SHARED_BYTES_PER_CLOCK * figures["clock_hz"]
    return Device(
        id=id,
        name=figures["name"],
        memory_bytes=figures.get("reported_memory_bytes", figures["memory_bytes"]),
        memory_bandwidth=figures["memory_bandwidth"],
        peak_flops=figures["peak_flops"],
        link_bandwidth=None if link is None else link / 2,
        host_link_bandwidth=figures.get("pcie_bandwidth"),
        network_bandwidth=figures.get("network_bandwidth"),
        cache_bytes=figures.get("cache_bytes"),
        on_chip_bandwidth=on_chip,
        usd_per_hour=None if price is None else (price[0], price[1]),
        price_date=figures.get("price_date"),
        price_source=figures["sources"].get("usd_per_hour"),
        tdp_watts=figures["tdp_watts"],
    )


SHARED_BYTES_PER_CLOCK = 128  # of a multiprocessor's shared memory: 32 banks of 4 bytes (CUDA C++ Programming Guide)
