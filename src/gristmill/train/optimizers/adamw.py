"""AdamW (Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization", algorithm 2) in torch's fused kernel, and
in our own where a GPU's tensors are large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ...kernels.available import has_triton
from .base import Portion, State, StatefulOptimizer, local

LARGE = 2**22  # numbers; below it torch's kernel for many tensors at a time is as fast
One = tuple[Tensor, Tensor, State]  # what a process holds of a weight, its gradient and its state


class AdamW(StatefulOptimizer):
    """AdamW. Groups hold `betas` and `eps` beside `lr` and `weight_decay`. State: `step`, `exp_avg`, `exp_avg_sq`, the
    latter two in the weights' type.

    The class is not torch's, because it runs on each process's own part of a sharded weight, without DTensor's work for
    every call, and on state that lies elsewhere.
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
    """One step of AdamW: a few kernels for all small parameters of the portion, one for each large one on a GPU."""
    # Both kernels would misread other types.
    scale = None if grad_scale is None else grad_scale.float()
    skip = None if found_inf is None else found_inf.float()
    each = list(zip(portion.weights, portion.gradients, portion.states, strict=True))
    large = [one for one in each if _is_large(*one)]
    if large:
        _update_large(large, portion.group, scale, skip)
    small = [one for one in each if not _is_large(*one)]
    if small:
        _update_small(small, portion.group, scale, skip)


def _is_large(weight: Tensor, gradient: Tensor, state: State) -> bool:
    if weight.numel() < LARGE or not weight.is_cuda or not has_triton():
        return False
    return all(tensor.is_contiguous() for tensor in (weight, gradient, state["exp_avg"], state["exp_avg_sq"]))


def _update_large(each: Sequence[One], group: dict[str, Any], scale: Tensor | None, skip: Tensor | None) -> None:
    from ...kernels.adamw_triton import adamw_kernel

    steps = [state["step"] for _, _, state in each]
    one = torch.ones((), device=steps[0].device)
    scale, skip = one if scale is None else scale, torch.zeros_like(one) if skip is None else skip
    torch._foreach_add_(steps, [one - skip] * len(steps))  # a list: of one tensor it would read the number
    made = torch.stack(steps).double()  # in float32 the bias of an average over 1,000 steps would have four digits
    beta1, beta2 = group["betas"]
    rates = torch.stack([group["lr"] / (1 - beta1**made), (1 - beta2**made).rsqrt()], dim=1).float()
    decay = group["lr"] * group["weight_decay"]
    for (weight, gradient, state), rate in zip(each, rates.unbind(), strict=True):
        averages = state["exp_avg"], state["exp_avg_sq"]
        adamw_kernel(weight, gradient, *averages, rate, scale, skip, group["betas"], decay, group["eps"])


def _update_small(each: Sequence[One], group: dict[str, Any], scale: Tensor | None, skip: Tensor | None) -> None:
    beta1, beta2 = group["betas"]
    states = [state for _, _, state in each]
    adamw(
        [weight for weight, _, _ in each],
        [gradient for _, gradient, _ in each],
        _each(states, "exp_avg"),
        _each(states, "exp_avg_sq"),
        [],
        _each(states, "step"),
        fused=True,
        grad_scale=scale,
        found_inf=skip,
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
