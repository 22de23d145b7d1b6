"""Linear layers on a CPU: the same product by another library, and only where it may be called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gristmill.kernels import cpu_linear as module
from gristmill.kernels.cpu_linear import cpu_linear, has_onednn
from gristmill.model.linear import project

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="no oneDNN, or a processor without AVX2")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24), (1, 130, 24), (0, 24)], ids=str)
def test_it_is_the_product(shape, bias):
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(shape)
    exact = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    with torch.inference_mode():
        found = cpu_linear(x, layer.weight, layer.bias)
    assert found.shape == (*shape[:-1], 40)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_strided_inputs_and_weights_are_read_as_they_are():
    x, weight = torch.randn(6, 48)[:, ::2], torch.randn(24, 40).t()
    with torch.inference_mode():
        torch.testing.assert_close(cpu_linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cpu_linear(x, weight.contiguous()), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_it_is_called_for_float32_in_inference_mode_alone(monkeypatch):
    calls = []
    known = torch.ops.mkldnn._linear_pointwise.default
    spy = type("Spy", (), {"default": staticmethod(lambda *a: calls.append(a) or known(*a))})
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    with torch.inference_mode():
        project(layer, x)
        assert len(calls) == 1
        project(layer.double(), x.double())
        with torch.autocast("cpu"):
            project(nn.Linear(8, 8), x)
    project(nn.Linear(8, 8), x).sum().backward()
    with torch.no_grad():
        project(nn.Linear(8, 8), x)
    assert len(calls) == 1


def test_without_onednn_the_layer_is_called(monkeypatch):
    monkeypatch.setattr(module, "has_onednn", lambda dtype: False)
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with torch.inference_mode():
        assert torch.equal(cpu_linear(x, weight), F.linear(x, weight))


def is_the_product(weight):
    x = torch.randn(3, 256).to(weight.dtype)
    with torch.inference_mode():
        found = cpu_linear(x, weight).double()
    expected = F.linear(x.double(), weight.double())
    return (found - expected).norm() < (1e-5 if weight.dtype == torch.float32 else 1e-2) * expected.norm()


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_weight_is_kept_in_blocks_until_it_changes(monkeypatch, dtype):
    monkeypatch.setattr(module, "_has_room", lambda size: True)
    weight = torch.randn(300, 256).to(dtype)
    assert is_the_product(weight)
    if not has_onednn(dtype):
        return
    state, copy = module._BLOCKED[weight]
    assert copy.is_mkldnn
    assert is_the_product(weight)
    assert module._BLOCKED[weight][1] is copy
    weight.mul_(-2)
    assert is_the_product(weight)
    assert module._BLOCKED[weight][0] != state
    with torch.inference_mode():
        weight.copy_(torch.randn(300, 256))
    assert is_the_product(weight)
    weight.data = torch.randn(300, 256).to(dtype)
    assert is_the_product(weight)
    torch._foreach_lerp_([weight], [torch.randn(300, 256).to(dtype)], 0.5)
    assert is_the_product(weight)
    count = len(module._BLOCKED)
    del weight
    assert len(module._BLOCKED) == count - 1, "the copy outlives its weight"


@needs_onednn
@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {}], ids=str)
def test_weights_in_training_are_read_as_they_are(monkeypatch, how):
    monkeypatch.setattr(module, "_has_room", lambda size: True)
    layer, x = nn.Linear(256, 300), torch.randn(3, 256)
    for _ in range(2):
        layer(x).sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.5, **how).step()
        with torch.inference_mode():
            torch.testing.assert_close(project(layer, x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-3)


@needs_onednn
def test_no_copy_is_made_of_what_is_small_or_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(module, "_has_room", lambda size: False)
    weight, small = torch.randn(300, 256), torch.randn(30, 25)
    with torch.inference_mode():
        assert module._blocked(small) is small
        assert module._blocked(weight) is weight
        inside = torch.randn(300, 256)  # its changes are not counted
        monkeypatch.setattr(module, "_has_room", lambda size: True)
        assert module._blocked(inside) is inside


def test_weights_of_other_types_are_left_to_them():
    class Shared(torch.Tensor):
        pass

    with torch.inference_mode():
        x, weight = torch.randn(3, 8), torch.randn(4, 8)
        assert module.fits(x, weight)
        assert module.fits(x, nn.Parameter(weight))
        assert not module.fits(x, weight.as_subclass(Shared))
        assert not module.fits(x.as_subclass(Shared), weight)


def test_compiling_goes_through_it():
    layer, x = nn.Linear(24, 40), torch.randn(3, 24)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: project(layer, x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_layers_of_other_kinds_and_those_with_hooks_are_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 8)
    layer, seen = nn.Linear(8, 8), []
    layer.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.inference_mode():
        doubled = Doubled(8, 8)
        assert torch.equal(project(doubled, x), doubled(x))
        out = project(layer, x)
    assert seen[0] is out
