"""Worker processes that read one task a line and answer one result a line: the engine `local`.

multiprocessing would start its workers by importing the caller's main script again, so that a user's script without a
`__main__` guard runs itself anew in every worker. These processes are `python -m gristmill.data.pool` and import
nothing of the caller's. Texts never travel between them: a task names files, and the worker writes its own.

Where the system allows it, one such process loads what the workers need (`Mapper.prepare`), and the workers are forked
from it: they start at once, and have in common what it holds. It has no second thread, so forking it is safe.

A worker whose parent is gone ends at once, whatever it is doing: its connection is closed then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import selectors
import signal
import socket
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

FORKS = sys.platform == "linux"  # elsewhere system libraries may not survive it
# Memory that a worker does not use is given back (Arrow's own allocator keeps it), and no library starts threads: there
# is a process for each core already, and a process that is forked must have but one thread.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Mapper(Protocol):
    """Does tasks, somewhere. `cpu_seconds` is what they have taken in other processes, preparations included;
    `workers` is how many tasks are done at a time at most."""

    cpu_seconds: float
    workers: int

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        """Call a target ("module:function", JSON object in and out) on every task. The results come in the tasks'
        order. A GristmillError of the target is raised here too. One call at a time."""

    def prepare(self, target: str, task: Task) -> None:
        """Do a task that loads what workers will need, before they are started. Its errors may come with the next
        call."""

    def limit(self, tasks: int) -> None:
        """Tell how many tasks one call will bring at most."""

    def renew(self) -> None:
        """Let go of what the workers hold in memory: a phase of other work begins."""


class Pool:
    """A `Mapper`: up to `workers` processes, started when they are needed first and used again by later calls.

    One worker needs no other process: its tasks are done in this one. Leaving the `with` block ends all processes.
    `preload` is a target that takes an empty task: the process that workers are forked from begins with it.
    """

    def __init__(self, workers: int, preload: str | None = None):
        self.cpu_seconds = 0.0
        self.workers = workers
        self._preload = preload
        self._root: _Process | None = None
        self._preparing: _Process | None = None
        self._workers: list[_Process] = []

    def __enter__(self) -> Pool:
        if self.workers > 1 and FORKS:
            self._root = _Process.start(forks=True)
            if self._preload is not None:
                self._root.begin(self._preload, {})
                self._preparing = self._root
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.renew()
        if self._root is not None:
            self._root.end()
            self._root = None

    def limit(self, tasks: int) -> None:
        """As `Mapper.limit`: no more workers than that are started."""
        self.workers = min(self.workers, tasks)

    def renew(self) -> None:
        """End all workers; a later call starts new ones."""
        while self._workers:
            self._workers.pop().end()

    def prepare(self, target: str, task: Task) -> None:
        """As `Mapper.prepare`."""
        if self.workers <= 1:
            load(target)(task)
            return
        self._finish_preparing()
        process = self._root or self._worker(0)
        process.begin(target, task)
        self._preparing = process

    def __call__(self, target: str, tasks: Iterable[Task]) -> Iterator[Result]:
        """As `Mapper`."""
        if self.workers <= 1:
            for task in tasks:
                yield load(target)(task)
            return
        waiting = enumerate(tasks)
        working: dict[_Process, int] = {}
        finished: dict[int, Result] = {}
        following = 0
        try:
            with selectors.DefaultSelector() as answers:
                for place, (number, task) in zip(range(self.workers), waiting):  # noqa: B905
                    worker = self._worker(place)
                    answers.register(worker.connection, selectors.EVENT_READ, worker)
                    worker.begin(target, task)
                    working[worker] = number
                while working:
                    for key, _ in answers.select():
                        worker = key.data
                        finished[working.pop(worker)] = self._result_of(worker)
                        for number, task in waiting:
                            worker.begin(target, task)
                            working[worker] = number
                            break
                    while following in finished:
                        yield finished.pop(following)
                        following += 1
        finally:
            if working:  # given up in the middle of it
                self.renew()

    def _worker(self, place: int) -> _Process:
        self._finish_preparing()
        while len(self._workers) <= place:
            self._workers.append(_Process.start(forks=False) if self._root is None else self._root.fork())
        return self._workers[place]

    def _finish_preparing(self) -> None:
        if self._preparing is not None:
            process, self._preparing = self._preparing, None
            self._result_of(process)

    def _result_of(self, process: _Process) -> Result:
        result, cpu_seconds = process.result()
        self.cpu_seconds += cpu_seconds
        return result


class _Process:
    """Another process and the connection to it. `wait` gives its exit code once it has ended."""

    def __init__(self, connection: socket.socket, pid: int, wait: Callable[[], int]):
        self.connection = connection
        self._answers = connection.makefile("rb")
        self._pid, self._wait = pid, wait
        self._code: int | None = None  # the exit code, once it has been waited for

    @classmethod
    def start(cls, forks: bool) -> _Process:
        """A new process: one to fork workers from, or a worker."""
        package_root = str(Path(__file__).parents[2])
        environment = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "gristmill.data.pool", str(theirs.fileno()), "root" if forks else "worker"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | environment,
            )
        return cls(ours, process.pid, process.wait)

    def fork(self) -> _Process:
        """A worker that is a copy of this process."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.connection, [b'{"fork": true}\n'], [theirs.fileno()])
            except OSError:
                self._ended()
        pid = self._answer()["pid"]
        return _Process(ours, pid, lambda: self._exit_code_of(pid))

    def begin(self, target: str, task: Task) -> None:
        """Hand over a task."""
        self._say({"call": [target, task]})

    def result(self) -> tuple[Result, float]:
        """The result of the task that was handed over last, and the CPU seconds that it took."""
        return result_of(self._answer())

    def end(self) -> None:
        """Kill the process and wait for it."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(GristmillError):  # who could have waited is gone as well
                self._code = self._wait()
        self._answers.close()
        self.connection.close()

    def _exit_code_of(self, pid: int) -> int:
        """The exit code of a process that was forked from this one."""
        self._say({"wait": pid})
        return int(self._answer()["code"])

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._ended()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.readline()
        except ConnectionError:
            line = b""
        if not line.endswith(b"\n"):
            self._ended()
        return dict(json.loads(line))

    def _ended(self) -> NoReturn:
        code = self._code = self._wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise GristmillError(
            f"a worker process {how}, most likely for want of memory; "
            "run again with fewer workers (--workers 1): what was finished is kept"
        )


def load(target: str) -> Callable[[Task], Result]:
    """The function that a target names."""
    module, _, name = target.partition(":")
    function: Callable[[Task], Result] = getattr(importlib.import_module(module), name)
    return function


def answer(target: str, task: Task) -> Result:
    """What became of a task, as a JSON object: its `result` and `cpu_seconds`, or the words of a `user_error` or an
    `error`."""
    started = time.process_time()
    try:
        result = load(target)(task)
    except GristmillError as error:
        return {"user_error": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}
    return {"result": result, "cpu_seconds": time.process_time() - started}


def result_of(answer: Result) -> tuple[Result, float]:
    """The result that an answer holds, and its CPU seconds; its errors are raised."""
    if "user_error" in answer:
        raise GristmillError(answer["user_error"])
    if "error" in answer:
        raise RuntimeError(f"a worker process failed:\n{answer['error']}")
    return answer["result"], answer["cpu_seconds"]


def _main(connection: socket.socket, forks: bool) -> None:
    os.dup2(2, 1)  # whatever is printed goes to standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it ends its workers
    if forks:
        _serve_and_fork(connection)
    else:
        _serve(connection)


def _serve_and_fork(connection: socket.socket) -> None:
    """The loop of the process that workers are forked from. One message is under way at a time."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 1)
        while message and not message.endswith(b"\n"):
            message += connection.recv(1 << 16)
        if not message:
            os._exit(0)
        said = json.loads(message)
        if "call" in said:
            reply = answer(*said["call"])
        elif "wait" in said:
            reply = {"code": os.waitstatus_to_exitcode(os.waitpid(said["wait"], 0)[1])}
        else:
            gc.freeze()  # what is there now is looked at no more, so its memory stays in common
            pid = os.fork()
            if not pid:
                connection.close()
                _serve(socket.socket(fileno=descriptors[0]))
            os.close(descriptors[0])
            reply = {"pid": pid}
        connection.sendall(json.dumps(reply).encode() + b"\n")


def _serve(connection: socket.socket) -> NoReturn:
    """A worker's loop."""
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(connection, tasks), daemon=True).start()
    while True:
        reply = answer(*json.loads(tasks.get())["call"])
        with contextlib.suppress(OSError):  # a parent that is gone: the other thread ends this process
            connection.sendall(json.dumps(reply).encode() + b"\n")


def _read_tasks(connection: socket.socket, tasks: queue.SimpleQueue[bytes]) -> None:
    with contextlib.suppress(ConnectionError):
        for line in connection.makefile("rb"):
            tasks.put(line)
    os._exit(0)  # the parent is gone: even a task half done is of no use to anybody


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2] == "root")
