"""Optimizer state for checkpoints: made in full before the first step, taken out and put back under names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ...errors import GristmillError
from .base import StatefulOptimizer, is_sharded, local


def init_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of every parameter that this process updates, as it is before the first step."""
    inner = _inner(optimizer)
    for group in inner.param_groups:
        for parameter in group["params"]:
            inner.state_of(group, parameter)


def export_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The state of all parameters of `names` that this process updates, `"<name>/<key>"` to tensor: the tensors
    themselves where they can be, no copies. What belongs to a sharded parameter and is sharded with it is a DTensor of
    the whole's shape, so that the keys and shapes do not depend on how many processes there are."""
    inner = _inner(optimizer)
    inner.residence.settle()
    with torch.no_grad():
        return {
            f"{names[parameter]}/{key}": _whole(inner, parameter, key, value)
            for parameter, state in inner.state.items()
            if parameter in names
            for key, value in state.items()
        }


def import_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `export_state` gave, on the same layout or read by it into that of another."""
    init_state(optimizer)
    inner = _inner(optimizer)
    inner.residence.settle()
    with torch.no_grad():
        for parameter, state in inner.state.items():
            for key, value in state.items():
                name = f"{names[parameter]}/{key}"
                if name not in tensors:
                    raise GristmillError(
                        f"the checkpoint has no {name}: it was written by another optimizer; set training.optimizer "
                        "to that one or start anew"
                    )
                saved = local(tensors[name])
                if saved.shape != value.shape:
                    raise GristmillError(
                        f"the checkpoint's {name} is {list(saved.shape)} here, not {list(value.shape)}: it belongs to "
                        "another model or layout"
                    )
                value.copy_(saved)


def _inner(optimizer: torch.optim.Optimizer) -> StatefulOptimizer:
    """The optimizer inside ZeRO's, or the optimizer itself."""
    return cast(StatefulOptimizer, getattr(optimizer, "optim", optimizer))


def _whole(optimizer: StatefulOptimizer, parameter: Tensor, key: str, value: Tensor) -> Tensor:
    """A state's entry as it is, or as part of the whole's where it was cut with the parameter."""
    if not is_sharded(parameter):
        return value
    sharded: Any = parameter
    shape = torch.Size(optimizer.full_shape(key, parameter))
    with_it = [p.is_shard() and len(shape) > 0 and shape[p.dim] == parameter.shape[p.dim] for p in sharded.placements]
    if not any(with_it):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    placements = [p if cut else Replicate() for p, cut in zip(sharded.placements, with_it, strict=True)]
    stride = torch.empty(shape, device="meta").stride()
    return cast(
        Tensor, DTensor.from_local(value, sharded.device_mesh, placements, run_check=False, shape=shape, stride=stride)
    )
