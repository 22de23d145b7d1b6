"""AdamW (Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization", algorithm 2) in torch's fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .base import Portion, State, StatefulOptimizer, local


class AdamW(StatefulOptimizer):
    """AdamW. Groups hold `betas` and `eps` beside `lr` and `weight_decay`. State: `step`, `exp_avg`, `exp_avg_sq`, the
    latter two in the weights' type.

    The kernel is torch's; the class is not, because it runs on each process's own part of a sharded weight, without
    DTensor's work for every call, and on state that lies elsewhere.
    """

    def new_state(self, group: dict[str, Any], parameter: Tensor) -> State:
        return new_adamw_state(parameter)

    def update(self, portion: Portion) -> None:
        adamw_update(portion, self.grad_scale, self.found_inf)


def new_adamw_state(parameter: Tensor) -> State:
    """AdamW's state before the first step."""
    weight = local(parameter)
    return {
        "step": torch.zeros((), dtype=torch.float32, device=weight.device),
        "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
    }


def adamw_update(portion: Portion, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """One step of AdamW: a few kernels for all parameters of the portion."""
    group = portion.group
    beta1, beta2 = group["betas"]
    adamw(
        portion.weights,
        portion.gradients,
        _each(portion.states, "exp_avg"),
        _each(portion.states, "exp_avg_sq"),
        [],
        _each(portion.states, "step"),
        fused=True,
        grad_scale=None if grad_scale is None else grad_scale.float(),  # the kernel would misread other types
        found_inf=None if found_inf is None else found_inf.float(),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _each(states: Sequence[State], key: str) -> list[Tensor]:
    return [state[key] for state in states]
