"""How the main process leads the others: it runs the pipeline, they wait to be called to the stages that train.

Calls go through the store at which torchrun's processes meet, so that hours of other stages may pass between them; the
process group, whose members must answer each other, is up only while they train. What went wrong goes the same way, so
that one process says it, and says the cause rather than that a connection was closed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ...artifact import Figures, StageFunction, StageRun
from ...errors import GristmillError
from .launch import Launch, launched
from .processes import (
    PATIENCE,
    Processes,
    check_backends,
    lost_another,
    start_processes,
    stop_processes,
    waited_in_vain,
)

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.1
# How long a process that failed leaves it to the main one to say so.
YIELD_SECONDS = 10.0

Call = dict[str, Any]


class Team:
    """The processes as one of them sees them. `store` holds strings by key, for all of them to read."""

    def __init__(self, launch: Launch, store: Store):
        self.launch = launch
        self._store = store
        self._calls = 0

    def call(self, **call: Any) -> None:
        """Main process: hand all others a call, JSON values."""
        self._store.set(f"call/{self._calls}", json.dumps(call))
        self._calls += 1

    def dismiss(self) -> None:
        """Main process: let the others go once they have done what they were called to."""
        self._store.set(f"call/{self._calls}", "null")
        self._calls += 1

    def calls(self) -> Iterator[Call]:
        """Another process: the main one's calls as they come, until it lets go or is gone."""
        while True:
            key = f"call/{self._calls}"
            try:
                while not self._store.check([key]):
                    time.sleep(POLL_SECONDS)  # rather than one long wait, in which no signal would be heard
                call = json.loads(self._store.get(key))
            except dist.DistNetworkError:
                return  # the main process ended, and has said why
            self._calls += 1
            if call is None:
                return
            yield call

    @contextmanager
    def training(self, device: str) -> Iterator[Processes]:
        """All processes together, from the moment that the last has come until all have come through. That another one
        ended is a GristmillError which says why, where that process said it."""
        from torch.distributed.distributed_c10d import PrefixStore

        group = PrefixStore(f"group/{self._calls}", self._store)
        processes = start_processes(device, group)
        try:
            yield processes
            stop_processes()
        except RuntimeError as error:
            if not (lost_another(error) or waited_in_vain(error)):
                raise
            rest = self._silent() if waited_in_vain(error) else self._lost()
            raise GristmillError(self._why() or rest) from error

    def fail(self, message: str, say: Callable[[str], None]) -> None:
        """Say `message`, with which this process ends, unless another one says what went wrong: the main process does,
        where it can."""
        try:
            if self.launch.main:
                say(message)
                self._store.add("said", 1)
                return
            message = f"process {self.launch.rank}: {message}"
            self._store.set("failure", message)
            if dist.is_initialized() and dist.get_backend() == "gloo":
                dist.destroy_process_group()  # those that wait for this one notice
            until = time.monotonic() + YIELD_SECONDS
            while time.monotonic() < until and self._store.add("said", 0) == 0:
                time.sleep(POLL_SECONDS)
            if self._store.add("said", 1) == 1:
                say(message)
        except dist.DistError:
            return  # the store is gone, and with it the main process, which said why

    def _why(self) -> str | None:
        return self._store.get("failure").decode() if self._store.check(["failure"]) else None

    def _silent(self) -> str:
        return (
            f"another of the {self.launch.count} processes has not answered for {PATIENCE.seconds // 60} minutes (does "
            "it hang, or work alone for longer?); checkpoints are kept, the same command goes on from the last one"
        )

    def _lost(self) -> str:
        return (
            f"another of the {self.launch.count} processes ended without a word (was it killed, or out of memory?); "
            "checkpoints are kept, the same command goes on from the last one"
        )


@cache
def team() -> Team | None:
    """The processes that torchrun started, this one among them; None where there is only one."""
    launch = launched()
    if launch is None:
        return None
    check_backends("cpu")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", launch.rank, launch.count, timeout=PATIENCE))
    except dist.DistError as error:
        raise GristmillError(f"cannot reach the other processes: {error}; start them with torchrun") from None
    return Team(launch, PrefixStore(f"gristmill/{launch.attempt}", store))


def together(stage: str, target: Path, function: StageFunction) -> StageFunction:
    """Main process: a stage's function, to which the others are called while `target` is built; the function itself
    where there is one process only."""
    own = team()
    if own is None:
        return function

    def call_and_run(config: Any, run: StageRun) -> Figures:
        own.call(
            stage=stage,
            target=str(target.resolve()),
            config=config.model_dump(mode="json"),
            inputs={name: str(path.resolve()) for name, path in run.inputs.items()},
            seed=run.seed,
        )
        with own.training(config.training.device):
            return function(config, run)

    return call_and_run
