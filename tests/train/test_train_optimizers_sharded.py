"""State and updates on shards, by two processes (`optimizer_worker`)."""

import pytest
import torch.multiprocessing as mp


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tmp_path):
    from optimizer_worker import run

    mp.spawn(run, (str(tmp_path),), nprocs=2)
