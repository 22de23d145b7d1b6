"""The kernel of gated activations beside its reference, and the reference beside the model's feed-forward layer."""

import os

import pytest
import torch

from gristmill.kernels.swiglu import activate, gated_activation, gated_activation_reference, silu_product
from gristmill.model.feed_forward import ACTIVATIONS

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def example(rows, width, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(rows * width)
    return (3 * torch.randn(rows, 2 * width, generator=generator)).to(dtype).to(device)


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.swiglu_triton import gated_activation_kernel

    return gated_activation_kernel


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_is_the_models_own(activation):
    x = example(4, 9)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(activate(x, activation), ACTIVATIONS[activation](x), rtol=0, atol=0)
    torch.testing.assert_close(gated_activation(x, activation), ACTIVATIONS[activation](gate) * up, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (2, 1030)])
def test_the_kernel_is_its_reference(kernel, activation, shape, dtype):
    x = example(*shape, dtype)
    expected = gated_activation_reference(x, activation)
    torch.testing.assert_close(kernel(x, activation), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_rows_may_be_strided(kernel):
    wide = example(3, 40)
    x = wide[:, 4:24]
    torch.testing.assert_close(kernel(x, "silu"), gated_activation_reference(x, "silu"), rtol=2e-6, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1536), (7, 1037), (300, 14336)])
def test_the_compiled_kernel_is_its_reference(activation, shape, dtype):
    pytest.importorskip("triton")
    x = example(*shape, dtype, "cuda")
    expected = gated_activation_reference(x, activation)
    tolerance = max(TOLERANCES[dtype], 1e-5)
    torch.testing.assert_close(gated_activation(x, activation), expected, rtol=tolerance, atol=tolerance)


def product_and_gradient(x, dtype=torch.float64):
    """silu(gate) * up and its gradient for a weighted sum, by autograd."""
    exact = x.to(dtype).requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    product = torch.nn.functional.silu(gate) * up
    weights = torch.randn(product.shape, generator=torch.Generator().manual_seed(1), dtype=dtype).to(x.device)
    (gradient,) = torch.autograd.grad((product * weights).sum(), exact)
    return product.detach(), weights, gradient


def test_a_compiled_products_gradient_is_autograds():
    x = example(6, 9).view(2, 3, 18)
    product, weights, gradient = product_and_gradient(x)
    x.requires_grad_()
    compiled = torch.compile(silu_product, backend="aot_eager", fullgraph=True)
    mine = compiled(x)
    torch.testing.assert_close(mine, product.float())
    torch.testing.assert_close(torch.autograd.grad((mine * weights.float()).sum(), x)[0], gradient.float())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (2, 1030)])
def test_the_gradients_kernel_is_autograd(kernel, shape, dtype):
    from gristmill.kernels.swiglu_triton import silu_product_gradient_kernel

    x = example(*shape, dtype)
    _, weights, gradient = product_and_gradient(x)
    mine = silu_product_gradient_kernel(x, weights.to(dtype))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.double(), gradient, rtol=3 * TOLERANCES[dtype], atol=3 * TOLERANCES[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1536), (7, 1037), (300, 8192)])
def test_a_compiled_feed_forward_learns_as_written(shape, dtype):
    pytest.importorskip("triton")
    x = example(*shape, dtype, "cuda")
    product, weights, gradient = product_and_gradient(x)
    x.requires_grad_()
    mine = torch.compile(silu_product, fullgraph=True)(x)
    (found,) = torch.autograd.grad(mine, x, weights.to(dtype))
    tolerance = max(3 * TOLERANCES[dtype], 1e-5)
    torch.testing.assert_close(mine.detach().double(), product, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.double(), gradient, rtol=tolerance, atol=tolerance)
