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
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
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


def _gpu_names() -> list[str]:
    """As torch names them. Where no device file of a GPU exists torch is not asked: loading it takes a second and
    200 MB, which a stage that computes without it should not spend."""
    devices = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA, AMD, and either under Windows' Linux
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in devices):
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


@cache
def known_accelerators() -> dict[str, dict[str, Any]]:
    """`hardware.toml` as a dictionary: accelerator's name -> its figures in SI units."""
    return tomllib.loads((Path(__file__).parent / "hardware.toml").read_text())


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX, or Arm's bf16); elsewhere it is emulated."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
