"""What every optimizer here is: state of each parameter, updated portion by portion, wherever that state lies."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Portion:
    """Parameters of one group that are updated together, and the state of each, which lies in `optimizer.state`."""

    group: dict[str, Any]
    parameters: list[Tensor]
    states: list[State]

    @property
    def weights(self) -> list[Tensor]:
        """What this process holds of the parameters."""
        return [local(parameter) for parameter in self.parameters]

    @property
    def gradients(self) -> list[Tensor]:
        """What this process holds of the gradients."""
        return [local(cast(Tensor, parameter.grad)) for parameter in self.parameters]


class Residence:
    """Where state lies: here, with the weights. `train/optimizers/offload.py` has other places."""

    elements: int | None = None  # of parameters in a portion at most; None: no limit

    def place(self, state: State) -> State:
        """The state in the place where it is kept."""
        return state

    def stream(self, portions: Iterable[Portion]) -> Iterator[Portion]:
        """Each portion with its states on the parameters' device; what is written into them is kept."""
        yield from portions

    def settle(self) -> None:
        """Wait until all that was written can be read where it is kept."""


class StatefulOptimizer(torch.optim.Optimizer):
    """An optimizer that keeps the contract of torch's fused AdamW: `grad_scale`, a scalar on the device, is what
    gradients are divided by, and where `found_inf` is 1 rather than 0 a step changes neither weights nor state. Neither
    is ever read by the host. Both are float32, or None.

    All that a group needs stands in it: `lr`, `weight_decay` and what the method asks for.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], residence: Residence | None = None):
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self.residence = residence or Residence()
        super().__init__(groups, {})

    def new_state(self, group: dict[str, Any], parameter: Tensor) -> State:
        """The state before the first step, of the part of a parameter that this process holds."""
        raise NotImplementedError

    def full_shape(self, key: str, parameter: Tensor) -> tuple[int, ...]:
        """The shape that this entry of the state would have for the whole of a parameter that is sharded; its axes are
        the parameter's, `()` aside."""
        return () if key == "step" else tuple(parameter.shape)

    def portions(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """What of a group is updated in one go; the same in every process that holds a part of them."""
        return in_portions(parameters, self.residence.elements)

    def update(self, portion: Portion) -> None:
        """Change weights and states of a portion, by its gradients."""
        raise NotImplementedError

    def state_of(self, group: dict[str, Any], parameter: Tensor) -> State:
        """A parameter's state, made where there is none yet."""
        if not self.state[parameter]:
            self.state[parameter] = self.residence.place(self.new_state(group, parameter))
        return cast(State, self.state[parameter])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "gradients are made before the step"
        for portion in self.residence.stream(self._portions()):
            self.update(portion)

    def _portions(self) -> Iterator[Portion]:
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            for together in self.portions(group, learning):
                yield Portion(group, together, [self.state_of(group, parameter) for parameter in together])

    def keep(self, device: torch.device) -> Tensor:
        """1 where the step is made, 0 where it is skipped: a float32 scalar on the device."""
        if self.found_inf is None:
            return torch.ones((), device=device)
        return 1 - self.found_inf.to(device).float().reshape(())

    def unscaled(self, gradient: Tensor) -> Tensor:
        """Gradients in float32, divided by `grad_scale`; zeros where the step is skipped, whatever stood there."""
        gradient = gradient.float()
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale.to(gradient.device)
        if self.found_inf is not None:
            gradient = gradient.masked_fill(self.found_inf.to(gradient.device) > 0, 0.0)
        return gradient


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: the shard of a DTensor, anything else as it is."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_sharded(tensor) else tensor


def decay_and_move(weights: list[Tensor], changes: list[Tensor], decay: float, keep: Tensor) -> None:
    """W <- W - keep (change + decay W). `changes` are float32 and used up; `keep` is 1, or 0 where the step is skipped.

    Rounded once: a bfloat16 weight times 1 - 0.001 is the same weight, and decay by itself would do nothing.
    """
    torch._foreach_add_(changes, weights, alpha=decay)
    torch._foreach_mul_(changes, keep)
    torch._foreach_sub_(weights, [change.to(weight.dtype) for change, weight in zip(changes, weights, strict=True)])


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor. Its module is not imported for that: not every build of torch has it."""
    return hasattr(tensor, "to_local")


def in_portions(parameters: Sequence[Tensor], elements: int | None) -> Iterator[list[Tensor]]:
    """Parameters in their order, in portions of at most so many elements (of whole, not of sharded parameters, so that
    all processes cut alike), at least one parameter in each."""
    portion: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if portion and elements is not None and size + parameter.numel() > elements:
            yield portion
            portion, size = [], 0
        portion.append(parameter)
        size += parameter.numel()
    if portion:
        yield portion


def by_key(parameters: Sequence[Tensor], key: Callable[[Tensor], Hashable]) -> list[list[Tensor]]:
    """Parameters sorted into lists of equal key, in order of their first appearance."""
    lists: dict[Hashable, list[Tensor]] = {}
    for parameter in parameters:
        lists.setdefault(key(parameter), []).append(parameter)
    return list(lists.values())


def stackable(parameter: Tensor) -> tuple[Any, ...]:
    """What parameters must share to be stacked, in every process."""
    placements = tuple(parameter.placements) if is_sharded(parameter) else ()  # type: ignore[attr-defined]
    return parameter.shape, parameter.dtype, parameter.device, placements


def smaller_of(*limits: int | None) -> int | None:
    """The smallest of those limits that are given."""
    return min((limit for limit in limits if limit is not None), default=None)
