"""The engine `ray`: the same tasks on Ray Data, on this machine or on a cluster. The only file that knows Ray.

Where RAY_ADDRESS is set (to an address, or to `auto`) that cluster is used, and its nodes must have gristmill installed
and see the run's directory under the same path, because tasks name files. Else a Ray of this machine alone is started
and ended with the stage.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gristmill import hardware
from gristmill.errors import GristmillError

from .pool import Result, Task, answer, result_of

BLOCKS_PER_WORKER = 64  # tasks are handed to Ray in so many portions, so that finished ones are reported soon
KNOCK_SECONDS = 10.0
OBJECT_STORE_BYTES = 128 << 20  # tasks and results are a few hundred bytes each


class RayMapper:
    """Runs tasks on Ray, at most `workers` at a time."""

    def __init__(self, ray: Any, workers: int):
        self.cpu_seconds = 0.0
        self.workers = workers
        self._ray = ray

    def prepare(self, target: str, task: Task) -> None:
        """As `Mapper.prepare`, in one of Ray's workers: the others load what they need themselves."""
        list(self(target, [task]))

    def limit(self, tasks: int) -> None:
        """Nothing: Ray starts what it needs."""

    def renew(self) -> None:
        """Nothing: Ray ends workers as it sees fit."""

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        """As `Mapper`."""
        rows = [{"number": i, "call": json.dumps([target, task])} for i, task in enumerate(tasks)]
        if not rows:
            return
        data = self._ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS_PER_WORKER * self.workers))
        compute = self._ray.data.TaskPoolStrategy(size=min(len(rows), self.workers))
        finished: dict[int, str] = {}
        following = 0
        try:
            for row in data.map(_call, compute=compute).iter_rows():
                finished[row["number"]] = row["answer"]
                while following in finished:
                    result, cpu_seconds = result_of(json.loads(finished.pop(following)))
                    self.cpu_seconds += cpu_seconds
                    yield result
                    following += 1
        except self._ray.exceptions.RayError as error:
            raise GristmillError(
                f"Ray could not finish a task of the data stage: {type(error).__name__}, {str(error).splitlines()[0]}; "
                "run again with fewer workers if memory was short: what was finished is kept"
            ) from error


@contextmanager
def open_ray(workers: int | None) -> Iterator[RayMapper]:
    """Ray for as long as the block lasts; `workers` None takes as many as there are cores in the cluster."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise GristmillError("engine 'ray' needs Ray: pip install 'gristmill[ray]', or use --engine local") from None
    started = not ray.is_initialized()
    if started:
        _connect(ray, workers)
    try:
        yield RayMapper(ray, workers or int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if started:
            ray.shutdown()


def _call(row: dict[str, Any]) -> dict[str, Any]:
    target, task = json.loads(row["call"])
    return {"number": row["number"], "answer": json.dumps(answer(target, task))}


def _connect(ray: Any, workers: int | None) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray here, quietly and without telling anybody."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            ray.init(
                address="local",
                num_cpus=workers or hardware.available_cores(),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise GristmillError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start one there, or unset RAY_ADDRESS to use "
            "this machine alone"
        ) from None


def _knock(address: str) -> None:
    """OSError where nothing answers at HOST:PORT or ray://HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
