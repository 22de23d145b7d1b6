"""The kernels of linear layers of a few rows beside their reference, and the reference beside the model's layers."""

import os
from typing import NamedTuple

import pytest
import torch

from gristmill.kernels.norms import Norm
from gristmill.kernels.small_linear import small_linear, small_linear_reference
from gristmill.model.config import ModelShape
from gristmill.model.feed_forward import FeedForward
from gristmill.model.norms import OffsetRMSNorm, RMSNorm


class Case(NamedTuple):
    rows: int
    outputs: int
    width: int
    bias: bool = False
    norm: bool = False
    offset: bool = False
    activation: str | None = None
    gated: bool = False
    residual: bool = False


CASES = [
    Case(1, 24, 64),
    Case(1, 7, 40, bias=True, residual=True),
    Case(3, 33, 96, norm=True, bias=True),
    Case(2, 20, 72, norm=True, offset=True, gated=True, activation="silu"),
    Case(3, 10, 530, bias=True, norm=True, gated=True, activation="gelu_tanh", residual=True),
    Case(2, 9, 1100, activation="relu2", residual=True),
    Case(17, 10, 64, norm=True, residual=True),
    Case(0, 8, 16),
]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def example(case, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(case.outputs * case.width)
    draw = lambda *size: torch.randn(*size, generator=generator).to(dtype).to(device)  # noqa: E731
    down = case.outputs * (2 if case.gated else 1)
    x, weight = draw(case.rows, case.width), draw(down, case.width) * case.width**-0.5
    norm = Norm(draw(case.width), 1e-3, offset=case.offset) if case.norm else None
    bias = draw(down) if case.bias else None
    residual = draw(case.rows, case.outputs) if case.residual else None
    return x, weight, bias, norm, case.activation, case.gated, residual


def exact(arguments):
    """The reference in float64, from the same numbers."""
    x, weight, bias, norm, activation, gated, residual = arguments
    wide = lambda tensor: None if tensor is None else tensor.double()  # noqa: E731
    if norm is not None:
        gains = norm.weight_C.double() + (1.0 if norm.offset else 0.0)
        x = x.double() * (x.double().square().mean(-1, keepdim=True) + norm.eps).rsqrt() * gains
    return small_linear_reference(wide(x), wide(weight), wide(bias), None, activation, gated, wide(residual))


def assert_near(found, arguments, tolerance):
    """Within `tolerance` of the float64 reference, relative to the whole: a sum's error is its largest terms'."""
    expected = exact(arguments)
    assert found.dtype == arguments[0].dtype
    assert found.shape == expected.shape
    assert found.isfinite().all()
    if found.numel():
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.small_linear_triton import small_linear_kernel

    return small_linear_kernel


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("activation", "gated"), [("silu", True), ("gelu_tanh", True), ("relu2", False)])
def test_the_reference_is_the_models_feed_forward(activation, gated, bias, offset):
    shape = ModelShape(
        hidden_size=12, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=12, intermediate_size=20, max_seq_len=8,
        activation=activation, gated=gated, mlp_bias=bias,
    )  # fmt: skip
    torch.manual_seed(0)
    layer, x = FeedForward(shape), torch.randn(3, 12)
    own = OffsetRMSNorm(12, 1e-5) if offset else RMSNorm(12, eps=1e-5)
    torch.nn.init.normal_(own.weight)
    norm = Norm(own.weight, 1e-5, offset=offset)
    first = layer.gate_up if gated else layer.up
    wide = small_linear(x, first.weight, first.bias, norm=norm, activation=activation, gated=gated)
    found = small_linear(wide, layer.down.weight, layer.down.bias, residual_MN=x)
    torch.testing.assert_close(found, x + layer(own(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("path", ["vector", "matrix"])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_are_their_reference(kernel, case, path, dtype):
    if path == "matrix" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices as integers")
    arguments = example(case, dtype)
    assert_near(kernel(*arguments, path=path), arguments, TOLERANCES[dtype])


@pytest.mark.parametrize("path", ["vector", "matrix"])
def test_rows_may_be_strided_and_nothing_behind_them_is_read(kernel, path):
    arguments = example(Case(3, 21, 70, residual=True))
    strided = []
    for tensor in (arguments[0], arguments[1], arguments[6]):
        wide = torch.full((tensor.shape[0], tensor.shape[1] + 9), float("nan"))
        wide[:, 2 : 2 + tensor.shape[1]] = tensor
        strided.append(wide[:, 2 : 2 + tensor.shape[1]])
    found = kernel(strided[0], strided[1], *arguments[2:6], strided[2], path=path)
    assert_near(found, arguments, 2e-6)


@pytest.mark.parametrize("path", ["vector", "matrix"])
def test_what_is_not_a_number_stays_in_its_row(kernel, path):
    arguments = example(Case(4, 20, 64, norm=True))
    arguments[0][2, 5] = float("nan")
    found = kernel(*arguments, path=path)
    assert found.isnan().all(dim=1).tolist() == [False, False, True, False]
    assert found[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("passes", "parts"), [(1, 9), (9, 1), (3, 3), (4, 3)])
def test_channels_are_divided_among_programs_and_passes(kernel, passes, parts, early):
    arguments = example(Case(3, 40, 530, bias=True, norm=True, gated=True, activation="silu", residual=True))
    tuning = {"BLOCK_K": 64, "PASSES": passes, "PARTS": parts, "EARLY": early}
    for _ in range(2):  # the second finds what the first has left of its tickets
        assert_near(kernel(*arguments, path="matrix", tuning=tuning), arguments, 2e-6)


def test_many_rows_add_up_the_parts_that_few_rows_share_out(kernel):
    """Over two blocks of rows, programs go through all of K themselves, with the same bits."""
    arguments = example(Case(37, 40, 530, norm=True, residual=True))
    x, residual = arguments[0], arguments[6]
    tuning = {"BLOCK_K": 64, "PASSES": 3, "PARTS": 3}
    whole = kernel(*arguments, path="matrix", tuning=tuning)
    for rows in (slice(0, 1), slice(5, 37)):
        part = kernel(x[rows], *arguments[1:6], residual[rows], path="matrix", tuning=tuning)
        assert torch.equal(part, whole[rows])


GPU_CASES = [
    Case(1, 960, 576, norm=True),
    Case(1, 576, 1536, residual=True),
    Case(4, 1536, 576, norm=True, gated=True, activation="silu"),
    Case(16, 1024, 3072, residual=True),
    Case(2, 4096, 1024, norm=True),
    Case(32, 1024, 2048, residual=True),
    Case(30, 3072, 1024, norm=True, gated=True, activation="silu"),
    Case(32, 576, 1536, residual=True),
    Case(48, 576, 576, norm=True, residual=True),
    Case(24, 4096, 14336, residual=True),
    Case(100, 4096, 1024, norm=True, bias=True),
    Case(8, 14336, 4096, norm=True, gated=True, activation="silu"),
    Case(1, 4099, 14336, residual=True),
    Case(33, 1000, 777, bias=True, norm=True, offset=True, gated=True, activation="gelu", residual=True),
]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("path", ["vector", "matrix"])
@pytest.mark.parametrize("case", [*CASES, *GPU_CASES])
def test_the_compiled_kernels_are_their_reference(case, path, dtype):
    pytest.importorskip("triton")
    x, weight, bias, norm, activation, gated, residual = arguments = example(case, dtype, "cuda")
    found = small_linear(
        x, weight, bias, norm=norm, activation=activation, gated=gated, residual_MN=residual, path=path
    )
    assert_near(found, arguments, TOLERANCES[dtype])


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("path", ["vector", "matrix"])
@pytest.mark.parametrize("case", [case for case in GPU_CASES if case.rows > 1])
def test_a_row_has_the_same_bits_in_every_batch(case, path):
    pytest.importorskip("triton")
    x, weight, bias, norm, activation, gated, residual = example(case, torch.bfloat16, "cuda")
    options = {"norm": norm, "activation": activation, "gated": gated, "path": path}
    whole = small_linear(x, weight, bias, residual_MN=residual, **options)
    for rows in (slice(0, 1), slice(case.rows - 1, case.rows), slice(1, case.rows)):
        part = None if residual is None else residual[rows]
        assert torch.equal(small_linear(x[rows], weight, bias, residual_MN=part, **options), whole[rows])


@pytest.mark.gpu
@gpu
def test_kernels_in_a_graph_that_start_early_wait_for_each_other():
    """A chain of products, each of the one before, replayed: a kernel that reads too early gives another number."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    weights = [torch.randn(576, 576, device="cuda", dtype=torch.bfloat16) / 24 for _ in range(60)]
    norm = Norm(torch.ones(576, device="cuda", dtype=torch.bfloat16), 1e-5)
    for rows in (1, 2, 8, 32):
        x = torch.randn(rows, 576, device="cuda", dtype=torch.bfloat16)

        def chain(start):
            for weight in weights:
                start = small_linear(start, weight, norm=norm, residual_MN=start)
            return start

        chain(x)
        torch.cuda.synchronize()
        slow = x
        for weight in weights:
            slow = small_linear(slow, weight, norm=norm, residual_MN=slow)
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain(x)
        for _ in range(20):
            found.fill_(float("nan"))
            graph.replay()
            assert torch.equal(found, slow)
