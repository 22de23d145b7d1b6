"""Adafactor (Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"): of a matrix's
squared gradients only the means of rows and columns are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import (
    Portion,
    State,
    StatefulOptimizer,
    by_key,
    decay_and_move,
    in_portions,
    is_sharded,
    local,
    smaller_of,
    stackable,
)

SQUARE_FLOOR = 1e-30  # epsilon_1: added to squared gradients
SMALLEST_SCALE = 1e-3  # epsilon_2: a parameter smaller than this moves as if it were as large
CLIP = 1.0  # d: an update's root mean square at most
DECAY_POWER = 0.8  # beta2 of step t is 1 - t^-0.8
PORTION_ELEMENTS = 2**23


class Adafactor(StatefulOptimizer):
    """The paper's algorithms 4 (matrices) and 5 (vectors), without momentum. `lr` is its relative step size rho: a
    parameter moves by lr times its own root mean square, so rates are some ten times AdamW's. Decoupled decay is by
    lr * weight_decay, as AdamW's is. Its betas and eps are not used: the paper fixes its own.

    State: `step`; `exp_avg_sq_rows` `[..., rows, 1]` and `exp_avg_sq_columns` `[..., 1, columns]`, or `exp_avg_sq` of
    what is no matrix, all float32. Experts in one tensor have rows and columns each, and one clipping together.
    """

    def new_state(self, group: dict[str, Any], parameter: Tensor) -> State:
        weight = local(parameter)
        state = {"step": torch.zeros((), dtype=torch.float32, device=weight.device)}
        if not _factored(parameter):
            return state | {"exp_avg_sq": torch.zeros_like(weight, dtype=torch.float32)}
        rows, columns = (*weight.shape[:-1], 1), (*weight.shape[:-2], 1, weight.shape[-1])
        return state | {
            "exp_avg_sq_rows": torch.zeros(rows, dtype=torch.float32, device=weight.device),
            "exp_avg_sq_columns": torch.zeros(columns, dtype=torch.float32, device=weight.device),
        }

    def full_shape(self, key: str, parameter: Tensor) -> tuple[int, ...]:
        if key == "exp_avg_sq_rows":
            return (*parameter.shape[:-1], 1)
        if key == "exp_avg_sq_columns":
            return (*parameter.shape[:-2], 1, parameter.shape[-1])
        return super().full_shape(key, parameter)

    def portions(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        for alike in by_key(parameters, stackable):
            yield from in_portions(alike, smaller_of(PORTION_ELEMENTS, self.residence.elements))

    def update(self, portion: Portion) -> None:
        group, weights, states = portion.group, portion.weights, portion.states
        model = portion.parameters[0]
        keep = self.keep(weights[0].device)
        gradient = self.unscaled(torch.stack(portion.gradients))
        each = tuple(range(-model.dim(), 0))  # all axes but the one that parameters are stacked along
        steps = [state["step"] for state in states]
        newness = keep * (torch.stack(steps) + 1) ** -DECAY_POWER
        newness = newness.view(-1, *[1] * model.dim())
        update = gradient * self._inverse_root(gradient, states, newness, model)
        update = update / (_mean(update.square(), each, model).sqrt() / CLIP).clamp(min=1.0)
        # A first step that is skipped has divided by zero.
        update = update.masked_fill(keep == 0, 0.0)
        size = _mean(torch.stack(weights).float().square(), each, model).sqrt().clamp(min=SMALLEST_SCALE)
        update = update * (size * group["lr"])
        decay_and_move(weights, list(update.unbind()), group["lr"] * group["weight_decay"], keep)
        torch._foreach_add_(steps, [keep] * len(steps))

    def _inverse_root(self, gradient: Tensor, states: Sequence[State], newness: Tensor, model: Tensor) -> Tensor:
        """1 / sqrt of the averaged squares, after they have taken in this gradient's."""
        square = gradient.square() + SQUARE_FLOOR
        if not _factored(model):
            return _average(states, "exp_avg_sq", square, newness).rsqrt()
        rows = _average(states, "exp_avg_sq_rows", _mean(square, (-1,), model), newness)
        columns = _average(states, "exp_avg_sq_columns", _mean(square, (-2,), model), newness)
        return (rows / _mean(rows, (-2,), model)).rsqrt() * columns.rsqrt()


def _average(states: Sequence[State], key: str, square: Tensor, newness: Tensor) -> Tensor:
    """The states' averages with a share of what is new in them, stacked; they are written back."""
    kept = [state[key] for state in states]
    average = torch.stack(kept).lerp_(square, newness)
    torch._foreach_copy_(kept, list(average.unbind()))
    return average


def _mean(stack: Tensor, axes: tuple[int, ...], model: Tensor) -> Tensor:
    """The mean over axes, counted from the last, of whole parameters of which this process holds the parts stacked
    here. `model` is one of the parameters."""
    total = stack.sum(dim=axes, keepdim=True)
    if is_sharded(model):
        sharded: Any = model
        for axis, placement in enumerate(sharded.placements):
            if placement.is_shard() and placement.dim - model.dim() in axes:
                torch.distributed.all_reduce(total, group=sharded.device_mesh.get_group(axis))
    return total / math.prod(model.shape[axis] for axis in axes)


def _factored(parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1
