"""What the processes of a run tell each other while they save and load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from ..parallel.processes import PATIENCE

if TYPE_CHECKING:
    from ..parallel.processes import Processes

T = TypeVar("T")


class Exchange:
    """Small objects between all processes, over a group of its own: a thread may write a checkpoint while training
    uses the default group. gloo, because nothing here is on a GPU. To be made by all processes together."""

    def __init__(self, processes: Processes) -> None:
        self.rank = processes.rank
        self.count = processes.count
        self.main = processes.main
        self._processes = processes
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE) if processes.count > 1 else None

    def all(self, value: T) -> list[T]:
        """Every process's `value`, in the order of their ranks. Called by all processes in the same order."""
        if self._group is None:
            return [value]
        gathered: list[Any] = [None] * self.count
        distributed.all_gather_object(gathered, value, group=self._group)
        return gathered

    def everywhere(self, flag: bool) -> bool:
        """Whether `flag` holds in all processes. Over the default group, so while a thread is at work in this one."""
        return int(self._processes.all_reduce(torch.tensor(int(flag)))) == self.count

    def from_main(self, value: T) -> T:
        """The first process's `value`."""
        return self.all(value)[0]

    def problem(self, problem: str | None) -> str | None:
        """The problem of the first process that has one, the same words in all; None if none has."""
        for rank, found in enumerate(self.all(problem)):
            if found is not None:
                return found if self.count == 1 else f"process {rank}: {found}"
        return None
