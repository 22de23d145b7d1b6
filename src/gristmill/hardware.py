"""What this machine has, and what known accelerators have (`hardware.toml`, a source per figure)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def code_version() -> str:
    """The installed version of gristmill."""
    try:
        return importlib.metadata.version("gristmill")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


@cache
def describe() -> dict[str, Any]:
    """Processor, cores, memory in bytes, GPUs, and the versions of Python and torch, as manifests keep them."""
    info: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_bytes": _physical_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    try:
        info["torch"] = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return info
    info["gpus"] = _gpu_names()
    return info


def available_cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A container's limit on memory, what it uses, and which line of its statistics says what of that are pages of files,
# which the system takes back: control groups 2, then 1.
CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def memory_bytes() -> int:
    """Memory of this machine, or of the container where that has less."""
    limits = [int(text) for limit, _, _ in CONTAINERS if (text := _read(limit)).isdigit()]  # "max" is none
    return min([_physical_bytes(), *limits])


def available_memory_bytes() -> int | None:
    """What this machine, and the container, could still give without swapping; None where the system does not tell."""
    found = [line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemAvailable:")]
    if not found:
        return None
    free = [int(found[0]) * 1024]
    for limit, used, files in CONTAINERS:
        most, now = _read(limit), _read(used)
        if most.isdigit() and now.isdigit():
            lines = _read(str(Path(used).with_name("memory.stat"))).splitlines()
            pages = sum(int(line.split()[1]) for line in lines if line.split()[0] == files)
            free.append(max(int(most) - int(now) + pages, 0))
    return min(free)


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: str) -> str:
    """What stands in a file of the system; nothing where it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def may_have_gpu() -> bool:
    """Whether there is a device file of a GPU, or no way to tell without loading torch."""
    devices = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA, AMD, and either under Windows' Linux
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in devices)


def _gpu_names() -> list[str]:
    """As torch names them. Where no device file of a GPU exists torch is not asked: loading it takes a second and
    200 MB, which a stage that computes without it should not spend."""
    if not may_have_gpu():
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


@cache
def known_accelerators() -> dict[str, dict[str, Any]]:
    """`hardware.toml` as a dictionary: accelerator's id -> its figures in SI units, with `sources` of each."""
    found = tomllib.loads((Path(__file__).parent / "hardware.toml").read_text())
    sources = found.pop("sources")
    for figures in found.values():
        figures["sources"] = {name: sources[key] for name, key in figures["sources"].items()}
    return found


@cache
def accelerator_named(driver_name: str) -> str | None:
    """The id of the accelerator that a driver calls so; None for one that is not known."""
    names = {figures["driver_name"]: id for id, figures in known_accelerators().items()}
    return names.get(driver_name)


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX, or Arm's bf16); elsewhere it is emulated."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_name() -> str:
    """The processor, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
