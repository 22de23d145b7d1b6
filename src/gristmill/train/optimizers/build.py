"""The optimizer that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import GristmillError
from ..config import TrainingConfig
from ..groups import muon_groups, parameter_groups
from .adafactor import Adafactor
from .adam8bit import Adam8bit
from .adamw import AdamW
from .base import Residence, StatefulOptimizer, local
from .muon import Muon
from .offload import Files, HostMemory


def build_optimizer(
    model: nn.Module,
    config: TrainingConfig,
    mup_base_width: int | None = None,
    process_group: Any = None,
    scratch: Path | None = None,
    zero_group: Any = None,
) -> torch.optim.Optimizer:
    """An optimizer for the parameters of a model, which lie where they will be trained (FSDP2 has cut them already).

    Every group holds `lr_scale`: the loop sets `lr` to the schedule's rate times it. `grad_scale` and `found_inf` are
    honoured as torch's fused AdamW does (`StatefulOptimizer`). `process_group`: processes that hold the same weights
    and gradients (DDP), over which Muon shares out its work. `zero_group`: the same processes, each of which is to keep
    the state of a part of the parameters only (ZeRO stage 1). `scratch`: where memory.offload: disk puts files unless
    `memory.offload_directory` says so.
    """
    if config.optimizer == "muon":
        groups = muon_groups(model, config.muon, config.learning_rate, config.weight_decay, mup_base_width)
    else:
        groups = parameter_groups(model, config.weight_decay, mup_base_width)
    if not groups:
        raise GristmillError("the model has no parameter that learns: every one is frozen")
    for group in groups:
        group["lr"] = config.learning_rate * group["lr_scale"]
        if "matrix_rows" in group:
            group["momentum"] = config.muon.momentum
            group["newton_schulz_steps"] = config.muon.newton_schulz_steps
        elif config.optimizer != "adafactor":
            group["betas"], group["eps"] = (config.beta1, config.beta2), config.eps
    device = local(groups[0]["params"][0]).device
    make = _maker(config, _residence(config, device, scratch), process_group if zero_group is None else None)
    return make(groups) if zero_group is None else _zero_redundancy(make, groups, zero_group)


def _maker(
    config: TrainingConfig, residence: Residence, process_group: Any
) -> Callable[[list[dict[str, Any]]], StatefulOptimizer]:
    """What makes an optimizer from groups alone."""
    if config.optimizer == "muon":
        return partial(Muon, residence=residence, process_group=process_group)
    kinds: dict[str, type[StatefulOptimizer]] = {"adamw": AdamW, "adam8bit": Adam8bit, "adafactor": Adafactor}
    return partial(kinds[config.optimizer], residence=residence)


def _residence(config: TrainingConfig, device: torch.device, scratch: Path | None) -> Residence:
    if config.memory.offload == "none":
        return Residence()
    if config.memory.offload == "cpu":
        return HostMemory(device)
    named = config.memory.offload_directory
    directory = Path(named) if named is not None else scratch
    assert directory is not None, "offload to disk needs a directory"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GristmillError(f"memory.offload_directory: cannot make {directory}: {error.strerror}") from None
    return Files(device, directory)


def _zero_redundancy(
    make: Callable[[list[dict[str, Any]]], StatefulOptimizer], groups: list[dict[str, Any]], group: Any
) -> torch.optim.Optimizer:
    """torch's ZeroRedundancyOptimizer around an optimizer for this process's part of the parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    class ZeroRedundancy(ZeroRedundancyOptimizer):
        """Hands the contract's two scalars on to the optimizer inside."""

        grad_scale: Tensor | None = None
        found_inf: Tensor | None = None

        def step(self, closure: None = None, **kwargs: Any) -> None:  # type: ignore[override]
            self.optim.grad_scale, self.optim.found_inf = self.grad_scale, self.found_inf
            super().step(closure, **kwargs)

    return ZeroRedundancy(groups, optimizer_class=cast(Any, make), process_group=group)
