"""Gradients, and weights, in shards: torch's FSDP2 around every block and around what is left."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ...model.decoder import Block
from ...model.undrawn import undrawn
from .data_parallel import Trainee, gradients, square_sum

ModelT = TypeVar("ModelT", bound=nn.Module)
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Sharded(Trainee):
    """Every process holds a shard of each parameter, of its gradient and of its state (zero2, zero3)."""

    mesh: DeviceMesh  # of one axis, that of the shards
    reshard: bool  # zero3

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged in every micro-batch: to wait for the last, each process would have to keep those of
        the whole model, which are what is cut up. Under zero2 gathered weights stay until the last."""
        if not self.reshard:
            assert isinstance(self.module, FSDPModule)
            self.module.set_reshard_after_backward(last)
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        locals_ = [g.to_local() if isinstance(g, DTensor) else g for g in gradients(self.objective)]
        total = square_sum(locals_)
        dist.all_reduce(total, group=self.mesh.get_group())
        return total.sqrt()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        outside: Any = self.objective.run_outside
        try:
            return outside(function, *arguments)
        finally:
            # No backward pass will follow, after which FSDP would do it. Weights that stay gathered would not change
            # with a checkpoint that is loaded.
            for module in self.objective.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


def shard(objective: nn.Module, mesh: DeviceMesh, precision: str, reshard: bool) -> Sharded:
    """Cut every block, and what is left (embedding, last norm, head), into shards along the first dimension.

    `reshard` frees a block's gathered weights after forward, to gather them again in backward.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=COMPUTE_TYPES.get(precision),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does it where it is right; rotary angles stay in float32
    )
    for module in list(objective.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    # What the root holds is used at both ends of the model: freed after forward it would be gathered at once again.
    fully_shard(objective, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    whole: Any = objective
    whole.run_outside = MethodType(_run_outside, objective)
    register_fsdp_forward_method(objective, "run_outside")
    return Sharded(objective, objective, mesh=mesh, reshard=reshard)


@torch.no_grad()
def gather(model: ModelT, main: bool) -> ModelT | None:
    """See `data_parallel.gather_model`."""
    tensors = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return model if main else None
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # one at a time: the device need not have room for all
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if main:
            whole[name] = full.cpu()
    if not main:
        return None
    kind: Any = type(model)
    with undrawn():
        plain: ModelT = kind(model.config)
    plain.load_state_dict(whole, assign=True)
    return plain.train(model.training)


def _run_outside(objective: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(objective.model, *arguments)
