"""Precision: what auto stands for, what autocast multiplies in, and the scale of fp16's losses."""

import pytest
import torch

from gristmill import hardware
from gristmill.errors import GristmillError
from gristmill.train import precision
from gristmill.train.precision import LossScaler, autocast, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch, native, expected):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: native)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp16", CPU) == "fp16"
    with pytest.raises(GristmillError, match="precision 'bf17' is not known; use auto, fp32, bf16, fp8, fp16"):
        resolve_precision("bf17", CPU)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp8", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_run_in_the_type_and_weights_stay(name, kind):
    linear = torch.nn.Linear(8, 8)
    with autocast(name, CPU):
        out = linear(torch.ones(2, 8))
    assert out.dtype == kind
    assert linear.weight.dtype == torch.float32
    out.float().sum().backward()
    assert linear.weight.grad.dtype == torch.float32


def test_the_scale_halves_on_overflow_and_doubles_after_good_steps(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scaler = LossScaler("fp16", CPU)
    good, bad = torch.tensor(0.0), torch.tensor(1.0)
    seen = []
    for overflow in [good, good, good, bad, good, good, bad, good, good, good, good]:
        scaler.update(overflow)
        seen.append(scaler.scale.item() / 2**16)
    assert seen == [1, 1, 2, 1, 1, 1, 0.5, 0.5, 0.5, 1, 1]


def test_the_scale_agrees_with_torchs_own():
    scaler = LossScaler("fp16", CPU)
    scale, growth = torch.tensor(2.0**16), torch.zeros((), dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5000):
        overflow = (torch.rand((), generator=generator) < 0.0005).float()
        scaler.update(overflow)
        torch._amp_update_scale_(scale, growth, overflow, 2.0, 0.5, precision.GROWTH_STEPS)
        assert scaler.scale == scale
    assert scale != 2**16


def test_the_scale_stays_in_its_range():
    scaler = LossScaler("fp16", CPU)
    for _ in range(60):
        scaler.update(torch.tensor(1.0))
    assert scaler.scale.item() == precision.SMALLEST_SCALE
    scaler.load({"scale": torch.tensor(precision.LARGEST_SCALE), "good_steps": torch.tensor(1999.0)})
    scaler.update(torch.tensor(0.0))
    assert scaler.scale.item() == precision.LARGEST_SCALE


def test_state_goes_round_and_other_precisions_have_none():
    scaler = LossScaler("fp16", CPU)
    scaler.update(torch.tensor(1.0))
    scaler.update(torch.tensor(0.0))
    other = LossScaler("fp16", CPU)
    tensor = other.scale
    other.load({key: value.clone() for key, value in scaler.state().items()})
    assert other.scale is tensor, "in place: graphs may hold it"
    assert {k: v.item() for k, v in other.state().items()} == {"scale": 2.0**15, "good_steps": 1.0}
    for name in ("fp32", "bf16", "fp8"):
        plain = LossScaler(name, CPU)
        plain.update(torch.tensor(1.0))
        plain.load(scaler.state())
        assert plain.scale is None
        assert plain.state() == {}


def test_small_gradients_survive_fp16_when_scaled():
    """A gradient of 1e-9 is zero in float16 and comes back through the scale."""
    weight = torch.ones(4, 4, requires_grad=True)
    x = torch.full((1, 4), 1e-5)
    found = {}
    for scale in (1.0, LossScaler("fp16", CPU).scale.item()):
        weight.grad = None
        with autocast("fp16", CPU):
            out = torch.nn.functional.linear(x, weight)
        (out.float().sum() * 1e-4 * scale).backward()
        found[scale] = weight.grad.abs().max().item() / scale
    assert found[1.0] == 0
    assert found[2.0**16] == pytest.approx(1e-9, rel=0.05)
