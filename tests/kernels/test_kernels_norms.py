"""The norm kernel beside its reference, and the reference beside the model's own norms."""

import os

import pytest
import torch

from gristmill.kernels.norms import Norm, add_norm, add_norm_reference, norm_add, norm_add_reference
from gristmill.model.norms import LayerNorm, OffsetLayerNorm, OffsetRMSNorm, RMSNorm

# centred, offset, bias
KINDS = [(False, False, False), (False, True, False), (True, False, True), (True, False, False), (True, True, True)]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def example(kind, shape=(5, 40), dtype=torch.float32, device="cpu"):
    centred, offset, bias = kind
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    draw = lambda *size: torch.randn(*size, generator=generator).to(dtype).to(device)  # noqa: E731
    norm = Norm(draw(shape[1]), 1e-3, draw(shape[1]) if bias else None, centred, offset)
    return 2 * draw(*shape) + 0.3, norm, draw(*shape)


@pytest.fixture
def kernels():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.norms_triton import add_norm_kernel, norm_add_kernel

    return add_norm_kernel, norm_add_kernel


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_models_own_norm(kind):
    centred, offset, bias = kind
    x, norm, residual = example(kind)
    if centred:
        own = OffsetLayerNorm(40, 1e-3, bias) if offset else LayerNorm(40, 1e-3, bias=bias)
    else:
        own = OffsetRMSNorm(40, 1e-3) if offset else RMSNorm(40, eps=1e-3)
    own.load_state_dict({"weight": norm.weight_C} | ({"bias": norm.bias_C} if bias else {}))
    normed, total = add_norm(x, norm, residual)
    torch.testing.assert_close(normed, own(x + residual), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
    torch.testing.assert_close(add_norm(x, norm)[0], own(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm_add(x, norm, residual), residual + own(x), rtol=1e-5, atol=1e-6)


def compare(functions, x, norm, residual, tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    for found, expected in (
        (functions[0](x, norm, residual), add_norm_reference(x, norm, residual)),
        (functions[0](x, norm), add_norm_reference(x, norm)),
    ):
        torch.testing.assert_close(found[0], expected[0], **close)
        torch.testing.assert_close(found[1], expected[1], **close)
    torch.testing.assert_close(functions[1](x, norm, residual), norm_add_reference(x, norm, residual), **close)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 16), (2, 577)])
def test_the_kernels_are_their_reference(kernels, kind, shape, dtype):
    compare(kernels, *example(kind, shape, dtype), TOLERANCES[dtype])


def test_rows_may_be_strided(kernels):
    x, norm, residual = example((False, False, False), (4, 50))
    wide, other = torch.randn(4, 70), torch.randn(4, 60)
    wide[:, 10:60], other[:, :50] = x, residual
    compare(kernels, wide[:, 10:60], norm, other[:, :50], 2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 576), (9, 577), (300, 4096), (33, 16384)])
def test_the_compiled_kernels_are_their_reference(kind, shape, dtype):
    pytest.importorskip("triton")
    x, norm, residual = example(kind, shape, dtype, "cuda")
    compare((add_norm, norm_add), x, norm, residual, TOLERANCES[dtype])
    whole = add_norm(x, norm, residual)[0]
    assert torch.equal(add_norm(x[-1:], norm, residual[-1:])[0], whole[-1:]), "a row depends on the others"
