"""gristmill with another stage in pre-training's place, which does as it is told (by the last argument)."""

import os
import signal
import sys
import types

import torch
import torch.distributed as dist

from gristmill.cli import main
from gristmill.errors import GristmillError
from gristmill.train.parallel.processes import current_processes

told = sys.argv.pop()


SUMS = 20_000  # as DDP's of gradients: some are still on their way when Python is taken down


def fail_with_work_under_way(processes):
    for _ in range(SUMS):
        dist.all_reduce(torch.zeros(10), async_op=processes.main)
    raise GristmillError("the loss is not finite")


def pretrain(config, run):
    processes = current_processes()
    total = processes.all_reduce(torch.full((), processes.rank + 1.0))
    (run.out / "model.txt").write_text(f"{processes.rank} of {processes.count}")
    with open(run.scratch / "seen", "a") as file:
        file.write("s")
    if told == "all fail":
        raise GristmillError("the loss is not finite")
    if told == "main fails with work under way":
        fail_with_work_under_way(processes)
    if processes.rank == 1:
        if told == "other fails":
            raise GristmillError("loader: rows.bin is torn")
        if told == "other has a defect":
            raise KeyError("rows")
        if told == "other dies":
            os.kill(os.getpid(), signal.SIGKILL)
    if processes.main and told == "main fails":
        raise GristmillError("cannot write a checkpoint: the disk is full")
    for _ in range(3):
        processes.all_reduce(torch.zeros(()))
    run.log.note(f"trained by process {processes.rank}")
    return {"processes": processes.count, "sum": float(total), "rank": processes.rank}


stand_in = types.ModuleType("gristmill.train.pretrain")
stand_in.pretrain = pretrain
sys.modules["gristmill.train.pretrain"] = stand_in
main()
