"""A pool of worker processes that read one task a line and answer one result a line.

multiprocessing would start its workers by importing the caller's main script again, so that a user's script without a
`__main__` guard runs itself anew in every worker. These workers are `python -m gristmill.data.pool` and import nothing
of the caller's. Texts never travel through the pipe: a task names files, and the worker writes its own.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError

Task = dict[str, Any]
Result = dict[str, Any]


def map_tasks(target: str, tasks: list[Task], workers: int) -> Iterator[Result]:
    """Call `target` ("module:function", JSON object in and out) on every task; results come as they get ready.

    One worker, or one task, needs no other process. A GristmillError raised by the function is raised here too.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        function = _function(target)
        yield from map(function, tasks)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker(target) for _ in range(workers)]
    for worker in started:
        idle.put(worker)

    def call(task: Task) -> Result:
        worker = idle.get()
        try:
            return worker.call(task)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([threads.submit(call, task) for task in tasks]):
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.close()


class _Worker:
    """One worker process and its two pipes. It ends by itself when its standard input is closed."""

    def __init__(self, target: str):
        package_root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gristmill.data.pool", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def call(self, task: Task) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            code = self._process.wait()
            raise RuntimeError(
                f"a worker process of the data stage ended with code {code}; was there too little memory?"
            )
        answer = json.loads(line)
        if "user_error" in answer:
            raise GristmillError(answer["user_error"])
        if "error" in answer:
            raise RuntimeError(f"a worker process of the data stage failed:\n{answer['error']}")
        return dict(answer["result"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _function(target: str) -> Callable[[Task], Result]:
    module, _, name = target.partition(":")
    function: Callable[[Task], Result] = getattr(importlib.import_module(module), name)
    return function


def _serve(target: str) -> None:
    """The worker's loop: standard output carries answers only, so anything printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it ends its workers
    function = _function(target)
    for line in sys.stdin:
        try:
            answer: Result = {"result": function(json.loads(line))}
        except GristmillError as error:
            answer = {"user_error": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
