"""Spikes and numbers that are not finite: seen on the device, skipped without waiting for it, and named.

A step is a spike where its loss or its gradient norm lies more than `sigmas` standard deviations above the mean of the
last `window` steps (the rule of OLMo 2's skip-step optimizer). What to do about a run that keeps spiking is decided on
the host, from counts that are read in the steps that are logged or saved anyway.

Where the plain rule gives false alarms, it is bent, each time as little as will do:

- In the first half window there is no verdict: losses fall fast then, and few values have no deviation to speak of.
- The deviation is taken to be at least `SMALLEST_DEVIATION` of the mean: where losses hardly differ, rounding would
  make spikes.
- A step without any gradient (rewards all equal) says nothing about those that have one, and is left out.
- A spike enters the history as the highest value that would have passed. One does not move the bounds by much, but a
  level that stays (another mixture of domains) is accepted after some steps, where a history without spikes would
  refuse it for ever.
- With loss scaling in fp16, gradients overflow until the scale fits them. That is no trouble, unless it lasts for
  `LONGEST_OVERFLOW` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import StabilityConfig

if TYPE_CHECKING:
    from .parallel.processes import Processes

SMALLEST_DEVIATION = 0.01
LONGEST_OVERFLOW = 32  # halvings of a scale: from 2^16 to 2^-16


@dataclass(frozen=True)
class Counts:
    """What the guard has seen: `spikes`, steps `not_finite` and steps skipped for `overflows` of scaled gradients, all
    since the counts were last read; `in_window`: spikes and steps not finite among the last `window` steps."""

    spikes: int
    not_finite: int
    overflows: int
    in_window: int


class Guard:
    """Judges each step by the ones before, on the device. Every process of a run, given the same losses and norms,
    comes to the same verdicts. `scaled`: gradients are scaled before backward (fp16) and may overflow."""

    def __init__(self, config: StabilityConfig, device: torch.device, scaled: bool = False):
        self._config, self._scaled = config, scaled
        # Of the last steps, a ring: loss, gradient norm (both NaN where they say nothing), 1 where there was trouble.
        self._history = torch.full((config.window, 3), torch.nan, dtype=torch.float64, device=device)
        self._history[:, 2] = 0
        self._steps = torch.zeros(1, dtype=torch.int64, device=device)
        # Since they were last read: spikes, not finite, overflows. Then: steps in a row whose norm alone is not finite.
        self._tally = torch.zeros(4, dtype=torch.int64, device=device)

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 where the step must not be made, else 0: float32 scalar. `loss` and `norm` (unscaled): scalars on the
        device, of the whole batch. Does not wait for the device."""
        values = torch.stack([loss.detach(), norm.detach()]).double()
        finite = values.isfinite()
        good = finite.all()
        allowed = self._bounds()
        spike = good & (values > allowed).any()
        no_gradient = finite[0] & ~finite[1]
        overflow = no_gradient & (self._tally[3] < (LONGEST_OVERFLOW if self._scaled else 0))
        not_finite = ~(good | overflow)
        telling = good & (values[1] > 0)
        row = torch.cat([torch.where(telling, values.minimum(allowed), torch.nan), (spike | not_finite)[None]])
        self._history.index_copy_(0, self._steps % len(self._history), row[None])
        self._steps += 1
        self._tally += torch.stack([spike, not_finite, overflow, no_gradient])
        self._tally[3] *= no_gradient
        return ((spike | ~good) if self._config.skip_spikes else ~good).float()

    def counts(self) -> Counts:
        """Waits for the device. Reading them begins the count anew."""
        spikes, not_finite, overflows, in_window = torch.cat([self._tally[:3], self._in_window()[None]]).tolist()
        self._tally[:3] = 0
        return Counts(spikes, not_finite, overflows, in_window)

    def calm(self) -> bool:
        """Whether the run can be gone back to: spikes would have been seen, and the last `window` steps had none.
        Waits for the device."""
        known = self._history[:, 0].isfinite().sum()
        return bool((known >= self._enough) & (self._in_window() == 0))

    def wants_rollback(self) -> bool:
        """Whether so many of the last steps were spikes or not finite that the weights are to be doubted, and not the
        batches. Waits for the device."""
        limit = self._config.rollback_after
        return limit is not None and int(self._in_window()) >= min(limit, len(self._history))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the guard's own tensors, so filling them restores it."""
        return {"history": self._history, "steps": self._steps, "tally": self._tally}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` of a guard with the same window gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @property
    def _enough(self) -> int:
        return len(self._history) // 2

    def _in_window(self) -> Tensor:
        return self._history[:, 2].sum().long()

    def _bounds(self) -> Tensor:
        """The highest loss and norm, `[2]`, that are no spike; infinity while there are too few to tell."""
        values = self._history[:, :2]
        mean = values.nanmean(dim=0)
        deviation = (values - mean).square().nanmean(dim=0).sqrt()
        bounds = mean + self._config.sigmas * deviation.maximum(SMALLEST_DEVIATION * mean.abs())
        return torch.where(values.isfinite().sum(dim=0) >= self._enough, bounds, torch.inf)


def name_not_finite(objective: Callable[[], Tensor], model: nn.Module, processes: Processes) -> str | None:
    """Which tensor is the first that is not finite: a weight, else a module's output or the loss, else a gradient; None
    where none is, as where the sum of squares overflows, or the gradients of several micro-batches do together.

    `objective` makes a micro-batch's loss again, a scalar, through `model`; forward and backward run uncompiled.
    Gradients are cleared behind it. The answer is a part of a sentence. All `processes` must call this, and get the
    same answer: of what they find that of the earliest kind, with the process's number unless all find it.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    weights = [f"weight {name}" for name, tensor in tensors if not _finite(tensor)]
    outputs: list[str] = []
    slopes: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_look_at_output, outputs=outputs, slopes=slopes, name=name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            loss = objective()
            if not _finite(loss):
                outputs.append("the loss")
            loss.backward()  # whatever was found: the other processes wait for this one's gradients
        gradients = [f"the gradient of {name}" for name, p in model.named_parameters() if not _finite(p.grad)]
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    kinds = (weights, outputs, slopes, gradients)  # the last are sums over the processes already
    for names in zip(*processes.gather_objects([next(iter(kind), None) for kind in kinds]), strict=True):
        for rank, name in enumerate(names):
            if name is not None:
                return name if len(set(names)) == 1 else f"{name} in process {rank}"
    return None


def _look_at_output(
    module: nn.Module, inputs: Any, output: Any, *, outputs: list[str], slopes: list[str], name: str
) -> None:
    """A forward hook: note an output that is not finite, and have its gradient looked at in backward."""

    def look_at_gradient(gradient: Tensor) -> None:
        if not _finite(gradient):
            slopes.append(f"the gradient of the output of {name or 'the model'}")

    for tensor in _tensors(output):
        if not _finite(tensor):
            outputs.append(f"the output of {name or 'the model'}")
        elif tensor.requires_grad:
            tensor.register_hook(look_at_gradient)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _finite(tensor: Tensor | None) -> bool:
    """Of a sharded tensor this process's part is looked at."""
    if tensor is None or not tensor.is_floating_point():
        return True
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(local.isfinite().all())
