import math

import pytest
import torch
import torch.nn.functional as F

from gristmill.train import losses
from gristmill.train.losses import chunk_tokens, cross_entropy_and_z_loss


def weighted_cross_entropy(*arguments, **options):
    """The loss alone."""
    return cross_entropy_and_z_loss(*arguments, **options)[0]


@pytest.mark.parametrize("chunk", [3, 512])
def test_chunked_cross_entropy_equals_torchs_with_its_gradients(monkeypatch, chunk):
    monkeypatch.setattr(losses, "chunk_tokens", lambda *_: chunk)
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64).float().requires_grad_()
    head = torch.randn(17, 8).requires_grad_()
    targets = torch.randint(0, 17, (11,))
    weights = torch.tensor([1.0, 0, 1, 1, 0, 2, 1, 1, 0, 0.5, 1])
    ours = weighted_cross_entropy(hidden, head, targets, weights)
    (3 * ours).backward()
    grads = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    theirs = (F.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    (3 * theirs).backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads[0], hidden.grad)
    torch.testing.assert_close(grads[1], head.grad)


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_chunked_cross_entropy_bends_the_logits_as_the_decoder_does(monkeypatch, scale, softcap):
    monkeypatch.setattr(losses, "chunk_tokens", lambda *_: 4)
    torch.manual_seed(1)
    inputs = [
        torch.randn(11, 8).requires_grad_(),
        torch.randn(17, 8).requires_grad_(),
        torch.randn(17).requires_grad_(),
    ]
    targets, weights = torch.randint(0, 17, (11,)), torch.rand(11)
    ours = weighted_cross_entropy(*inputs[:2], targets, weights, inputs[2], scale, softcap)
    grads = torch.autograd.grad(ours * 2, inputs)
    logits = scale * (inputs[0] @ inputs[1].T + inputs[2])
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    theirs = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs * 2, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [4, 11])
def test_z_loss_adds_the_squared_log_of_the_softmaxs_sum(monkeypatch, chunk, dtype):
    monkeypatch.setattr(losses, "chunk_tokens", lambda *_: chunk)
    torch.manual_seed(2)
    hidden = torch.randn(11, 8).to(dtype).requires_grad_()
    head, bias = torch.randn(17, 8).to(dtype).float().requires_grad_(), torch.randn(17).requires_grad_()
    targets, weights = torch.randint(0, 17, (11,)), torch.rand(11)
    total, squares = cross_entropy_and_z_loss(hidden, head, targets, weights, bias, 0.7, 4.0, 0.05)
    grads = torch.autograd.grad(total * 2, (hidden, head, bias))
    logits = 4.0 * torch.tanh(0.7 * (hidden.float() @ head.T + bias) / 4.0)
    expected = 0.05 * (weights * logits.logsumexp(-1).square()).sum()
    whole = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() + expected
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(squares, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(total, whole, rtol=tolerance, atol=tolerance)
    assert not squares.requires_grad
    for one, other in zip(grads, torch.autograd.grad(whole * 2, (hidden, head, bias)), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=4 * tolerance)


def test_the_products_run_in_the_type_of_the_hidden_states_also_under_autocast():
    inputs = torch.randn(11, 8), torch.randn(17, 8), torch.randint(0, 17, (11,)), torch.rand(11)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weighted_cross_entropy(*inputs), weighted_cross_entropy(*inputs))
        lower = weighted_cross_entropy(*inputs)
    assert torch.equal(lower, weighted_cross_entropy(*inputs))


def test_the_heads_gradient_is_summed_in_float32(monkeypatch):
    """400 summands of about 2^-9 of the whole would each be lost in bfloat16."""
    hidden, head = torch.ones(400, 1, dtype=torch.bfloat16), torch.zeros(2, 1, requires_grad=True)
    monkeypatch.setattr(losses, "chunk_tokens", lambda *_: 1)
    weighted_cross_entropy(hidden, head, torch.zeros(400, dtype=torch.int64), torch.ones(400)).backward()
    assert head.grad.flatten().tolist() == [-200, 200]


def test_no_tokens_cost_nothing():
    hidden, head = torch.randn(0, 8).requires_grad_(), torch.randn(17, 8).requires_grad_()
    bias = torch.randn(17).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    loss = weighted_cross_entropy(hidden, head, none, none.float(), bias)
    loss.backward()
    assert loss.item() == 0
    assert not head.grad.any()
    assert not bias.grad.any()


@pytest.mark.parametrize(
    ("count", "vocab", "dtype", "device"),
    [
        (65536, 49152, torch.bfloat16, "cuda"),
        (16384, 128256, torch.bfloat16, "cuda"),
        (65536, 49152, torch.float32, "cuda"),
        (100, 49152, torch.bfloat16, "cuda"),
        (2048, 4096, torch.float32, "cpu"),
        (5, 4096, torch.bfloat16, "cpu"),
    ],
)
def test_chunks_stay_within_their_memory_and_are_equal(count, vocab, dtype, device):
    size = chunk_tokens(count, vocab, dtype, device)
    chunks = -(-count // size)
    least, memory = (256, 2**23) if device == "cpu" else (8192, 2**29)
    tile = 1 if device == "cpu" else 128
    # no larger than allowed, and one chunk fewer would be
    assert size <= max(memory // (vocab * (4 if device == "cpu" else dtype.itemsize)), least) + tile - 1
    assert size >= 1
    assert count - (chunks - 1) * size > size - tile * chunks


def test_without_gradients_none_are_made(monkeypatch):
    inputs = torch.randn(11, 8).requires_grad_(), torch.randn(17, 8).requires_grad_()
    targets, weights = torch.randint(0, 17, (11,)), torch.rand(11)
    expected = weighted_cross_entropy(*inputs, targets, weights)

    def refuse(*_, **__):
        raise AssertionError("a gradient was made room for")

    for name in ("zeros_like", "empty_like"):
        monkeypatch.setattr(torch, name, refuse)
    with torch.no_grad():
        assert torch.equal(weighted_cross_entropy(*inputs, targets, weights), expected)


def test_uniform_logits_cost_log_of_the_vocabulary():
    loss = weighted_cross_entropy(torch.zeros(4, 8), torch.randn(32, 8), torch.arange(4), torch.ones(4))
    assert loss.item() == pytest.approx(4 * math.log(32), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("chunk", [128, 4096], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_the_loss_and_its_gradients_are_the_processors(dtype, chunk, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    hidden, head = (torch.randn(size, 64, generator=generator).to(dtype).float() for size in (1000, 3001))
    targets, weights = torch.randint(0, 3001, (1000,), generator=generator), torch.rand(1000, generator=generator)
    bias = torch.randn(3001, generator=generator)

    def learn(device, of_type):
        tensors = hidden.to(device, of_type).requires_grad_(), head.to(device).requires_grad_()
        more = bias.to(device).requires_grad_()
        total = weighted_cross_entropy(*tensors, targets.to(device), weights.to(device), more, 0.2, 5.0, 1e-3)
        return [total.detach(), *torch.autograd.grad(total, (*tensors, more))]

    expected = learn("cpu", torch.float32)
    monkeypatch.setattr(losses, "chunk_tokens", lambda *_: chunk)
    found = [tensor.float().cpu() for tensor in learn("cuda", dtype)]
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_a_second_derivative_is_refused_and_a_second_pass_is_not():
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(7, 8, requires_grad=True)
    loss = weighted_cross_entropy(hidden, head, torch.arange(5), torch.ones(5))
    first, again = (torch.autograd.grad(3 * loss, (hidden, head), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))
    factor = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(factor * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
