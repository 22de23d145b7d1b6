"""How much memory a command takes with all processes that it starts: `python benchmarks/data_memory.py COMMAND...`.

Every tenth of a second the proportional set sizes (PSS: pages that processes share count once) of the whole process
tree are added up from /proc/PID/smaps_rollup. At the end it prints the highest sum, when it was reached, and what each
process had then.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 0.1


def process_tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += process_tree(int(child))
    except OSError:  # it has ended meanwhile
        pass
    return found


def pss(pid: int) -> float:
    """Megabytes (2**20 bytes)."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def main() -> int:
    started = time.monotonic()
    process = subprocess.Popen(sys.argv[1:])
    peak, when, parts = 0.0, 0.0, [0.0]
    while process.poll() is None:
        sizes = [pss(pid) for pid in process_tree(process.pid)]
        if sum(sizes) > peak:
            peak, when, parts = sum(sizes), time.monotonic() - started, sizes
        time.sleep(INTERVAL)
    seconds = time.monotonic() - started
    each = " + ".join(f"{size:.0f}" for size in parts)
    print(f"peak PSS {peak:.0f} MB ({each}) after {when:.1f} s of {seconds:.1f} s", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
