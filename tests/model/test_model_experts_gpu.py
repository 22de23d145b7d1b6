"""Mixtures of experts on a GPU: no wait for the device in the grouped path, and the same numbers as on the CPU."""

import copy

import pytest
import torch

from gristmill.model import experts as room
from gristmill.model.config import Experts, ModelConfig
from gristmill.model.experts import MixtureOfExperts, mark_padding, router_losses, update_selection_bias

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


def mixture(**experts) -> MixtureOfExperts:
    chosen = {"num_experts": 8, "top_k": 2, "intermediate_size": 48, "shared_intermediate_size": 32} | experts
    heads = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 32}
    sizes = {"vocab_size": 8, "hidden_size": 64, "num_layers": 1, "intermediate_size": 64, "max_seq_len": 64}
    torch.manual_seed(0)
    return MixtureOfExperts(ModelConfig(**heads, **sizes, experts=Experts(**chosen)), 0)


CASES = {
    "dropless": {"z_loss_weight": 0.1},
    "bias-and-groups": {"balance": "bias", "router": "sigmoid", "num_groups": 4, "top_groups": 2},
    "capacity": {"capacity_factor": 0.75},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_never_waits_for_the_device_and_agrees_with_float32_on_the_cpu(case, padded):
    layer = mixture(**CASES[case])
    on_gpu = copy.deepcopy(layer).cuda()
    x = torch.randn(4, 32, 64)
    upstream = torch.randn(4, 32, 64)
    padding = (torch.arange(32) >= 25).expand(4, 32) if padded else None
    gpu_x, gpu_upstream = x.cuda().requires_grad_(), upstream.cuda()
    gpu_padding = None if padding is None else padding.cuda()
    # Rows without an expert are never written: what was left in that memory must not reach the result.
    torch.full((1 << 24,), float("nan"), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mark_padding(on_gpu, gpu_padding)
        with torch.autocast("cuda", torch.bfloat16):
            out = on_gpu(gpu_x)
        counts = on_gpu.routed.counts
        loss = router_losses(on_gpu)
        torch.autograd.backward(((out.float() * gpu_upstream).sum() + loss,))
        update_selection_bias(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mark_padding(layer, padding)
    expected = layer(x)
    assert torch.equal(layer.routed.counts, counts.cpu())
    expected_loss = router_losses(layer)
    ((expected * upstream).sum() + expected_loss).backward()
    update_selection_bias(layer)
    assert torch.allclose(loss.cpu(), expected_loss, rtol=1e-4)
    assert (out.float().cpu() - expected).abs().max() < 0.02 * expected.abs().max()
    assert layer.selection_bias is None or torch.equal(on_gpu.selection_bias.cpu(), layer.selection_bias)
    for (name, mine), other in zip(on_gpu.named_parameters(), layer.parameters(), strict=True):
        assert (mine.grad.cpu() - other.grad).abs().max() < 0.03 * other.grad.abs().max() + 1e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_grouped_products_are_those_of_the_loop(dtype):
    ends = torch.tensor([3, 3, 40, 60], dtype=torch.int32, device="cuda")
    x = torch.randn(64, 32, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn(4, 48, 32, device="cuda").to(dtype).requires_grad_()
    upstream = torch.randn(64, 48, device="cuda").to(dtype)
    upstream[60:] = 0
    assert room.grouped_mm_runs(x, weight)
    results = []
    for product in (room.grouped_linear, room.loop_linear):
        y = product(x, weight, ends)
        dx, dw = torch.autograd.grad(y, (x, weight), upstream)
        results.append((y[:60], dx[:60], dw))
    for grouped, loop in zip(*results, strict=True):
        assert torch.allclose(grouped.float(), loop.float(), rtol=2e-2, atol=0.2 if dtype != torch.float32 else 1e-2)


def test_it_compiles_to_one_graph_in_bfloat16():
    layer = mixture(z_loss_weight=0.1).cuda().bfloat16()
    x = torch.randn(4, 32, 64, device="cuda").bfloat16()
    expected = layer(x)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    got = compiled(x)
    got.float().sum().backward()
    assert (got.float() - expected.float()).abs().max() < 0.02 * expected.abs().max()
