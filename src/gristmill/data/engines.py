"""Where the tasks of the data stages run: in processes of this machine (`pool.py`) or on Ray (`ray_engine.py`).

Both run the same functions on the same tasks and give the results in the tasks' order, so what a stage writes does not
depend on the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gristmill import hardware
from gristmill.artifact import Engine

from .pool import Mapper, Pool


@contextmanager
def open_mapper(
    engine: Engine, workers: int | None, tasks: int | None = None, preload: str | None = None
) -> Iterator[Mapper]:
    """A `Mapper` for as long as the block lasts. `workers` None means one per core, or all that a Ray cluster has;
    more than the most `tasks` that one call will bring, where that is known, are not started. `preload` is as in
    `Pool`. GristmillError where Ray is asked for and is not installed."""
    if engine == "ray":
        from .ray_engine import open_ray

        with open_ray(workers) as mapper:
            yield mapper
    else:
        workers = workers or hardware.available_cores()
        with Pool(workers if tasks is None else min(workers, tasks), preload) as pool:
            yield pool
