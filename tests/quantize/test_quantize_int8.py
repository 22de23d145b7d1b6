"""Rounding to INT8: closed forms, and the compressed-tensors library as the judge."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as library_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as library_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.quantize.int8 import dequantize, quantize_rows, relative_error
from gristmill.weights.compressed import QuantizedRows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ARGS = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")


def random_matrix(rows: int, columns: int, seed: int, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    outliers = torch.randn(rows, 1, generator=generator).exp()
    return torch.randn(rows, columns, generator=generator) * outliers * size


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-3, 0.02, 1.0, 50.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_no_weight_moves_by_more_than_half_a_step(rows, columns, seed, size, dtype):
    weight = random_matrix(rows, columns, seed, size)
    quantized = quantize_rows(weight, "w", dtype)
    assert quantized.scale.dtype == dtype
    assert quantized.values.dtype == torch.int8
    scale = quantized.scale.float()
    slack = 1 + 1e-5  # float32 rounding of the quotient and the product
    assert ((weight - dequantize(quantized)).abs() <= scale / 2 * slack + weight.abs() * 1e-6).all()
    # The step is no larger than it must be: max|w| / 127.5, rounded up by one unit of the scale's type at most.
    exact = weight.abs().amax(1, keepdim=True) / 127.5
    unit = torch.finfo(dtype).eps * exact + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert (scale >= exact).all()
    assert (scale <= exact + unit * 1.01).all()


def test_values_by_hand():
    weight = torch.tensor([[127.5, -127.5, 1.0, 0.4, -0.6], [0.0, 0.0, 255.0, -2.0, 3.2]])
    quantized = quantize_rows(weight, "w")
    assert quantized.scale.flatten().tolist() == [1.0, 2.0]
    assert quantized.values.tolist() == [[127, -128, 1, 0, -1], [0, 0, 127, -1, 2]]


def test_the_library_gives_the_same_integers():
    weight = random_matrix(16, 64, seed=5)
    quantized = quantize_rows(weight, "w")
    scale, zero_point = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), ARGS)
    assert torch.equal(quantized.scale, scale)
    values = library_quantize(weight, scale, zero_point, ARGS, dtype=torch.int8)
    assert torch.equal(quantized.values, values)
    assert torch.equal(dequantize(quantized), library_dequantize(values, scale, args=ARGS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_stay_zeros(dtype):
    weight = torch.zeros(3, 5)
    weight[1, 2] = 4.0
    quantized = quantize_rows(weight, "w", dtype)
    assert (quantized.scale > 0).all()
    assert torch.equal(dequantize(quantized)[[0, 2]], torch.zeros(2, 5))
    assert dequantize(quantized)[1, 2].item() == pytest.approx(4.0, rel=1e-2)
    assert relative_error(torch.zeros(2, 2), quantize_rows(torch.zeros(2, 2), "w")) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_quantized_as_the_numbers_they_are(dtype):
    weight = random_matrix(4, 12, seed=1).to(dtype)
    left, right = quantize_rows(weight, "w"), quantize_rows(weight.float(), "w")
    assert torch.equal(left.values, right.values)
    assert torch.equal(left.scale, right.scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(value):
    weight = torch.ones(2, 3)
    weight[1, 1] = value
    with pytest.raises(GristmillError, match=r"layers\.3\.o_proj"):
        quantize_rows(weight, "layers.3.o_proj")


def test_weights_too_large_for_float16_scales_are_refused_by_name():
    weight = torch.full((1, 2), 1e7)
    assert torch.isfinite(quantize_rows(weight, "big", torch.bfloat16).scale).all()
    with pytest.raises(GristmillError, match="big"):
        quantize_rows(weight, "big", torch.float16)


def test_relative_error_is_a_ratio_of_norms():
    weight = torch.tensor([[3.0, 4.0]])
    off_by_one = QuantizedRows(torch.tensor([[3, 3]], dtype=torch.int8), torch.ones(1, 1))
    assert relative_error(weight, off_by_one) == pytest.approx(1 / 5)
