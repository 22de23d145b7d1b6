"""One optimizer step: forward and backward over the micro-batches, norm, judgement, update.

Nothing here waits for the device: what the step did comes back as scalars on it, which the loop reads in the steps
that it logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import GristmillError
from ..model.experts import mark_padding, router_losses


class MicroBatch(Protocol):
    """What one forward pass takes. `weight` is the sum of the weights of its loss terms, known on the host; `tokens`
    counts its places, padding too."""

    @property
    def weight(self) -> float: ...

    @property
    def tokens(self) -> int: ...


class Batch(Protocol):
    """One process's share of a step's batch."""

    def split(self, size: int | None) -> Sequence[Any]: ...


# (model, micro-batch) -> the sum of its loss terms, a scalar, and sums of further quantities without gradients. The
# step's loss is the total of all micro-batches of all processes over their weight, so dividing a batch changes nothing.
LossFunction = Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]


class Objective(nn.Module):
    """Forward pass and loss in one module call: what is wrapped where several processes train."""

    def __init__(self, model: nn.Module, loss_function: LossFunction):
        super().__init__()
        self.model = model
        self.loss_function = loss_function

    def forward(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the micro-batch's loss terms, router's losses included, and sums to report. `loss` among them is
        that without the z-loss and the router's losses, which stand apart."""
        total, sums = self.loss_function(self.model, batch)
        loss = total.detach()
        sums = {"loss": loss - sums["z_loss"] if "z_loss" in sums else loss, **sums}
        router = router_losses(self.model)
        if router is not None:
            sums["router_loss"] = batch.weight * router.detach()
            total = total + batch.weight * router
        return total, sums


@dataclass(frozen=True)
class StepTools:
    """What a step is made with. `processes` adds up over processes; `autocast` opens a context of lower precision."""

    module: nn.Module  # an Objective, wrapped where several processes train
    optimizer: torch.optim.Optimizer
    gradient_sync: Callable[[bool], AbstractContextManager[Any]]
    gradient_norm: Callable[[], Tensor]
    judge: Callable[[Tensor, Tensor], Tensor]
    autocast: Callable[[], AbstractContextManager[Any]]
    processes: Any
    clip_norm: float | None
    scaler: Any
    device: torch.device


def make_step(
    tools: StepTools, micro_batches: Sequence[MicroBatch], before_update: Callable[[], None] | None = None
) -> dict[str, Tensor]:
    """Train on one batch; its mean loss, its other means, `grad_norm` and `skipped` (1 where no step was made), float64
    scalars on the device, the same in every process. `before_update` is called when activations are gone and weights
    are still those of the step."""
    model = tools.module
    weight = _global_weight(tools, micro_batches)
    scale = tools.scaler.scale
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        try:
            with tools.gradient_sync(number == len(micro_batches)):
                with tools.autocast():
                    total, more = model(batch)
                # Wrappers take the mean over processes, where the sum is wanted.
                share = total * (tools.processes.count / weight)
                (share if scale is None else share * scale).backward()
        finally:
            mark_padding(model, None)  # a mark left behind would change what another batch of this size gives
        for key, value in more.items():
            sums[key] = sums[key] + value.double() if key in sums else value.double()
    means = _means(tools, sums, weight)
    if before_update is not None:
        before_update()
    return means | _update(tools, means["loss"], scale)


def _global_weight(tools: StepTools, micro_batches: Sequence[MicroBatch]) -> float | Tensor:
    """The weight of the whole batch: a number, or a scalar on the device where several processes share it."""
    mine = float(sum(batch.weight for batch in micro_batches))
    if tools.processes.count == 1:
        if mine == 0:
            raise GristmillError("a training batch has no token to learn from: every label is masked")
        return mine
    weight: Tensor = tools.processes.all_reduce(torch.full((), mine, dtype=torch.float64, device=tools.device))
    return weight.float()


def _means(tools: StepTools, sums: Mapping[str, Tensor], weight: float | Tensor) -> dict[str, Tensor]:
    """The sums of all processes over the batch's weight."""
    table = torch.stack(list(sums.values()))
    if tools.processes.count > 1:
        table = tools.processes.all_reduce(table)
    return dict(zip(sums, (table / weight).unbind(), strict=True))


def _update(tools: StepTools, loss: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
    """Clip, judge, step. The optimizer divides gradients by `grad_scale` and does nothing where `found_inf` is 1."""
    norm = tools.gradient_norm().float()
    if scale is not None:
        norm = norm / scale
    skip = tools.judge(loss.float(), norm)
    divisor = torch.ones_like(norm) if scale is None else scale.clone()
    if tools.clip_norm is not None:
        divisor = divisor / (tools.clip_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer: Any = tools.optimizer
    optimizer.grad_scale, optimizer.found_inf = divisor, skip
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tools.scaler.update((~torch.isfinite(norm)).float())
    return {"grad_norm": norm.double(), "skipped": skip.double()}
