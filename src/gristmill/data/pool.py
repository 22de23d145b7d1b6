"""Worker processes that read one task a line and answer one result a line: the engine `local`.

multiprocessing would start its workers by importing the caller's main script again, so that a user's script without a
`__main__` guard runs itself anew in every worker. These workers are `python -m gristmill.data.pool` and import nothing
of the caller's. Texts never travel through the pipe: a task names files, and the worker writes its own.

A worker whose parent is gone ends at once, whatever it is doing: its standard input is closed then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol

from gristmill.errors import GristmillError

Task = dict[str, Any]
Result = dict[str, Any]


class Mapper(Protocol):
    """Does tasks, somewhere."""

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        """Call a target ("module:function", JSON object in and out) on every task. The results come in the tasks'
        order, each with the `cpu_seconds` that it took. A GristmillError of the target is raised here too. One call at
        a time."""

    def renew(self) -> None:
        """Let go of what the workers hold in memory: a phase of other work begins."""


# A worker gives memory back that it does not use: Arrow's own allocator and glibc's defaults keep much of it.
_LEAN = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "1000000"}


class Pool:
    """A `Mapper`: up to `workers` processes, started when they are needed first and used again by later calls.

    One worker needs no other process: its tasks are done in this one. Leaving the `with` block ends the workers.
    """

    def __init__(self, workers: int):
        self._limit = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.renew()

    def renew(self) -> None:
        """End all workers; a later call starts new ones."""
        while self._workers:
            self._workers.pop().close()

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        """As `Mapper`."""
        if self._limit <= 1:
            for task in tasks:
                yield timed(target, task)
            return
        waiting = enumerate(tasks)
        working: dict[_Worker, int] = {}
        finished: dict[int, Result] = {}
        following = 0
        try:
            with selectors.DefaultSelector() as answers:
                for number in range(self._limit):
                    task = next(waiting, None)
                    if task is None:
                        break
                    worker = self._worker(number)
                    answers.register(worker.answers, selectors.EVENT_READ, worker)
                    working[worker] = worker.begin(target, *task)
                while working:
                    for key, _ in answers.select():
                        worker = key.data
                        finished[working.pop(worker)] = worker.result()
                        task = next(waiting, None)
                        if task is not None:
                            working[worker] = worker.begin(target, *task)
                    while following in finished:
                        yield finished.pop(following)
                        following += 1
        finally:
            if working:  # given up in the middle of it
                self.renew()

    def _worker(self, number: int) -> _Worker:
        while len(self._workers) <= number:
            self._workers.append(_Worker())
        return self._workers[number]


class _Worker:
    """One worker process and its two pipes."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])}
        environment |= {name: value for name, value in _LEAN.items() if name not in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gristmill.data.pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self.answers = self._process.stdin, self._process.stdout

    def begin(self, target: str, number: int, task: Task) -> int:
        """Hand over a task; gives back its number."""
        try:
            self._tasks.write(json.dumps([target, task]).encode() + b"\n")
            self._tasks.flush()
        except BrokenPipeError:
            self._ended()
        return number

    def result(self) -> Result:
        """The answer to the task that was handed over last."""
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            self._ended()
        return result_of(json.loads(line))

    def _ended(self) -> NoReturn:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise GristmillError(
            f"a worker process of the data stage {how}, most likely for want of memory; "
            "run again with fewer workers (--workers 1): what was finished is kept"
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._tasks, self.answers):
            with contextlib.suppress(BrokenPipeError):  # a task that the worker did not live to read
                pipe.close()


def load(target: str) -> Callable[[Task], Result]:
    """The function that a target names."""
    module, _, name = target.partition(":")
    function: Callable[[Task], Result] = getattr(importlib.import_module(module), name)
    return function


def timed(target: str, task: Task) -> Result:
    """The result of a task, with the `cpu_seconds` that it took."""
    started = time.process_time()
    result = load(target)(task)
    return result | {"cpu_seconds": time.process_time() - started}


def answer(target: str, task: Task) -> Result:
    """What became of a task, as a JSON object: its `result`, or the words of a `user_error` or an `error`."""
    try:
        return {"result": timed(target, task)}
    except GristmillError as error:
        return {"user_error": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}


def result_of(answer: Result) -> Result:
    """The result that an answer holds; its errors are raised."""
    if "user_error" in answer:
        raise GristmillError(answer["user_error"])
    if "error" in answer:
        raise RuntimeError(f"a worker process of the data stage failed:\n{answer['error']}")
    return dict(answer["result"])


def _serve() -> None:
    """The worker's loop: standard output carries answers only, so anything printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it ends its workers
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    while True:
        answers.write(json.dumps(answer(*json.loads(tasks.get()))) + "\n")
        answers.flush()


def _read_tasks(tasks: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        tasks.put(line)
    os._exit(0)  # the parent is gone: even a task half done is of no use to anybody


if __name__ == "__main__":
    _serve()
