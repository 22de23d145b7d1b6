"""Running a command as a user would, and what it took: seconds, processor seconds, memory of the whole process tree."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from gristmill.errors import GristmillError

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Cost:
    """What a command took. `cpu_seconds` and `peak_bytes` are of the process and all its descendants; the peak is of
    proportional set size (memory shared by n processes counts as 1/n in each), sampled, and 0 where the system does
    not tell it."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: list[str]) -> Cost:
    """Run a command to its end. GristmillError with the end of its output when it fails."""
    started = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sampler = _Sampler(process.pid)
    sampler.start()
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # its usage holds that of the descendants it has waited for
    seconds = perf_counter() - started
    sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise GristmillError(f"{' '.join(command)} failed: {output[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, sampler.peak)


class _Sampler(threading.Thread):
    """Adds up the memory of a process and its descendants ten times a second."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(_proportional_bytes, _tree(self._pid))))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, _read(task).split())
    return found


def _proportional_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    """A file of /proc; empty when its process has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
