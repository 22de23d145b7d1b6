"""Checkpoints against failures: how large one is, how often to save, and what time failures take.

delta: seconds that a save stops training, M: mean seconds between failures of the whole machine, tau: seconds between
saves. All devices of a run stop when one does, so M is that of one device over their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic
from .parameters import total_params
from .training import optimizer_bytes

# 419 unexpected interruptions in 54 days of 16,384 H100 (Grattafiori et al. 2024, section 3.3.4): hours of one device.
DEVICE_MTBF_HOURS = 16_384 * 54 * 24 / 419
RESTART_SECONDS = 600.0  # to notice, replace and load: our assumption


@dataclass(frozen=True)
class Saving:
    """What a run is to expect of failures. `pause_seconds` stop training at each save, `write_seconds` pass until it
    is on the disk: the same unless saves are asynchronous."""

    pause_seconds: float
    write_seconds: float
    mtbf_seconds: float
    interval_seconds: float
    restart_seconds: float

    @property
    def saving_share(self) -> float:
        """delta / tau."""
        return self.pause_seconds / self.interval_seconds

    @property
    def redone_share(self) -> float:
        """(tau / 2 + what was not yet written + restart) / M: lost at each failure."""
        late = self.write_seconds - self.pause_seconds
        return (self.interval_seconds / 2 + late + self.restart_seconds) / self.mtbf_seconds

    @property
    def lost_share(self) -> float:
        return self.saving_share + self.redone_share


def checkpoint_bytes(config: ModelConfig, arithmetic: Arithmetic, optimizer: str = "adamw") -> float:
    """Weights and the optimizer's state; no gradients. In float32 with AdamW 12 bytes a parameter."""
    return total_params(config) * arithmetic.weight + optimizer_bytes(config, optimizer, arithmetic.weight)


def machine_mtbf_seconds(device_mtbf_hours: float, devices: int) -> float:
    """M = M of one / n."""
    _positive(device_mtbf_hours, "the mean time between failures")
    return device_mtbf_hours * 3600 / devices


def best_interval_seconds(pause_seconds: float, mtbf_seconds: float) -> float:
    """sqrt(2 delta M) (Young 1974)."""
    return math.sqrt(2 * pause_seconds * mtbf_seconds)


def plan_saving(
    size_bytes: float,
    write_bytes_per_s: float,
    mtbf_seconds: float,
    *,
    pause_bytes_per_s: float | None = None,
    restart_seconds: float = RESTART_SECONDS,
) -> Saving:
    """Saves at their best interval. `pause_bytes_per_s` (asynchronous saves) is how fast states are copied aside, while
    training stops; the next save then waits for the last one's writing, tau >= write."""
    _positive(write_bytes_per_s, "the speed of saving")
    write = size_bytes / write_bytes_per_s
    pause = write
    if pause_bytes_per_s is not None:
        _positive(pause_bytes_per_s, "the speed of copying states aside")
        pause = min(size_bytes / pause_bytes_per_s, write)
    interval = max(best_interval_seconds(pause, mtbf_seconds), write)
    return Saving(pause, write, mtbf_seconds, interval, restart_seconds)


def _positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise GristmillError(f"{what} must be above 0 and finite, not {value:g}")
