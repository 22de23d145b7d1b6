"""Memory of a training run: what is expected before it starts, whether that fits, and what it really took."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from itertools import product
from typing import Protocol

import torch

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.activations import Arithmetic
from ..plan.memory import Memory as Estimate
from ..plan.memory import TrainingRun, peak_memory
from ..plan.quantity import in_bytes
from .compiled import resolve_compile
from .config import TrainingConfig

RESERVE = 0.05  # of a device's memory: what the allocator cannot hand out because free space lies in pieces
# Where Linux says what a container may have: control groups of version 2, and of version 1.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Log(Protocol):
    """Where lines for people go."""

    def note(self, message: str) -> None: ...


def estimate_memory(
    config: ModelConfig,
    training: TrainingConfig,
    sequence_length: int,
    processes: int,
    precision: str,
    device_kind: str,
) -> Estimate:
    """The most bytes that a process needs on its device at once (plan/memory.py). `precision` is a resolved one;
    `device_kind` is cuda or cpu."""
    arithmetic = Arithmetic(
        precision=precision,
        weights=training.weights,
        device="cuda" if device_kind == "cuda" else "cpu",
        compiled=resolve_compile(training.compile, torch.device(device_kind)) != "off",
    )
    share = max(training.batch_size // processes, 1)
    micro = min(training.micro_batch_size or share, share)
    run = TrainingRun(
        micro_batch_size=micro,
        sequence_length=sequence_length,
        accumulates=micro < share,
        optimizer=training.optimizer,
        checkpointing=training.memory.activation_checkpointing,
        offload=training.memory.offload,
        data=training.parallel.data,
        processes=processes,
    )
    return peak_memory(config, arithmetic, run)


def check_fits(
    config: ModelConfig,
    training: TrainingConfig,
    sequence_length: int,
    processes: int,
    precision: str,
    device: torch.device,
) -> Estimate:
    """The estimate. GristmillError where the device has less memory, naming the first settings that would fit, in the
    order of what they cost: smaller micro-batches, more checkpointing, shards, state in host memory."""
    estimate = estimate_memory(config, training, sequence_length, processes, precision, device.type)
    room = memory_of(device) * (1 - RESERVE)
    if estimate.total <= room:
        return estimate
    needed = f"training needs about {in_bytes(estimate.total)}, but {device} has {in_bytes(memory_of(device))}"
    for changes, changed in smaller_settings(training, processes, device.type):
        if estimate_memory(config, changed, sequence_length, processes, precision, device.type).total <= room:
            raise GristmillError(f"{needed}; it would fit with {' and '.join(changes)}")
    raise GristmillError(
        f"{needed}; no setting makes it fit: take a smaller model or sequence_length, or more processes with "
        "parallel.data: zero3"
    )


def smaller_settings(
    training: TrainingConfig, processes: int, device_kind: str = "cuda"
) -> Iterator[tuple[list[str], TrainingConfig]]:
    """Settings that need less memory, the cheapest first, each with what to write for it: micro-batches of a smaller
    size, then more checkpointing, then more shards, then state in host memory (in files, where the device is the CPU),
    and all sizes under each of them."""
    share = max(training.batch_size // processes, 1)
    micro = min(training.micro_batch_size or share, share)
    memory, data = training.memory, training.parallel.data
    modes = _from(("none", "selective", "block"), memory.activation_checkpointing)
    stages = _from(("ddp", "zero1", "zero2", "zero3"), data) if processes > 1 else (data,)
    places = _from(("none", "disk" if device_kind == "cpu" else "cpu"), memory.offload)
    sizes = [size for size in range(micro, 0, -1) if share % size == 0 or size == micro]
    for place, stage, mode, size in product(places, stages, modes, sizes):
        changes = {
            "micro_batch_size": (micro, size),
            "memory.activation_checkpointing": (memory.activation_checkpointing, mode),
            "parallel.data": (data, stage),
            "memory.offload": (memory.offload, place),
        }
        update = {
            "micro_batch_size": size,
            "memory": memory.model_copy(update={"activation_checkpointing": mode, "offload": place}),
            "parallel": training.parallel.model_copy(update={"data": stage}),
        }
        said = [f"{key}: {new}" for key, (old, new) in changes.items() if new != old]
        if said:
            yield said, training.model_copy(update=update)


def _from(order: tuple[str, ...], now: str) -> tuple[str, ...]:
    """What of an order comes at or behind `now`; `now` alone where it is none of them."""
    return order[order.index(now) :] if now in order else (now,)


def memory_of(device: torch.device) -> int:
    """Bytes that this process may have: of a GPU what others have not taken; of this machine all of it, or a
    container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limits = [int(text) for text in map(_read, CONTAINER_LIMITS) if text.isdigit()]  # "max" is none
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


class PeakMeter:
    """The most memory that was in use since it was made: what tensors took on a GPU; on a CPU how much this process's
    resident set has grown, which sees neither memory that was there before nor a growth below an earlier high mark."""

    def __init__(self, device: torch.device):
        self.device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._before = _resident()

    def peak(self) -> int:
        """Bytes. A GPU is not waited for: its allocator counts on the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(_highest_resident() - self._before, 0)


def say(log: Log, estimate: Estimate) -> None:
    """Write the estimate down, part by part."""
    parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in estimate.parts().items() if size)
    log.note(f"expected memory: {in_bytes(estimate.total)} ({parts})")


def compare(estimate: Estimate, peak: int) -> dict[str, float]:
    """What was expected and what was measured, in bytes, and their ratio."""
    figures: dict[str, float] = {"memory_expected_bytes": estimate.total, "memory_peak_bytes": peak}
    return figures | ({"memory_expected_over_peak": estimate.total / peak} if peak else {})


def _resident() -> int:
    """Bytes of this process in memory now; the high mark where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _highest_resident()


def _highest_resident() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
