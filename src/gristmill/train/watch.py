"""What is written down while training: the loop's values, its pace, norms of weights and updates, sampled texts.

Names of the values, which the page, the loggers and training.json share (a slash parts a value by domain or by part of
the model):
    loss, validation_bits_per_byte, validation_bits_per_byte/DOMAIN, z_loss, router_loss
    benchmark/NAME, benchmark_stderr/NAME, benchmark_perplexity/NAME
    grad_norm, learning_rate, skipped                the last: steps since the entry before that were not made
    expert_load_max_over_mean, collapsed_experts, dropped_assignments
    weight_norm/PART, update_norm/PART               of all parameters of a part (PARTS) together
    tokens_per_second, mfu, stall, memory_bytes      the pace: never in an artifact, since it holds a clock
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..events import StageLog
from .config import WatchConfig
from .loggers import Logger
from .throughput import mfu, peak_flops

# A parameter belongs to the first part with this ending in its name, and without any to the head.
ENDINGS = (
    ("norms", "norm"),
    ("router", "router"),
    ("attention", "attention"),
    ("feed_forward", "feed_forward"),
    ("positions", "position_embedding"),
    ("embedding", "embedding"),
)
PARTS = (*(part for part, _ in ENDINGS), "head")


class Group(Protocol):
    """What `Watch` needs of the processes that train together (train/parallel)."""

    @property
    def count(self) -> int: ...

    @property
    def main(self) -> bool: ...

    def all_reduce(self, tensor: Tensor) -> Tensor: ...


class Watch:
    """Writes the entries of one training run. `step` is called after every step, `entry` in logged ones.

    `flops_per_token` (train/throughput.py) gives MFU where the device's peak is known; None leaves it out. Without
    `processes` this one trains alone. Only the main process writes; each calls everything, since norms of sharded
    weights and samples need them all.
    """

    def __init__(
        self,
        config: WatchConfig,
        log: StageLog,
        flops_per_token: float | None,
        device: torch.device,
        precision: str,
        processes: Group | None = None,
        loggers: Sequence[Logger] = (),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.config = config
        self._log, self._loggers, self._clock = log, loggers, clock
        self._device, self._processes = device, processes
        self._count = processes.count if processes else 1
        self._main = processes is None or processes.main
        self._flops = flops_per_token
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._peak = peak_flops(name, precision)
        self._tokens = 0
        self._warm = False  # the first entry holds compilation and the first touch of memory: no pace
        self._since = clock()
        self._apart = 0.0

    def step(self, tokens: int) -> None:
        """One step is done; `tokens` are this process's input positions in it."""
        self._tokens += tokens

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside (evaluation, samples, saving, going back) counts for no pace. On a GPU enter it after the
        step's values were read, or some of the step's own time is lost to it."""
        started = self._clock()
        try:
            yield
        finally:
            self._apart += self._clock() - started

    def entry(self, step: int, values: Mapping[str, float], stall_seconds: float = 0.0) -> dict[str, Any]:
        """Write the entry of a step whose values have been read from the device, so that its clock is true.

        `stall_seconds` is how long the loop waited for batches since the last entry. Returns what may stand in an
        artifact: step and values without the pace. Numbers have seven digits, so that the last bits of a sum do not
        decide an artifact's hash; what is not finite is None, since JSON has no word for it.
        """
        kept: dict[str, Any] = {"step": step} | {name: _written(value) for name, value in values.items()}
        pace: dict[str, Any] = {name: _written(value) for name, value in self._pace(stall_seconds).items()}
        if self._main:
            self._log.metric(**kept, **pace)
            numbers = {key: value for key, value in {**kept, **pace}.items() if key != "step" and value is not None}
            for logger in self._loggers:
                logger.log(step, numbers)
        return kept

    def _pace(self, stall_seconds: float) -> dict[str, float]:
        now = self._clock()
        seconds = now - self._since - self._apart
        tokens, warm = self._tokens * self._count, self._warm
        self._since, self._apart, self._tokens, self._warm = now, 0.0, 0, True
        if not warm or seconds <= 0 or not tokens:
            return {}
        pace = {"tokens_per_second": tokens / seconds, "stall": min(stall_seconds / seconds, 1.0)}
        if self._flops is not None and self._peak is not None:
            pace["mfu"] = mfu(tokens / seconds, self._flops, self._peak, self._count)
        if self._device.type == "cuda":
            pace["memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return pace

    def wants_norms(self, step: int) -> bool:
        """Whether norms of weights and updates are due at this step: take `weights(model)` before it."""
        return self.config.norms_every > 0 and step % self.config.norms_every == 0

    def wants_sample(self, step: int) -> bool:
        return self.config.sample_every > 0 and step % self.config.sample_every == 0

    def norms(self, model: nn.Module, before: Sequence[Tensor]) -> dict[str, float]:
        """Norms of the weights and of what the step added to them, by part; waits for the device once."""
        return norms_by_part(model, before, self._processes)

    def samples(self, step: int, texts: Iterable[tuple[str, str]]) -> None:
        """Write down prompts with what the model made of them (train/samples.py)."""
        for prompt, text in texts:  # every process goes through them: making them takes all
            if not self._main:
                continue
            self._log.sample(prompt, text, step=step)
            for logger in self._loggers:
                logger.text(step, f"sample/{prompt}", text)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to, by its name."""
    words = name.split(".")
    for part, ending in ENDINGS:
        if any(word.endswith(ending) for word in words):
            return part
    return "head"


def _written(value: float | None) -> float | None:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


@torch.no_grad()
def weights(model: nn.Module) -> list[Tensor]:
    """A copy of this process's part of every parameter, to measure a step's update by."""
    return [_local(parameter).clone() for parameter in model.parameters()]


@torch.no_grad()
def norms_by_part(model: nn.Module, before: Sequence[Tensor], processes: Group | None = None) -> dict[str, float]:
    """`weight_norm/PART` and `update_norm/PART`: the 2-norm of all parameters of a part, and of their difference from
    `before` (`weights`). Shards are added up over the processes; whole copies in each process count once."""
    squares: dict[tuple[str, str, bool], list[Tensor]] = {}
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        new, sharded = _local(parameter), isinstance(parameter, DTensor)
        for kind, tensor in (("weight_norm", new), ("update_norm", new - old)):
            square = torch.linalg.vector_norm(tensor, dtype=torch.float32).double().square() / _copies(parameter)
            squares.setdefault((kind, part_of(name), sharded), []).append(square)
    sums = torch.stack([torch.stack(found).sum() for found in squares.values()])
    is_sharded = torch.tensor([sharded for _, _, sharded in squares], device=sums.device)
    if processes is not None and processes.count > 1:
        shared = processes.all_reduce(torch.where(is_sharded, sums, 0.0))
        sums = torch.where(is_sharded, shared, sums)
    totals: dict[str, float] = {}
    for (kind, part, _), value in zip(squares, sums.tolist(), strict=True):
        totals[f"{kind}/{part}"] = totals.get(f"{kind}/{part}", 0.0) + value
    return {name: math.sqrt(total) for name, total in totals.items()}


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


def _copies(parameter: Tensor) -> int:
    """In how many processes of its mesh the same shard lies."""
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    return math.prod(mesh.size(axis) for axis, placement in enumerate(parameter.placements) if placement.is_replicate())
