"""The kernel between the projections and attention beside its reference, and the reference beside the model's own
rotary positions and norms."""

import os
from typing import NamedTuple

import pytest
import torch

from gristmill.kernels.norms import Norm
from gristmill.kernels.rope_kv import PagedLayer, Turning, rope_kv, rope_kv_reference
from gristmill.model.config import ModelShape, RopeScaling
from gristmill.model.norms import OffsetRMSNorm, RMSNorm
from gristmill.model.positions import attention_factor, rotary_frequencies, rotate, rotations

SCALINGS = {
    "plain": None,
    "linear": RopeScaling(kind="linear", factor=2.0, original_max_seq_len=16),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=16),
    "llama3": RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=32),
    "dynamic": RopeScaling(kind="dynamic", factor=2.0, original_max_seq_len=8),
}


class Case(NamedTuple):
    heads: int
    kv_heads: int
    width: int
    pairs: int
    block_size: int = 4
    norm: bool = False
    offset: bool = False


CASES = [
    Case(3, 1, 8, 4),
    Case(4, 2, 16, 8, 16, norm=True),
    Case(6, 3, 20, 4, norm=True, offset=True),
    Case(2, 2, 12, 0, 8),
    Case(2, 1, 12, 6, norm=True),
    Case(9, 3, 64, 32, 16),
    Case(2, 1, 10, 0, norm=True),
]
STORED = {"auto": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
# Tokens of three sequences in slots 2, 0 and 3, and one that pads the batch.
POSITIONS = [0, 1, 2, 3, 4, 17, 30, 31, -1]
SLOTS = [2, 2, 2, 2, 2, 0, 3, 3, 0]


def example(case, dtype=torch.float32, stored=None, device="cpu"):
    generator = torch.Generator().manual_seed(case.width * case.heads)
    draw = lambda *size: torch.randn(*size, generator=generator).to(dtype).to(device)  # noqa: E731
    per_sequence = 32 // case.block_size
    blocks = 4 * per_sequence + 1
    table = torch.randperm(blocks, generator=generator)[:-1].view(4, per_sequence).int().to(device)
    shape = (blocks, case.block_size, case.kv_heads)
    keys, values = (torch.zeros(*shape, case.width, device=device).to(stored or dtype) for _ in range(2))
    scales = [torch.zeros(shape, device=device) if stored else None for _ in range(2)]
    layer = PagedLayer(keys, values, table, *scales)
    frequencies = 10.0 ** -torch.arange(case.pairs, device=device).float().div(max(case.pairs, 1))
    turning = Turning(frequencies, 1.25) if case.pairs else None
    if turning is not None and case.norm:
        turning = turning.with_table(32)
    norms = [Norm(draw(case.width), 1e-3, offset=case.offset) if case.norm else None for _ in range(2)]
    qkv = draw(len(POSITIONS), (case.heads + 2 * case.kv_heads) * case.width)
    # Views with a stride, as of a table that was sent at once.
    positions, slots = torch.tensor(list(zip(POSITIONS, SLOTS, strict=True)), device=device).unbind(1)
    return qkv, positions, slots, layer, turning, *norms


def own_copy(arguments):
    """The same arguments with a cache of their own."""
    layer = arguments[3]
    fresh = [None if tensor is None else tensor.clone() for tensor in layer]
    return *arguments[:3], PagedLayer(*fresh), *arguments[4:]


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.rope_kv_triton import rope_kv_kernel

    return rope_kv_kernel


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_reference_is_the_models_own_way(kind, fraction, offset):
    heads, kv_heads, width = 4, 2, 16
    shape = ModelShape(
        hidden_size=64, num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=width, intermediate_size=8,
        max_seq_len=64, rope_fraction=fraction, rope_scaling=SCALINGS[kind], norm_unit_offset=offset,
    )  # fmt: skip
    torch.manual_seed(0)
    norms = [OffsetRMSNorm(width, 1e-5) if offset else RMSNorm(width, eps=1e-5) for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    positions, slots = torch.tensor([0, 7, 30, 13]), torch.tensor([1, 1, 1, 0])
    lengths = torch.tensor([31, 31, 31, 14])
    qkv = torch.randn(4, (heads + 2 * kv_heads) * width)
    table = torch.tensor([[3, 9], [2, 5]], dtype=torch.int32)
    layer = PagedLayer(torch.zeros(10, 16, kv_heads, width), torch.zeros(10, 16, kv_heads, width), table)
    frequencies = rotary_frequencies(shape.rotary_dim, 10_000.0, SCALINGS[kind], lengths, qkv.device)
    turning = Turning(frequencies, attention_factor(SCALINGS[kind]))
    q = rope_kv(qkv, positions, slots, layer, turning, *(Norm(norm.weight, 1e-5, offset=offset) for norm in norms))

    rotation = rotations(shape, positions[None], torch.float32, lengths[None])["full"]
    own_q, own_k, own_v = qkv.view(1, 4, -1, width).split([heads, kv_heads, kv_heads], dim=2)
    torch.testing.assert_close(q, rotate(norms[0](own_q), rotation)[0], rtol=1e-5, atol=1e-5)
    places = torch.tensor([2 * 16, 2 * 16 + 7, 5 * 16 + 14, 3 * 16 + 13])
    keys, values = layer.keys.flatten(0, 1), layer.values.flatten(0, 1)
    torch.testing.assert_close(keys[places], rotate(norms[1](own_k), rotation)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[places], own_v[0], rtol=0, atol=0)
    untouched = torch.ones(160, dtype=torch.bool)
    untouched[places] = False
    assert (keys[untouched] == 0).all()
    assert (values[untouched] == 0).all()


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
def test_a_narrow_cache_holds_keys_to_half_a_step(stored):
    arguments = example(CASES[1], stored=stored)
    exact = own_copy(example(CASES[1]))
    rope_kv_reference(*arguments)
    rope_kv_reference(*exact)
    for name in ("keys", "values"):
        scales = getattr(arguments[3], name[:-1] + "_scales")
        found = getattr(arguments[3], name).float() * scales[..., None]
        expected = getattr(exact[3], name)
        if stored == torch.int8:
            assert ((found - expected).abs() <= 0.5001 * scales[..., None]).all()
        else:  # three bits behind the point, and a smallest step of 2^-9
            assert ((found - expected).abs() <= expected.abs() / 16 + scales[..., None] * 2**-10).all()


def compare(function, arguments, tolerance):
    ours, theirs = own_copy(arguments), own_copy(arguments)
    found, expected = function(*ours), rope_kv_reference(*theirs)
    kept = arguments[1] >= 0  # the queries of a token that pads mean nothing, but are numbers
    torch.testing.assert_close(found[kept], expected[kept], rtol=tolerance, atol=tolerance)
    assert found.isfinite().all()
    for one, other in zip(ours[3], theirs[3], strict=True):
        if one is None:
            assert other is None
        elif one.dtype == torch.int8:  # a tie, or what rounding before made one, may fall to either side
            assert (one.int() - other.int()).abs().max() <= 1
            assert (one != other).float().mean() < 0.01
        elif one.dtype == torch.float8_e4m3fn and one.device.type == "cpu":
            # The interpreter cuts off bits, or rounds them up and loses the carry.
            assert ((one.float() - other.float()).abs() <= other.float().abs() / 8 + 2**-6).float().mean() > 0.98
        elif one.dtype == torch.float8_e4m3fn:
            assert (one.view(torch.int8).int() - other.view(torch.int8).int()).abs().max() <= 1
            assert (one.view(torch.int8) != other.view(torch.int8)).float().mean() < 0.01
        else:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_its_reference(kernel, case, dtype):
    compare(kernel, example(case, dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("case", CASES[:4])
def test_the_kernel_writes_narrow_caches(kernel, case, stored):
    compare(kernel, example(case, stored=stored), 1e-5)


def test_frequencies_may_differ_by_token(kernel):
    qkv, positions, slots, layer, turning, *norms = example(CASES[1])
    own = turning.frequencies * torch.linspace(0.5, 1, len(POSITIONS))[:, None]
    compare(kernel, (qkv, positions, slots, layer, Turning(own), *norms), 1e-5)


def test_a_token_that_pads_the_batch_touches_nothing(kernel):
    qkv, positions, slots, layer, *others = example(CASES[0])
    around = [torch.zeros(len(layer.keys) + 2, *layer.keys.shape[1:]) for _ in range(2)]  # a block before and behind
    layer = PagedLayer(around[0][1:-1], around[1][1:-1], layer.block_table_SM)
    for function in (kernel, rope_kv_reference):
        q = function(qkv, torch.full_like(positions, -1), torch.full_like(slots, 10**6), layer, *others)
        assert q.isfinite().all()
        assert (around[0] == 0).all()
        assert (around[1] == 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "case", [*CASES, Case(16, 8, 128, 64, 32, norm=True), Case(32, 8, 128, 64, 16), Case(8, 4, 256, 32, 32, norm=True)]
)
def test_the_compiled_kernel_is_its_reference(case, dtype, stored):
    pytest.importorskip("triton")
    compare(rope_kv, example(case, dtype, STORED[stored], "cuda"), TOLERANCES[dtype])
