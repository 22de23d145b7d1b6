import pytest
import torch
from optimizer_cases import EXPERTS, give_gradients, names_of, optimizer_of, tiny, weights_of

from gristmill.train.optimizers import adafactor, export_state, init_state
from gristmill.train.optimizers.adafactor import Adafactor

SHAPES = [(24, 40), (40, 24), (3, 16, 8), (30,), (300, 1)]


def parameters(shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for shape in shapes]


def compare(shapes, oracle_of, weight_decay):
    ours, theirs = parameters(shapes), parameters(shapes)
    optimizer = Adafactor([{"params": ours, "lr": 0.02, "weight_decay": weight_decay}])
    oracle = oracle_of(theirs)
    for step in range(6):
        generator = torch.Generator().manual_seed(step + 1)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator) * 10.0**-step
            other.grad = one.grad.clone()
        optimizer.step()
        oracle.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


def test_it_is_transformers_adafactor():
    optimization = pytest.importorskip("transformers.optimization")
    compare(
        SHAPES[:4],  # there a matrix of one column is factored, which gives nothing
        lambda theirs: optimization.Adafactor(theirs, lr=0.02, scale_parameter=True, relative_step=False),
        weight_decay=0.0,
    )


def test_it_is_torchs_adafactor_with_decoupled_decay():
    """Its rate is the smaller of lr and 1/sqrt(step), which is lr here."""
    compare(SHAPES[:4], lambda theirs: torch.optim.Adafactor(theirs, 0.02, weight_decay=0.3, eps=(1e-30, 1e-3)), 0.3)


def test_the_first_update_is_the_sign_of_a_vectors_gradient():
    """Squares of one step are its own average, so each element moves by lr times the root mean square of all."""
    (weight,) = parameters([(300, 1)])
    before = weight.detach().clone()
    weight.grad = parameters([(300, 1)])[0].detach() - 0.03
    Adafactor([{"params": [weight], "lr": 0.02, "weight_decay": 0.0}]).step()
    expected = -0.02 * before.square().mean().sqrt() * weight.grad.sign()
    torch.testing.assert_close(weight.detach() - before, expected, atol=1e-7, rtol=1e-4)


def test_a_gradient_of_rank_one_in_its_squares_is_kept_exactly():
    rows, columns = torch.rand(12, 1) + 0.1, torch.rand(1, 20) + 0.1
    (weight,) = parameters([(12, 20)])
    before = weight.detach().clone()
    weight.grad = rows * columns * torch.randn(12, 20).sign()
    Adafactor([{"params": [weight], "lr": 0.5, "weight_decay": 0.0}]).step()
    expected = -0.5 * before.square().mean().sqrt() * weight.grad.sign()
    torch.testing.assert_close(weight.detach() - before, expected, atol=1e-6, rtol=1e-4)


def test_state_is_rows_and_columns():
    model = tiny(**EXPERTS)
    optimizer = optimizer_of(model, "adafactor")
    init_state(optimizer)
    state = export_state(optimizer, names_of(model))
    assert state["blocks.0.feed_forward.gate_up/exp_avg_sq_rows"].shape == (3, 64, 1)
    assert state["blocks.0.feed_forward.gate_up/exp_avg_sq_columns"].shape == (3, 1, 64)
    assert sum(value.numel() for value in state.values()) < 0.1 * sum(p.numel() for p in model.parameters())


def test_small_portions_give_what_large_ones_give(monkeypatch):
    models = []
    for elements in (adafactor.PORTION_ELEMENTS, 1):
        monkeypatch.setattr(adafactor, "PORTION_ELEMENTS", elements)
        models.append(tiny())
        optimizer = optimizer_of(models[-1], "adafactor", learning_rate=0.1)
        for step in range(3):
            give_gradients(models[-1], step)
            optimizer.step()
    large, small = map(weights_of, models)
    for name, weight in large.items():
        torch.testing.assert_close(weight, small[name], atol=1e-6, rtol=1e-5)
