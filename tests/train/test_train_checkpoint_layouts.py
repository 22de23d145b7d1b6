"""Checkpoints of two gloo processes: saved in one layout, loaded in another, and errors that all of them raise."""

import errno
import os
import signal
import threading

import pytest
import torch
import torch.distributed as dist
from forked_processes import two
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint import load as load_with_torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gristmill.errors import GristmillError
from gristmill.train.checkpoint import Checkpoints, saving
from gristmill.train.parallel.processes import alone

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


class Model(nn.Module):
    """Sizes that two processes cannot halve: 7 and 3 rows, and one row, of which the second process has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 7)
        self.second = nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.ones(1, 5))
        self.register_buffer("bias", torch.zeros(3))  # whole in every process, as the experts' is


def numbers(name: str, shape: torch.Size) -> torch.Tensor:
    """What the tensor `name` holds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def tensors_of(model: Model) -> dict[str, torch.Tensor]:
    """Weights and AdamW's state as a run has them, all zero."""
    tensors = {f"model/{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer/{name}/{key}"] = torch.zeros_like(parameter.detach())
        tensors[f"optimizer/{name}/step"] = torch.zeros(())
    for tensor in tensors.values():
        tensor.zero_()
    return tensors


def expected() -> dict[str, torch.Tensor]:
    return {name: numbers(name, tensor.shape) for name, tensor in tensors_of(Model()).items()}


def sharded() -> dict[str, torch.Tensor]:
    model = Model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return tensors_of(model)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        assert torch.equal(whole(tensor), numbers(name, tensor.shape)), name


def owned(rank: int) -> dict[str, torch.Tensor]:
    """What a process has under ZeRO-1: all weights, and the whole optimizer state of every other parameter."""
    tensors = tensors_of(Model())
    parameters = [name for name, _ in Model().named_parameters()]
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("model/") or parameters.index(name.split("/")[1]) % 2 == rank
    }


def checkpoints(directory, processes=None, asynchronous=True, **more) -> Checkpoints:
    made = Checkpoints(directory, 2, 1, asynchronous, processes or alone(), **more)
    made.check_writable()
    return made


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_to_two_shards_and_back(tmp_path):
    checkpoints(tmp_path / "one", asynchronous=False).save(1, expected(), {"step": 1})

    def work(processes):
        tensors = sharded()
        loaded = checkpoints(tmp_path / "one", processes).load_latest(lambda: tensors)
        assert loaded == (tensors, {"step": 1})
        check(tensors)
        assert tensors["model/first.weight"].to_local().shape[0] == (4, 3)[processes.rank]
        with checkpoints(tmp_path / "two", processes) as made:
            made.save(2, tensors, {"step": 2}, golden=True)
            for tensor in tensors.values():
                tensor.zero_()  # after the save has returned
        again = sharded()
        assert made.load_golden(lambda: again)[1] == {"step": 2}
        check(again)

    assert two(tmp_path, work) == [0, 0]
    alone_again = tensors_of(Model())
    assert checkpoints(tmp_path / "two").load_latest(lambda: alone_again)[1] == {"step": 2}
    check(alone_again)

    # torch's own reader of sharded safetensors finds the same in the files
    path = tmp_path / "two" / "step-00000002-0001-golden"
    files = {file.name: file.stat().st_size for file in path.glob("shard-*")}
    assert len(files) == 2
    by_torch = tensors_of(Model())
    load_with_torch(by_torch, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    check(by_torch)


def test_what_processes_own_whole_is_saved_once_and_loaded_by_its_next_owner(tmp_path):
    def work(processes):
        mine = {name: numbers(name, tensor.shape) for name, tensor in owned(processes.rank).items()}
        with checkpoints(tmp_path / "run", processes) as made:
            made.save(1, mine, {})
        swapped = owned(1 - processes.rank)
        made.load_latest(lambda: swapped)
        check(swapped)
        shards = sharded()
        made.load_latest(lambda: shards)
        check(shards)
        lacking = owned(0)  # neither process asks for the state that the second one saved
        with pytest.raises(GristmillError, match=r"it holds optimizer/first.weight/exp_avg \[7, 4\], which this run"):
            made.load_latest(lambda: lacking)

    assert two(tmp_path, work) == [0, 0]
    tensors = tensors_of(Model())
    checkpoints(tmp_path / "run").load_latest(lambda: tensors)
    check(tensors)
    data = sum(file.stat().st_size for file in (tmp_path / "run").glob("step-*/shard-*"))
    assert data < 2 * sum(tensor.nbytes for tensor in tensors.values()) + 6000  # headers; weights are there once


def test_one_process_that_fails_stops_the_save_of_all(tmp_path, monkeypatch):
    def work(processes):
        made = checkpoints(tmp_path / "run", processes)
        made.save(1, expected(), {"step": 1})
        made.wait()
        write = saving.write_shard
        if processes.rank == 1:

            def full(path, pieces):
                raise OSError(errno.ENOSPC, "No space left on device")

            saving.write_shard = full
        made.save(2, expected(), {"step": 2})
        with pytest.raises(GristmillError, match=r"step 2 could not be saved .*: process 1: no space is left"):
            made.wait()
        saving.write_shard = write
        tensors = tensors_of(Model())
        assert made.load_latest(lambda: tensors)[1] == {"step": 1}
        check(tensors)
        made.save(3, expected(), {"step": 3})
        made.wait()

    assert two(tmp_path, work) == [0, 0]
    assert sorted(os.listdir(tmp_path / "run")) == ["step-00000001-0001", "step-00000003-0003"]


def test_a_damaged_shard_is_found_by_any_process_and_passed_over_by_all(tmp_path):
    def work(processes):
        notes = []
        made = checkpoints(tmp_path / "run", processes, note=notes.append)
        for step in (1, 2):
            made.save(step, expected(), {"step": step})
        made.wait()
        if processes.main:
            shard = tmp_path / "run" / "step-00000002-0002" / "shard-00002.safetensors"
            shard.write_bytes(shard.read_bytes()[:-1])
        dist.barrier()
        tensors = sharded()
        assert made.load_latest(lambda: tensors)[1] == {"step": 1}
        check(tensors)
        assert len(notes) == int(processes.main)

    assert two(tmp_path, work) == [0, 0]


def test_another_architecture_is_refused_in_all_processes(tmp_path):
    checkpoints(tmp_path / "run", asynchronous=False).save(1, expected(), {})

    def work(processes):
        tensors = sharded()
        if processes.rank == 1:
            tensors["model/more"] = torch.zeros(2)
        with pytest.raises(GristmillError, match=r"it lacks model/more \[2\]"):
            checkpoints(tmp_path / "run", processes).load_latest(lambda: tensors)
        assert not any(whole(tensor).any() for name, tensor in tensors.items() if name != "model/more")

    assert two(tmp_path, work) == [0, 0]


def test_a_poll_raises_in_all_processes_once_all_have_ended(tmp_path):
    def work(processes):
        made = checkpoints(tmp_path / "run", processes)
        go_on = threading.Event()

        def write(path, pieces):
            assert go_on.wait(30)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if processes.rank == 1:
            saving.write_shard = write
        made.save(1, expected(), {"step": 1})
        made.poll()
        go_on.set()
        if processes.rank == 0:
            made._thread.join()
        while made._thread is not None:  # the other process may still be at it
            try:
                made.poll()
            except GristmillError as error:
                (tmp_path / f"sentence-{processes.rank}").write_text(str(error))

    assert two(tmp_path, work) == [0, 0]
    first, second = ((tmp_path / f"sentence-{rank}").read_text() for rank in range(2))
    assert first == second
    assert "process 1: no space is left on the disk" in first


def test_the_death_of_a_process_while_it_writes_leaves_the_last_one(tmp_path):
    def work(processes):
        made = checkpoints(tmp_path / "run", processes)
        made.save(1, expected(), {"step": 1})
        made.wait()
        if processes.rank == 1:
            saving.write_shard = lambda path, pieces: os.kill(os.getpid(), signal.SIGKILL)
        made.save(2, expected(), {"step": 2})
        with pytest.raises(RuntimeError):  # gloo: the connection is gone
            made.wait()
        os._exit(7)

    assert two(tmp_path, work) == [7, -signal.SIGKILL]
    tensors = tensors_of(Model())
    made = checkpoints(tmp_path / "run")
    assert made.load_latest(lambda: tensors)[1] == {"step": 1}
    check(tensors)
    assert os.listdir(tmp_path / "run") == ["step-00000001-0001"]
