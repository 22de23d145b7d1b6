"""Products in 8 bits: their numbers against rounding by hand, which layers they take, what training makes of them."""

import pytest
import torch
import torch.nn.functional as F
from live_bytes import forward, saved_bytes

from gristmill.model.attention import causal_attention
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.plan.activations import multiplied_in_fp8
from gristmill.train.activations import checkpoint_activations
from gristmill.train.fp8 import Float8Linear, scaled_product, to_float8, use_fp8

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
         "intermediate_size": 48, "max_seq_len": 32}  # fmt: skip
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def decoder(**fields):
    return Decoder(ModelConfig.model_validate(SHAPE | fields)).init_weights(0).train()


def rounded(tensor, mantissa_bits, largest):
    """tensor / scale rounded to so many bits behind the point, in float64 and without any type of 8 bits."""
    scale = tensor.abs().max().double() / largest
    scaled = tensor.double() / scale
    exponent = torch.floor(torch.log2(scaled.abs().clamp(min=2.0**-6)))
    step = 2.0 ** (exponent - mantissa_bits)
    return torch.round(scaled / step) * step * scale


def test_rounding_is_that_of_the_format():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    codes, scale = to_float8(x, E4M3)
    assert (codes.dtype, scale.dtype, scale.shape) == (E4M3, torch.float32, ())
    torch.testing.assert_close(codes.double() * scale.double(), rounded(x, 3, 448.0), rtol=1e-6, atol=1e-7)
    assert codes.float().abs().max() == 448
    assert to_float8(x, E5M2)[0].float().abs().max() == 57344


def test_zeros_stay_zeros_and_what_is_not_finite_shows():
    codes, scale = to_float8(torch.zeros(16, 16), E4M3)
    assert (codes.float() == 0).all()
    assert torch.isfinite(scale)
    for wrong in (float("nan"), float("inf")):
        x = torch.ones(16, 16)
        x[3, 4] = wrong
        ones, one = to_float8(torch.ones(16, 16), E4M3)
        assert not torch.isfinite(scaled_product(*to_float8(x, E4M3), ones, one, torch.float32)).all()


def test_the_three_products_are_those_of_the_rounded_numbers():
    generator = torch.Generator().manual_seed(0)
    linear = Float8Linear(32, 48)
    x = torch.randn(2, 16, 32, generator=generator, requires_grad=True)
    grad = torch.randn(2, 16, 48, generator=generator)
    out = linear(x)
    out.backward(grad)

    def by_hand(tensor, kind):
        codes, scale = to_float8(tensor.detach().flatten(0, -2), kind)
        return codes.double() * scale.double()

    x8, w8, g8 = by_hand(x, E4M3), by_hand(linear.weight, E4M3), by_hand(grad, E5M2)
    torch.testing.assert_close(out.flatten(0, 1).double(), x8 @ w8.T + linear.bias.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.flatten(0, 1).double(), g8 @ w8, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.weight.grad.double(), g8.T @ x8, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(linear.bias.grad, grad.sum((0, 1)))


@pytest.mark.parametrize("rows", [1, 13, 16, 19])
def test_rows_are_filled_up_to_what_the_hardware_takes_and_nothing_else_changes(rows, monkeypatch):
    """Numbers that 8 bits and their scale, a power of two, hold exactly: so are all sums, in any order."""
    generator = torch.Generator().manual_seed(0)

    def exact(*shape):
        numbers = torch.tensor([-1.75, -1, -0.5, 0, 0.5, 1, 1.75])[torch.randint(7, shape, generator=generator)]
        numbers[0, 0] = 1.75  # as large as the largest number of both types, but for a power of two
        return numbers

    linear = Float8Linear(32, 48)
    linear.weight.data.copy_(exact(48, 32))
    linear.bias.data.copy_(exact(1, 48)[0])
    x, grad = exact(rows, 32), exact(rows, 48)
    shapes = []

    def product(a, a_scale, b, b_scale, *more, **options):
        shapes.extend((*a.shape, *b.shape))
        return scaled_product(a, a_scale, b, b_scale, *more, **options)

    monkeypatch.setattr("gristmill.train.fp8.scaled_product", product)
    y = x.clone().requires_grad_()
    out = linear(y[None])
    out.backward(grad[None])
    assert out.shape == (1, rows, 48)
    assert all(size % 16 == 0 for size in shapes)
    assert len(shapes) == 12
    assert torch.equal(out[0], x @ linear.weight.T + linear.bias)
    assert torch.equal(y.grad, grad @ linear.weight)
    assert torch.equal(linear.weight.grad, grad.T @ x)
    assert torch.equal(linear.bias.grad, grad.sum(0))


def test_blocks_are_swapped_and_nothing_else():
    few = {"num_experts": 4, "top_k": 2, "intermediate_size": 16, "shared_intermediate_size": 16, "dense_layers": (0,)}
    model = decoder(tie_embeddings=False, experts=few)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert use_fp8(model, smallest_weight=1) == 4 + 2 + 2  # two projections a block, a dense layer and a shared one
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    swapped = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert all(name.startswith("blocks.") for name in swapped)
    assert not any("router" in name for name in swapped)
    assert type(model.head) is torch.nn.Linear
    assert use_fp8(model, smallest_weight=1) == 0, "already swapped"


def test_odd_widths_and_small_weights_stay():
    assert use_fp8(decoder(intermediate_size=20), smallest_weight=1) == 4  # 40 and 20 channels of feed-forward
    assert use_fp8(decoder()) == 0
    assert use_fp8(decoder(), smallest_weight=32 * 64) == 4, "the first products of both layers"
    assert multiplied_in_fp8(2048, 2048)
    assert not multiplied_in_fp8(576, 960)
    assert not multiplied_in_fp8(4096, 1000)


def test_evaluation_sees_the_weights_themselves():
    model, ids = decoder(), torch.arange(16)[None]
    with torch.no_grad():
        expected = model(ids)
    use_fp8(model, smallest_weight=1)
    with torch.no_grad():
        assert torch.equal(model(ids), expected)
    assert not torch.equal(model(ids), expected)


@pytest.mark.parametrize("mode", ["block", "selective"])
def test_checkpointing_gives_the_same_gradients(mode):
    model = decoder()
    use_fp8(model, smallest_weight=1)
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointing in ("none", mode):
        checkpoint_activations(model, checkpointing)
        model.zero_grad()
        forward(model, ids, "fp8").backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_inputs_are_kept_in_one_byte():
    plain, swapped = decoder(num_layers=2), decoder(num_layers=2)
    use_fp8(swapped, smallest_weight=1)
    ids = torch.zeros(4, 32, dtype=torch.long)
    assert saved_bytes(swapped, ids, "fp8", causal_attention) < saved_bytes(plain, ids, "bf16", causal_attention)


def test_it_learns_nearly_as_well():
    """The same tiny model and batches with and without: losses end within a few percent."""
    losses = {}
    for fp8 in (False, True):
        model = decoder()
        if fp8:
            assert use_fp8(model, smallest_weight=1) == 8
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            start = torch.randint(64, (16, 1), generator=generator)
            ids = (start + torch.arange(17)[None] * 3) % 64
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[fp8] = loss.item()
    assert losses[False] < 1.5, "it has learned something"
    assert losses[True] == pytest.approx(losses[False], rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [64, 53])
def test_on_a_gpu_the_products_agree_with_the_emulation(rows):
    generator = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((rows, 32), (48, 32), (rows, 48)))
    found = []
    for device in ("cpu", "cuda"):
        linear = Float8Linear(32, 48, bias=False, device=device)
        linear.weight.data.copy_(w)
        y = x.to(device, copy=True).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            out = linear(y)
        out.backward(g.to(device))
        found.append([out.detach().cpu().float(), y.grad.cpu().float(), linear.weight.grad.cpu().float()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
