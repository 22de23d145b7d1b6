"""Memory of a training run: what is expected before it starts, whether that fits, and what it really took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch

from .. import hardware
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.activations import Arithmetic
from ..plan.memory import SPARE, TrainingRun, peak_memory
from ..plan.memory import Memory as Estimate
from ..plan.quantity import in_bytes
from .compiled import resolve_compile
from .config import TrainingConfig


@dataclass(frozen=True)
class Rows:
    """What of a step's batch goes through the model together: `items` over all processes, the unit that micro-batches
    count, each of `rows_per_item` rows (a pair has two) of at most `length` tokens."""

    items: int
    length: int
    rows_per_item: int = 1


class Log(Protocol):
    """Where lines for people go."""

    def note(self, message: str) -> None: ...


def estimate_memory(
    config: ModelConfig,
    training: TrainingConfig,
    batch: Sequence[Rows],
    processes: int,
    precision: str,
    device_kind: str,
) -> Estimate:
    """The most bytes that a process needs on its device at once (plan/memory.py): a bound where rows are shorter than
    said, or have places that are not learned from. `batch` are all rows of a step, those of one length together.
    `precision` is a resolved one; `device_kind` is cuda or cpu."""
    arithmetic = Arithmetic(
        precision=precision,
        weights=training.weights,
        device="cuda" if device_kind == "cuda" else "cpu",
        compiled=resolve_compile(training.compile, torch.device(device_kind)) != "off",
    )
    runs = []
    for rows in batch:
        share = max(rows.items // processes, 1)
        micro = min(training.micro_batch_size or share, share)
        run = TrainingRun(
            micro_batch_size=micro * rows.rows_per_item,
            sequence_length=rows.length,
            accumulates=micro < share or len(batch) > 1,
            optimizer=training.optimizer,
            checkpointing=training.memory.activation_checkpointing,
            offload=training.memory.offload,
            data=training.parallel.data,
            processes=processes,
        )
        runs.append(peak_memory(config, arithmetic, run))
    return max(runs, key=lambda memory: memory.total)


def check_fits(
    config: ModelConfig,
    training: TrainingConfig,
    batch: Sequence[Rows],
    processes: int,
    precision: str,
    device: torch.device,
) -> Estimate:
    """The estimate. GristmillError where the device has less memory, naming the first settings that would fit, in the
    order of what they cost: smaller micro-batches, more checkpointing, shards, state in host memory."""
    estimate = estimate_memory(config, training, batch, processes, precision, device.type)
    room = memory_of(device) * (1 - SPARE)
    if estimate.total <= room:
        return estimate
    needed = f"training needs about {in_bytes(estimate.total)}, but {device} has {in_bytes(memory_of(device))}"
    for changes, changed in smaller_settings(training, processes, device.type):
        if estimate_memory(config, changed, batch, processes, precision, device.type).total <= room:
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
    return hardware.memory_bytes()


class PeakMeter:
    """The most memory that tensors took on a GPU since it was made. On a CPU there is none to read: how a process grows
    says nothing of its tensors, as it had memory before and gives some back to itself."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def peak(self) -> int | None:
        """Bytes; None on a CPU. A GPU is not waited for: its allocator counts on the host."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


def say(log: Log, estimate: Estimate) -> None:
    """Write the estimate down, part by part."""
    parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in estimate.parts().items() if size)
    log.note(f"expected memory: {in_bytes(estimate.total)} ({parts})")


def compare(estimate: Estimate, peak: int | None) -> dict[str, float]:
    """What was expected and, where it was measured, what was, in bytes, and their ratio."""
    figures: dict[str, float] = {"memory_expected_bytes": estimate.total}
    if peak is not None:
        figures |= {"memory_peak_bytes": peak, "memory_expected_over_peak": estimate.total / peak}
    return figures
