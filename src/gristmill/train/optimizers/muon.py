"""Muon for matrices, AdamW for everything else (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks"): the momentum of a matrix is orthogonalized before it is added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .adamw import adamw_update, new_adamw_state
from .base import (
    Portion,
    Residence,
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

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at 0, all singular values end in 0.7 to 1.2
PORTION_ELEMENTS = 2**25  # of the matrices that are stacked: enough to fill a GPU, and not a copy of the whole model


class Muon(StatefulOptimizer):
    """B <- momentum B + G; U = sqrt(max(1, rows/columns)) orthogonalized (G + momentum B);
    W <- (1 - lr decay) W - lr U.

    Groups with `matrix_rows` (train/groups.py) hold matrices, or stacks of them, and `momentum` and
    `newton_schulz_steps`; their state is `momentum_buffer`. Other groups are AdamW's.

    A parameter that several matrices were fused into is taken apart by its rows: together their update would have one
    set of singular values, with the largest gradient among them in most of it. Measured on a byte model of 0.4M
    parameters: 1.73 and 1.70 nats after 300 steps (two seeds), 1.99 and 1.96 with `qkv` and `gate_up` left whole, 2.12
    with AdamW.

    Matrices of equal shape are orthogonalized together. Where processes hold shards of them (FSDP2), or all hold the
    same (`process_group`, under DDP), each process orthogonalizes a share, and shards are exchanged before and after.
    """

    def __init__(
        self,
        groups: Any,
        residence: Residence | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__(groups, residence)
        self.process_group = process_group
        self._mesh: Any = None

    def new_state(self, group: dict[str, Any], parameter: Tensor) -> State:
        if "matrix_rows" not in group:
            return new_adamw_state(parameter)
        return {"momentum_buffer": torch.zeros_like(local(parameter))}

    def portions(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        if "matrix_rows" not in group:
            yield from super().portions(group, parameters)
            return
        for alike in by_key(parameters, stackable):
            sharers = self._sharers(alike[0])
            most = max(PORTION_ELEMENTS, sharers * alike[0].numel())  # at least one matrix for each process
            yield from in_portions(alike, smaller_of(most, self.residence.elements))

    def update(self, portion: Portion) -> None:
        group = portion.group
        if "matrix_rows" not in group:
            adamw_update(portion, self.grad_scale, self.found_inf)
            return
        weights, buffers = portion.weights, [state["momentum_buffer"] for state in portion.states]
        keep = self.keep(weights[0].device)
        momentum = group["momentum"]
        gradient = self.unscaled(torch.stack(portion.gradients))
        buffer = torch.stack(buffers).float()
        # Where the step is skipped the gradient is zero and nothing decays.
        buffer = buffer * (1 - keep * (1 - momentum)) + gradient
        torch._foreach_copy_(buffers, list(buffer.unbind()))
        update = self._orthogonalized(gradient.add_(buffer, alpha=momentum), portion)
        changes = list((update * group["lr"]).unbind())
        decay_and_move(weights, changes, group["lr"] * group["weight_decay"], keep)

    def _orthogonalized(self, stack: Tensor, portion: Portion) -> Tensor:
        """A stack of this process's parts of equal parameters, `[n, ..., rows, columns]`, each orthogonalized as a
        whole."""
        rows, steps = portion.group["matrix_rows"], portion.group["newton_schulz_steps"]
        layout = self._layout(portion.parameters[0])
        if layout is None:
            return orthogonalized_parts(stack, rows, steps)
        from torch.distributed.tensor import DTensor, Shard

        mesh, held, shape = layout
        shape = torch.Size((len(stack), *shape))
        stride = torch.empty(shape, device="meta").stride()
        spread = DTensor.from_local(stack, mesh, held, run_check=False, shape=shape, stride=stride)
        shares = [Shard(0) if mesh.size(axis) > 1 else placement for axis, placement in enumerate(held)]
        mine = orthogonalized_parts(spread.redistribute(mesh, shares).to_local(), rows, steps)
        done = DTensor.from_local(mine, mesh, shares, run_check=False, shape=shape, stride=stride)
        return done.redistribute(mesh, held).to_local()

    def _layout(self, parameter: Tensor) -> tuple[Any, list[Any], torch.Size] | None:
        """The mesh over which parameters like this one are shared out, how a stack of them lies there, and the shape of
        one; None where a process orthogonalizes all that it holds, because it alone holds it."""
        if is_sharded(parameter):
            from torch.distributed.tensor import Shard

            sharded: Any = parameter
            if _holds_whole_matrices(sharded):
                return None
            held = [Shard(p.dim + 1) if p.is_shard() else p for p in sharded.placements]
            return sharded.device_mesh, held, parameter.shape
        if self.process_group is None or self.process_group.size() == 1:
            return None
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import Replicate

        if self._mesh is None:
            self._mesh = DeviceMesh.from_group(self.process_group, parameter.device.type)
        return self._mesh, [Replicate()], parameter.shape

    def _sharers(self, parameter: Tensor) -> int:
        layout = self._layout(parameter)
        return 1 if layout is None else layout[0].size()


def orthogonalized_parts(stack: Tensor, rows: Sequence[int], steps: int) -> Tensor:
    """Parameters `[..., sum(rows), columns]` whose matrices, `rows` high, are orthogonalized each by itself and
    multiplied by sqrt(max(1, rows/columns)), the norm that makes an output's change as large as the output (Jordan et
    al. 2024). float32, of the stack's shape."""
    matrices, columns = stack.flatten(0, -3), stack.shape[-1]
    parts = matrices.split(list(rows), dim=-2)
    done: dict[int, Tensor] = {}
    for height in set(rows):
        alike = [number for number, part in enumerate(parts) if part.shape[-2] == height]
        batch = orthogonalize(torch.cat([parts[number] for number in alike]), steps)
        batch = batch.float() * math.sqrt(max(1.0, height / columns))
        done |= dict(zip(alike, batch.split([len(matrices)] * len(alike)), strict=True))
    return torch.cat([done[number] for number in range(len(parts))], dim=-2).view_as(stack)


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """U V^T, roughly, of each of the matrices U S V^T in `[n, rows, columns]`: singular values between 0.7 and 1.2.

    `steps` times X <- a X + (b A + c A^2) X with A = X X^T, from X divided by its Frobenius norm: a quintic
    Newton-Schulz iteration (Jordan et al. 2024). In bfloat16, which is precise enough for it, but on a CPU, where that
    is slower, in float32, unless `dtype` says otherwise.
    """
    if dtype is None:
        dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=precise)
    x = (x / norm.clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _holds_whole_matrices(parameter: Any) -> bool:
    """Whether no matrix of a DTensor is cut, nor held by several processes: experts shared out over all of them."""
    return all(p.is_shard() and p.dim < parameter.dim() - 2 for p in parameter.placements)
