"""Two gloo processes by fork, which costs a fraction of a second: for tests that need no process group of their own."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import _dynamo  # noqa: F401 (else each child imports it, at its first DTensor)

from gristmill.train.parallel.processes import Processes

DEADLINE = 60  # seconds, after which a process that waits for another is ended


def two(tmp_path: Path, work: Callable[[Processes], None]) -> list[int]:
    """Run `work` in two processes that know each other; how they ended. What they said goes to this test's output."""
    children = []
    for rank in range(2):
        process = os.fork()
        if process == 0:
            ended = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # in Python a handler would wait for gloo to return
                signal.alarm(DEADLINE)
                dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
                work(Processes(rank, 2, rank, "cpu"))
                dist.barrier()
                ended = 0
            except BaseException:
                (tmp_path / f"said-{rank}").write_text(traceback.format_exc())
            finally:
                os._exit(ended)
        children.append(process)
    ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
    for said in sorted(tmp_path.glob("said-*")):
        print(said.read_text())
        said.unlink()
    (tmp_path / "meet").unlink()
    return ends
