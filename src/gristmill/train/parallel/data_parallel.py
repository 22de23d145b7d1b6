"""Data parallelism: every process trains on its share of the batch, and what they need not all hold is cut up.

| `parallel.data` | cut into shards | how |
|---|---|---|
| ddp | nothing | DistributedDataParallel: gradients are averaged while backward runs |
| zero1 | optimizer state | the same, with torch's ZeroRedundancyOptimizer (`Trainee.zero_group`) |
| zero2 | gradients too | FSDP2; gathered weights stay until backward is through |
| zero3 | weights too | FSDP2; weights are gathered block by block, in forward and again in backward |

(Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"; Zhao et al. 2023,
"PyTorch FSDP".) In all of them the gradient is the mean over the processes, so all take the same steps.

FSDP2 and its tensors are loaded where they are used: one process should not wait for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainingConfig
from .processes import current_processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Trainee:
    """An objective, a module with the model as `.model`, and how it is trained. This one is one process's own.

    `module` is what to call for the loss. For the optimizer: `process_group` are the processes that hold the same
    weights and gradients, None where there are none; `zero_group` those over which it is to cut its state, None where
    it keeps all of it, or where its state is shards because the weights are.
    """

    module: nn.Module
    objective: nn.Module
    process_group: ProcessGroup | None = None
    zero_group: ProcessGroup | None = None

    @property
    def model(self) -> nn.Module:
        """The model itself. Its weights may be shards: outside of training, run it by `run`."""
        model = self.objective.model
        assert isinstance(model, nn.Module)
        return model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the plain model's names; shards are DTensors."""
        return self.model.named_parameters()

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """To be open around forward and backward of a micro-batch; `last` says that it is the step's last one."""
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the gradient of all parameters together, a float32 scalar, the same in every process."""
        return square_sum(gradients(self.objective)).sqrt()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` outside of training, for validation and samples. Where weights are shards every
        process must call it, and run the same number of passes in it."""
        return function(self.model, *arguments)


@dataclass(frozen=True)
class Replicated(Trainee):
    """Whole weights in every process (ddp, zero1)."""

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged in the last micro-batch alone."""
        assert isinstance(self.module, DistributedDataParallel)
        return nullcontext() if last else self.module.no_sync()


def parallelize(
    objective: nn.Module, config: TrainingConfig, mesh: DeviceMesh | None, device: torch.device, precision: str
) -> Trainee:
    """Share `objective`, whose `.model` lies whole and equal on `device` in every process.

    To be called last, after casts, checkpointing and compilation, and before the optimizer is made: with zero2 and
    zero3 the model's parameters are other ones afterwards, shards in the weights' own type, which are gathered in the
    type that `precision` computes in and whose gradients are averaged in float32.
    """
    assert {p.device.type for p in objective.parameters()} <= {device.type}, f"the model is not on {device}"
    if mesh is None:
        return Trainee(objective, objective)
    kind = config.parallel.data
    if kind in ("zero2", "zero3"):
        from .sharded import shard

        return shard(objective, mesh["dp"], precision, reshard=kind == "zero3")
    group = mesh.get_group("dp")
    # No static graph: which parameters have a gradient may change from step to step, with experts it does. Buffers are
    # not sent around: the one there is, the bias of experts, moves in every process by the load of all.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.13, whose word for it 2.11 does not know
        module = DistributedDataParallel(
            objective, process_group=group, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    return Replicated(module, objective, group, group if kind == "zero1" else None)


def gather_model(model: ModelT) -> ModelT | None:
    """Main process: `model` as it would be had it never been cut: itself where it was not, else a copy on the CPU. None
    in the others, so that one process measures and writes what is trained. Every process must call it."""
    processes = current_processes()
    if processes.count == 1:
        return model
    from .sharded import gather

    return gather(model, processes.main)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad for p in module.parameters() if p.grad is not None]
    assert found, "backward has not run"
    return found


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all squares, a float32 scalar."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()
