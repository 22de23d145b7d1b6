"""The processes that train together: starting and ending their group, and what they say to each other.

Processes on GPUs talk over NCCL, and over gloo about what lies in host memory; processes on CPUs over gloo alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import GristmillError
from .launch import Launch, launched

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

# Longer than anything that one process does while the others wait: a validation, the writing of a checkpoint.
PATIENCE = timedelta(minutes=60)
# What gloo, NCCL and the store say when the other end is gone.
LOST = (
    "closed by peer",
    "reset by peer",
    "connection refused",
    "broken pipe",
    "connection was closed",
    "remote process exited",
)
# What gloo and the store say when it is there, but has not answered for PATIENCE.
SILENT = ("timed out waiting", "wait timeout after")


@dataclass(frozen=True)
class Processes:
    """This process among the `count` that train together. `local_rank` counts on this machine; `device_type` is "cpu"
    or "cuda", where they compute."""

    rank: int
    count: int
    local_rank: int
    device_type: str

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once: events, artifacts, figures."""
        return self.rank == 0

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(()))  # over gloo: a barrier of NCCL would occupy the device

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """`tensor` itself, now holding the sum over the processes; the same bits in each. Alone it stays as it is."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """The main process's `value`, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Every process's `value`, in the order of their ranks, in every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


def alone(device_type: str = "cpu") -> Processes:
    """One process, which is all of them."""
    return Processes(0, 1, 0, device_type)


def current_processes() -> Processes:
    """The processes that were started and have not been stopped, else this one alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return alone("cuda" if torch.cuda.is_available() else "cpu")
    launch = launched()
    local_rank = launch.local_rank if launch else dist.get_rank()
    device_type = "cuda" if "nccl" in str(dist.get_backend_config()) else "cpu"
    return Processes(dist.get_rank(), dist.get_world_size(), local_rank, device_type)


def start_processes(device: str = "auto", store: Store | None = None) -> Processes:
    """Join the processes that torchrun started; `alone()` where it started none.

    `device` is "cpu", "cuda" or "auto", a GPU where there is one. Each process takes the GPU of its local rank.
    `store` is where they meet, by default where torchrun says. Returns when all have come.
    GristmillError where torch cannot connect processes, or where there are fewer GPUs than processes.
    """
    launch = launched()
    device_type = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if launch is None:
        return alone(device_type)
    check_backends(device_type)
    if device_type == "cuda":
        _take_gpu(launch)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    where: dict[str, Any] = {"init_method": "env://"} if store is None else {"store": store}
    dist.init_process_group(backend, rank=launch.rank, world_size=launch.count, timeout=PATIENCE, **where)
    return Processes(launch.rank, launch.count, launch.local_rank, device_type)


def stop_processes() -> None:
    """Wait until all are here, then part. To be called where nothing went wrong: where a process is lost, waiting for
    it would never end, and the process's own end frees everything."""
    if dist.is_available() and dist.is_initialized():
        current_processes().barrier()
        dist.destroy_process_group()


def check_backends(device_type: str) -> None:
    """GristmillError where this build of torch cannot connect processes on such devices."""
    if not dist.is_available():
        raise GristmillError("this build of torch has no torch.distributed: install another, or start one process")
    if not dist.is_gloo_available():
        raise GristmillError("this build of torch lacks gloo, which connects processes: install another")
    if device_type == "cuda" and not dist.is_nccl_available():
        raise GristmillError(
            "this build of torch lacks NCCL, which connects GPUs: install one that has it, or set training.device: cpu"
        )


def lost_another(error: BaseException) -> bool:
    """Whether an error says that the other end of a connection is gone."""
    return _says(error, LOST)


def waited_in_vain(error: BaseException) -> bool:
    """Whether an error says that another process is there, but does not answer."""
    return _says(error, SILENT)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in words)


def _take_gpu(launch: Launch) -> None:
    available = torch.cuda.device_count()
    if launch.local_count > available:
        raise GristmillError(
            f"torchrun started {launch.local_count} processes on this machine, which has {available} GPUs: give "
            f"--nproc-per-node {max(available, 1)}, or set training.device: cpu"
        )
    torch.cuda.set_device(launch.local_rank)
