"""What only a GPU shows: no waiting for it, copies beside the computation, products in bfloat16."""

import pytest
import torch
from optimizer_cases import EXPERTS, OPTIMIZERS, give_gradients, names_of, optimizer_of, tiny, weights_of

from gristmill.train.optimizers import export_state, init_state, offload
from gristmill.train.optimizers.muon import orthogonalize
from gristmill.train.optimizers.offload import Files, HostMemory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def on_gpu():
    return tiny(**EXPERTS, num_layers=4).cuda()


@pytest.mark.parametrize("place", ["here", "host"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_does_not_wait(name, place):
    model = on_gpu()
    optimizer = optimizer_of(model, name, memory={"offload": "none" if place == "here" else "cpu"})
    optimizer.grad_scale, optimizer.found_inf = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
    give_gradients(model)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("place", ["host", "files"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_elsewhere_gives_the_same_bits(name, place, tmp_path, monkeypatch):
    monkeypatch.setattr(offload, "PORTION_ELEMENTS", 9000)
    here, away = on_gpu(), on_gpu()
    one, other = optimizer_of(here, name), optimizer_of(away, name)
    one.residence.elements = offload.PORTION_ELEMENTS
    device = torch.device("cuda")
    other.residence = HostMemory(device) if place == "host" else Files(device, tmp_path)
    init_state(other)
    for step in range(5):
        for model, optimizer in ((here, one), (away, other)):
            give_gradients(model, step)
            optimizer.step()
    for key, weight in weights_of(here).items():
        assert torch.equal(weight, away.get_parameter(key)), key
    kept = export_state(other, names_of(away))
    for key, value in export_state(one, names_of(here)).items():
        assert torch.equal(value.cpu(), kept[key].cpu()), key


def test_bfloat16_orthogonalizes_well_enough():
    matrices = torch.randn(4, 64, 160, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(matrices, 5)
    rounded = orthogonalize(matrices.cuda(), 5).float().cpu()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gpu_takes_the_steps_of_a_cpu(name):
    there, here = on_gpu(), tiny(**EXPERTS, num_layers=4)
    for model in (there, here):
        optimizer = optimizer_of(model, name)
        for step in range(3):
            give_gradients(model, step)
            optimizer.step()
    start = weights_of(tiny(**EXPERTS, num_layers=4))
    for key, weight in weights_of(here).items():
        moved = weight - start[key]
        assert (there.get_parameter(key).detach().cpu() - weight).norm() < 0.05 * moved.norm(), key
