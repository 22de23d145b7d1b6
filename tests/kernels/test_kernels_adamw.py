"""The kernel of AdamW beside torch's own, and the optimizer that takes one or the other."""

import os

import pytest
import torch
from torch.optim.adamw import adamw

from gristmill.train.optimizers import adamw as optimizer

RATE, BETAS, EPS, DECAY = 0.02, (0.9, 0.99), 1e-6, 0.1


@pytest.fixture
def kernel():
    """The kernel as Triton's interpreter runs it, without a GPU."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.adamw_triton import adamw_kernel

    return adamw_kernel


def tensors(count, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(count)
    first, second, third, fourth = torch.randn(4, count, generator=generator)
    return [x.to(device, dtype) for x in (first, second, 0.1 * third, 0.1 * fourth.square())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_it_is_torchs_step(kernel, dtype, skip):
    ours, theirs = tensors(4999, dtype), tensors(4999, dtype)
    step, scale, found = torch.tensor(6.0), torch.tensor(2.5), torch.tensor(skip)
    weight, gradient, first, second = theirs
    state = [gradient], [first], [second], [], [step]
    shape = {"beta1": BETAS[0], "beta2": BETAS[1], "lr": RATE, "weight_decay": DECAY, "eps": EPS, "maximize": False}
    adamw([weight], *state, fused=True, amsgrad=False, grad_scale=scale, found_inf=found, **shape)
    rates = torch.tensor([RATE / (1 - BETAS[0] ** 7), (1 - BETAS[1] ** 7) ** -0.5])
    kernel(*ours, rates, scale, found, BETAS, RATE * DECAY, EPS)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    for mine, its in zip((ours[0], *ours[2:]), (theirs[0], *theirs[2:]), strict=True):
        torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours[0], tensors(4999, dtype)[0]) == bool(skip)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_large_and_small_tensors_are_updated_alike(monkeypatch):
    ends = []
    for large in (1, 2**40):
        monkeypatch.setattr(optimizer, "LARGE", large)
        weights = [torch.nn.Parameter(tensors(count, torch.float32, "cuda")[0]) for count in (7, 5000, 2**16)]
        group = {"params": weights, "lr": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
        stepper = optimizer.AdamW([group])
        stepper.grad_scale = torch.full((), 2.5, device="cuda")
        for step in range(4):
            for weight in weights:
                weight.grad = tensors(weight.numel() + step, torch.float32, "cuda")[1][: weight.numel()].contiguous()
            stepper.found_inf = torch.full((), float(step == 2), device="cuda")
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes the state
            try:
                stepper.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert [stepper.state[weight]["step"].item() for weight in weights] == [3, 3, 3]
        ends.append(weights)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
