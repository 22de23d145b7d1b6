"""The cross-entropy kernel beside its reference, and the reference beside autograd."""

import os

import pytest
import torch
import torch.nn.functional as F

from gristmill.kernels.cross_entropy import LogitShape, cross_entropy_, cross_entropy_reference

VARIANTS = [
    # tokens, vocabulary, scale, soft-cap, bias, z-loss
    (5, 17, 1.0, None, False, 0.0),
    (4, 8192, 1.0, None, False, 1e-3),
    (3, 9001, 0.5, None, True, 0.0),
    (6, 300, 2.0, 3.0, True, 0.1),
    (2, 16500, 1.0, 30.0, False, 1e-4),
    (4, 1, 1.0, None, False, 0.1),
]
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def example(tokens, vocab, scale, softcap, bias, z_loss, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(tokens * vocab)
    products = (3 * torch.randn(tokens, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[0], targets[-1] = vocab - 1, 0
    weights = 2 * torch.rand(tokens, generator=generator)
    weights[1] = 0
    bias = torch.randn(vocab, generator=generator).to(device) if bias else None
    shape = LogitShape(scale, softcap, bias)
    return products.to(device), targets.to(device), weights.to(device), shape, z_loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_is_what_autograd_says(variant):
    products, targets, weights, shape, z_loss = example(*variant)
    leaf = products.clone().requires_grad_()
    logits = shape.scale * (leaf if shape.bias_V is None else leaf + shape.bias_V)
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    squares = z_loss * weights * logits.logsumexp(-1).square()
    expected = weights * F.cross_entropy(logits, targets, reduction="none") + squares
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    loss, square = cross_entropy_reference(products, targets, weights, shape, z_loss)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(square, squares, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products, gradient, rtol=1e-5, atol=1e-6)


@pytest.fixture
def kernel():
    """The kernel as Triton's interpreter runs it, without a GPU; Triton looks for it when it is first imported."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.cross_entropy_triton import cross_entropy_kernel

    return cross_entropy_kernel


def compare(function, arguments, tolerance):
    products, *others = arguments
    ours, theirs = products.clone(), products.clone()
    found, expected = function(ours, *others), cross_entropy_reference(theirs, *others)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=1e-6)
    assert (ours[1] == 0).all()
    assert found[0][1] == 0


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernel_is_its_reference(kernel, variant, dtype):
    compare(kernel, example(*variant, dtype=dtype), TOLERANCES[dtype])


def test_the_kernel_takes_rows_that_are_strided(kernel):
    wide = torch.randn(4, 50)
    before = wide.clone()
    arguments = torch.tensor([1, 2, 3, 4]), torch.ones(4), LogitShape()
    expected = wide[:, :40].clone()
    loss, _ = cross_entropy_reference(expected, *arguments)
    found, _ = kernel(wide[:, :40], *arguments)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(wide[:, :40], expected)
    assert torch.equal(wide[:, 40:], before[:, 40:])


@pytest.mark.parametrize("tokens", [0, 3])
def test_without_gradients_the_kernel_writes_none(kernel, tokens):
    products = torch.randn(tokens, 40)
    before, targets = products.clone(), torch.arange(tokens)
    loss, square = kernel(products, targets, torch.ones(tokens), LogitShape(), 0.5, learn=False)
    expected = cross_entropy_reference(products.clone(), targets, torch.ones(tokens), LogitShape(), 0.5, learn=False)
    assert torch.equal(products, before)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(square, expected[1])


def test_a_logit_that_is_not_a_number_shows_in_its_token_alone(kernel):
    products = torch.randn(3, 40)
    products[1, 7] = float("nan")
    for function in (kernel, cross_entropy_reference):
        loss, _ = function(products.clone(), torch.arange(3), torch.ones(3), LogitShape())
        assert loss.isnan().tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "variant", [*VARIANTS, (300, 49152, 1.0, None, False, 1e-4), (9, 128256, 1.0, 30.0, True, 0.0)]
)
def test_the_compiled_kernel_is_its_reference(variant, dtype):
    pytest.importorskip("triton")
    compare(cross_entropy_, example(*variant, dtype=dtype, device="cuda"), TOLERANCES[dtype])
