"""Two gloo processes against one: the same losses, norms and weights in every layout, and what each of them holds."""

import json
import os
import socket
import subprocess
import sys

import parallel_worker as worker
import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.plan.activations import Arithmetic
from gristmill.plan.memory import TrainingRun, peak_memory
from gristmill.train.parallel.data_parallel import gather_model, parallelize
from gristmill.train.parallel.launch import check_share, launched
from gristmill.train.parallel.mesh import build_mesh
from gristmill.train.parallel.processes import alone, check_backends, current_processes, lost_another, start_processes

KINDS, SHAPES = worker.KINDS, list(worker.SHAPES)
pytestmark = pytest.mark.distributed


def run_two(out, device):
    """What two processes found, each by case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(out), device],
            env={**together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Both processes start once and do everything in turn."""
    return run_two(tmp_path_factory.mktemp("two"), "cpu")


@pytest.fixture(scope="module")
def one():
    return {shape: worker.train_some(shape, "ddp") for shape in SHAPES}


def result(two, case):
    for found in two:
        assert "error" not in found[case], found[case]["error"]
    return [found[case] for found in two]


@pytest.mark.parametrize(("shape", "kind"), worker.TRAINED)
def test_all_layouts_train_as_one_process_does(two, one, shape, kind):
    main, other = result(two, f"train {shape} {kind}")
    assert main["losses"] == other["losses"], "the same bits in every process"
    assert main["norms"] == other["norms"]
    assert main["losses"] == pytest.approx(one[shape]["losses"], abs=1e-6)
    assert main["norms"][0] == pytest.approx(one[shape]["norms"][0], rel=1e-5)
    assert main["norms"] == pytest.approx(one[shape]["norms"], rel=2e-3), "rounding grows from step to step"
    assert main["outside"] == pytest.approx(one[shape]["outside"], abs=1e-5)
    assert main["outside"] == other["outside"]


@pytest.mark.parametrize(("shape", "kind"), worker.TRAINED)
def test_a_gathered_model_is_plain_and_whole(two, one, shape, kind):
    main, other = result(two, f"train {shape} {kind}")
    assert list(main["weights"]) == list(one[shape]["weights"])
    assert main["weights"] == pytest.approx(one[shape]["weights"], rel=1e-4)
    assert main["bias"] == one[shape]["bias"], "all processes count the load of all"
    assert main["logits"] == pytest.approx(one[shape]["logits"], rel=1e-5)
    assert other["weights"] is None, "one process writes it, or a disk would have to hold as many as there are"


def test_the_bias_of_experts_moved(one):
    assert any(value != 0 for layer in one["experts_bias"]["bias"] for value in layer)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(two, one, kind):
    main, _ = result(two, f"one micro-batch {kind}")
    assert main["losses"] == pytest.approx(one["tied"]["losses"][:3], abs=1e-6)


@pytest.mark.parametrize("optimizer", worker.OPTIMIZERS)
def test_every_optimizer_steps_as_in_one_process(two, optimizer):
    expected = worker.train_some("tied", "ddp", steps=4, optimizer=optimizer)
    for kind in ("ddp", "zero1", "zero3"):
        main, _ = result(two, f"{optimizer} {kind}")
        assert main["losses"] == pytest.approx(expected["losses"], abs=1e-5), kind
        assert main["weights"] == pytest.approx(expected["weights"], rel=1e-3), kind


@pytest.mark.parametrize("mode", ["block", "sqrt", "selective"])
def test_activations_can_be_computed_again_from_shards(two, mode):
    plain, _ = result(two, "train experts_bias zero3")
    main, _ = result(two, f"checkpointing {mode}")
    assert main["losses"] == plain["losses"][:3]
    assert main["norms"] == plain["norms"][:3]


def test_in_bf16_shards_train_as_whole_weights_do(two, one):
    whole, _ = result(two, "bf16 ddp")
    for kind in ("zero2", "zero3"):
        main, _ = result(two, f"bf16 {kind}")
        assert main["losses"] == pytest.approx(whole["losses"], abs=2e-3)
        assert main["losses"] != pytest.approx(one["experts_bias"]["losses"][:3], abs=1e-6), "it was not fp32"
        assert main["weights"] == pytest.approx(whole["weights"], rel=2e-2), "what is kept is float32"


@pytest.mark.parametrize(
    ("kind", "weights", "state"), [("ddp", 0, 1), ("zero1", 0, 1 / 2), ("zero2", 1 / 2, 1 / 2), ("zero3", 1 / 2, 1 / 2)]
)
def test_each_process_holds_its_part(two, kind, weights, state):
    for found in result(two, f"layout {kind}"):
        assert found["names"], "parameters keep their names"
        assert found["sharded"] == (1 if weights else 0)
        assert found["weights"] == pytest.approx(weights, abs=0.02)
        assert found["state"] == pytest.approx(state, abs=0.1)
        # The planner says the same: float32 weights, and AdamW's two averages. FSDP's last row may be another's.
        config = worker.new_model("tied").config
        run = TrainingRun(worker.ROWS, worker.LENGTH, data=kind, processes=2)
        planned = peak_memory(config, Arithmetic("fp32", device="cpu", compiled=False), run)
        assert planned.weights == pytest.approx(4 * config.num_parameters * (found["weights"] or 1), rel=0.03)
        assert planned.optimizer == pytest.approx(8 * config.num_parameters * found["state"], rel=0.2)


def test_processes_talk_as_seldom_as_they_can(two):
    """A step of two micro-batches of a model of three blocks and what stands around them: four groups of weights."""
    talk = {kind: result(two, f"layout {kind}")[0]["talk"] for kind in KINDS}
    for kind in ("ddp", "zero1"):
        assert talk[kind] == {"allreduce_": 3}, "weight, gradients (in the last micro-batch), loss"
    reduced = {"allreduce_": 2, "_reduce_scatter_base_": 2 * 4}
    assert talk["zero2"] == {**reduced, "_allgather_base_": 4}, "weights once"
    assert talk["zero3"] == {**reduced, "_allgather_base_": 2 * (4 + 3)}, "blocks again in backward"


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_weights_are_seen_at_once(two, kind):
    before, after = result(two, f"loading {kind}")[0]
    model = worker.new_model("tied")
    assert before == pytest.approx(worker.validate(model, 0), abs=2e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert after == pytest.approx(worker.validate(model, 0), abs=2e-6)


def test_processes_and_their_mesh(two):
    for rank, found in enumerate(result(two, "talking")):
        assert found == {
            "rank": rank,
            "count": 2,
            "main": rank == 0,
            "sum": 3.0,
            "object": {"from": 0},
            "axes": {"pp": 1, "dp": 2, "cp": 1, "tp": 1},
            "along_dp": 2,
        }


def test_one_process_is_left_alone():
    processes = current_processes()
    assert (processes, start_processes("cpu")) == (alone(processes.device_type), alone("cpu"))
    processes.barrier()
    tensor = torch.ones(2)
    assert processes.all_reduce(tensor) is tensor
    assert processes.broadcast_object("as it is") == "as it is"
    config = worker.training("zero3")
    assert build_mesh(processes, config.parallel) is None
    objective = worker.Objective(worker.new_model("tied"))
    trainee = parallelize(objective, config, None, torch.device("cpu"), "fp32")
    assert trainee.module is objective
    assert gather_model(objective.model) is objective.model


@pytest.mark.gpu
def test_two_gpus_train_as_one_process_does(one, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found = run_two(tmp_path, "cuda")
    for shape, kind in worker.TRAINED:
        main, other = result(found, f"train {shape} {kind}")
        assert main["losses"] == other["losses"]
        assert main["losses"] == pytest.approx(one[shape]["losses"], abs=1e-4), (shape, kind)
        assert main["weights"] == pytest.approx(one[shape]["weights"], rel=1e-3), (shape, kind)
    whole, _ = result(found, "bf16 ddp")
    for kind in ("zero2", "zero3"):
        main, _ = result(found, f"bf16 {kind}")
        assert main["losses"] == pytest.approx(whole["losses"], abs=5e-3), kind


def launch(monkeypatch, **variables):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **variables}.items():
        monkeypatch.setenv(name, value)


def test_torchrun_with_one_process_is_none(monkeypatch):
    launch(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert launched() is None


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(monkeypatch, variables, said):
    launch(monkeypatch, **variables)
    with pytest.raises(GristmillError, match=said):
        launched()


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    check_share(6, "base.training.batch_size")
    launch(monkeypatch, RANK="0", WORLD_SIZE="4")
    check_share(8, "base.training.batch_size")
    with pytest.raises(GristmillError, match=r"base\.training\.batch_size \(6\).*4 processes.*set it to 4 or 8"):
        check_share(6, "base.training.batch_size")
    with pytest.raises(GristmillError, match=r"set it to 4,"):
        check_share(3, "base.training.batch_size")


@pytest.mark.parametrize(
    ("lacking", "device", "said"),
    [
        ("is_available", "cpu", "no torch.distributed"),
        ("is_gloo_available", "cpu", "lacks gloo"),
        ("is_nccl_available", "cuda", "lacks NCCL.*training.device: cpu"),
    ],
)
def test_what_torch_lacks_is_named(monkeypatch, lacking, device, said):
    monkeypatch.setattr(torch.distributed, lacking, lambda: False)
    with pytest.raises(GristmillError, match=said):
        check_backends(device)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    launch(monkeypatch, RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with pytest.raises(GristmillError, match="4 processes on this machine, which has 2 GPUs: give --nproc-per-node 2"):
        start_processes("cuda")


def test_the_loss_of_another_process_is_told_from_other_errors():
    assert lost_another(RuntimeError("[../gloo/transport/tcp/pair.cc:552] Connection closed by peer [127.0.0.1]:5"))
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_another(ValueError("connection closed by peer"))
