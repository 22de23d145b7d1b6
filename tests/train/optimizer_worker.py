"""What each of two processes does in test_train_optimizers_sharded.py: steps on shards, beside the same steps on the
whole. It ends with an error where they differ."""

import datetime
import os

import torch
import torch.distributed as dist
from optimizer_cases import EXPERTS, OPTIMIZERS, NoHostReads, give_gradients, names_of, optimizer_of, tiny, weights_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gristmill.train.optimizers import export_state, import_state, init_state
from gristmill.train.optimizers.base import local

SHAPE = EXPERTS | {"vocab_size": 97}  # rows and experts that two processes cannot share evenly


def run(rank, directory):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(directory, "rendezvous"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (2,))
    for name in OPTIMIZERS:
        whole, reference = stepped(tiny(**SHAPE), name)
        shards_give_what_the_whole_gives(name, mesh, whole, reference)
        a_zeroed_optimizer_gives_it_too(name, mesh, whole, reference)
    replicas_share_muons_work(mesh)
    dist.barrier()
    dist.destroy_process_group()


def sharded(mesh):
    model = tiny(**SHAPE)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def give_shards(model, step, scale=1.0):
    """The gradients that `give_gradients` gives, cut as the parameters are."""
    whole = tiny(**SHAPE)
    give_gradients(whole, step, scale)
    for name, parameter in model.named_parameters():
        gradient = whole.get_parameter(name).grad
        assert gradient is not None
        parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)


def stepped(model, name, give=give_gradients, count=3, start=0, **changes):
    optimizer = optimizer_of(model, name, **changes)
    for step in range(start, start + count):
        give(model, step)
        optimizer.step()
    return model, optimizer


def whole_of(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_weights(model, whole, atol=2e-5):
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(whole_of(model.get_parameter(name).detach()), weight, atol=atol, rtol=1e-4, msg=name)


def shards_give_what_the_whole_gives(name, mesh, whole, reference):
    model, optimizer = stepped(sharded(mesh), name, give_shards)
    same_weights(model, whole)
    expected = export_state(reference, names_of(whole))
    state = export_state(optimizer, names_of(model))
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].shape == value.shape, key
        assert state[key].dtype == value.dtype, key
        torch.testing.assert_close(whole_of(state[key]), value, atol=1e-5, rtol=1e-4, msg=key)
    if name in ("adamw", "adam8bit"):
        assert all(torch.equal(whole_of(state[key]), value) for key, value in expected.items())
    a_skipped_step_changes_nothing(model, optimizer)
    a_checkpoint_of_the_whole_is_read(name, mesh, whole, reference)


def a_skipped_step_changes_nothing(model, optimizer):
    before = [local(parameter).clone() for parameter in model.parameters()]
    state = {key: local(value).clone() for key, value in export_state(optimizer, names_of(model)).items()}
    give_shards(model, 8, scale=float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    with NoHostReads():
        optimizer.step()
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(local(parameter), value)
    for key, value in export_state(optimizer, names_of(model)).items():
        assert torch.equal(local(value), state[key]), key


def a_checkpoint_of_the_whole_is_read(name, mesh, whole, reference):
    model, resumed = sharded(mesh), tiny(**SHAPE)
    resumed.load_state_dict(whole.state_dict())
    for key, parameter in model.named_parameters():
        parameter.data.copy_(distribute_tensor(whole.get_parameter(key).detach(), mesh, parameter.placements))
    optimizer, again = optimizer_of(model, name), optimizer_of(resumed, name)
    init_state(optimizer)
    saved = export_state(reference, names_of(whole))
    cut = {
        key: distribute_tensor(saved[key], mesh, value.placements) if isinstance(value, DTensor) else saved[key]
        for key, value in export_state(optimizer, names_of(model)).items()
    }
    import_state(optimizer, names_of(model), cut)
    import_state(again, names_of(resumed), saved)
    give_shards(model, 5)
    optimizer.step()
    give_gradients(resumed, 5)
    again.step()
    same_weights(model, resumed)


def a_zeroed_optimizer_gives_it_too(name, mesh, whole, reference):
    model, optimizer = stepped(tiny(**SHAPE), name, zero_group=mesh.get_group())
    same_weights(model, whole)
    mine = export_state(optimizer, names_of(model))
    expected = export_state(reference, names_of(whole))
    for key, value in mine.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-4, msg=key)
    all_keys = [None, None]
    dist.all_gather_object(all_keys, set(mine))
    assert all_keys[0].isdisjoint(all_keys[1])
    assert all_keys[0] | all_keys[1] == set(expected)
    before = weights_of(model)
    give_gradients(model, 8, scale=float("inf"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in weights_of(model).items())


def replicas_share_muons_work(mesh):
    products = []
    whole, alone = stepped(tiny(num_layers=4), "muon")
    model, together = stepped(tiny(num_layers=4), "muon", process_group=mesh.get_group())
    same_weights(model, whole)
    for optimizer, trained in ((alone, whole), (together, model)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
            give_gradients(trained, 4)
            optimizer.step()
        products.append(sum(event.flops for event in profile.key_averages() if event.key == "aten::baddbmm"))
    assert 0 < products[1] <= 0.5 * products[0], products
    gathered = [torch.empty_like(model.blocks[0].attention.qkv.weight) for _ in range(2)]
    dist.all_gather(gathered, model.blocks[0].attention.qkv.weight.detach())
    assert torch.equal(*gathered)
