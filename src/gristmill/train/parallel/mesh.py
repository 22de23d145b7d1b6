"""The device mesh: how the processes are laid out along the axes of parallelism.

Axes from the outermost, which talks least and may cross machines, to the innermost, which talks most: `pp` pipeline,
`dp` data, `cp` context, `tp` tensor (experts will share out `dp` and `cp`). All processes stand along `dp` so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ParallelConfig
from .processes import Processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pp", "dp", "cp", "tp")


def build_mesh(processes: Processes, parallel: ParallelConfig) -> DeviceMesh | None:
    """The mesh of all processes, `mesh["dp"]` being those that share the batch; None for one process alone."""
    if processes.count == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device_type, axis_sizes(processes.count, parallel), mesh_dim_names=AXES)


def axis_sizes(count: int, parallel: ParallelConfig) -> tuple[int, int, int, int]:
    """Processes along each of `AXES`; their product is `count`."""
    assert parallel.data  # the one field there is says how `dp` works, not how long it is
    return (1, count, 1, 1)
