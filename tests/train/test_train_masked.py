"""Masked language modelling: which tokens are hidden, and the loss of guessing them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gristmill.errors import GristmillError
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.train.data import TokenBatch
from gristmill.train.fill_in_middle import mask_tokens
from gristmill.train.objectives import masked_token_loss

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
         "intermediate_size": 64, "max_seq_len": 32}  # fmt: skip


def test_four_fifths_are_masked_a_tenth_is_drawn_and_a_tenth_stays():
    row = np.full(200_000, 7)
    inputs, weights = mask_tokens(row, 99, 50, 0.15, np.random.default_rng(0))
    assert (row == 7).all()
    assert inputs.dtype == row.dtype
    assert weights.dtype == np.float32
    assert set(weights.tolist()) == {0.0, 1.0}
    assert weights.mean() == pytest.approx(0.15, abs=0.005)
    chosen = inputs[weights == 1]
    assert (inputs[weights == 0] == 7).all()
    assert (chosen == 99).mean() == pytest.approx(0.8, abs=0.01)
    others = chosen[(chosen != 99) & (chosen != 7)]
    assert len(others) / len(chosen) == pytest.approx(0.1 * 49 / 50, abs=0.01)
    assert set(others.tolist()) == set(range(50)) - {7}


def test_the_same_generator_hides_the_same_tokens():
    row = np.arange(100)
    one, other = (mask_tokens(row, 99, 50, 0.5, np.random.default_rng([1, 2])) for _ in range(2))
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()


def encoder(**changes):
    model = Encoder(EncoderConfig(**SHAPE | {"masked_lm": True, "num_labels": 0} | changes)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def hidden_batch(segments=None):
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(50, (3, 12), generator=generator)
    weights = (torch.rand(3, 12, generator=generator) < 0.4).float()
    return TokenBatch(torch.where(weights > 0, 3, targets), targets, weights, segments)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_and_gradients_are_those_of_the_logits(positions, z_loss):
    model, batch = encoder(positions=positions), hidden_batch()
    total, sums = masked_token_loss(model, batch, z_loss)
    total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model.masked_lm_logits(batch.inputs_BT).flatten(0, 1)
    squares = z_loss * (logits.logsumexp(-1).square() * batch.weights_BT.flatten()).sum()
    each = F.cross_entropy(logits, batch.targets_BT.flatten(), reduction="none")
    expected = (each * batch.weights_BT.flatten()).sum() + squares
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert set(sums) == ({"z_loss"} if z_loss else set())
    if z_loss:
        torch.testing.assert_close(sums["z_loss"], squares.detach(), rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("first", [0, 1])
def test_packed_texts_do_not_see_each_other(positions, first):
    """A row's first text may have the number 0, as in rows cut from a stream."""
    model = encoder(positions=positions)
    batch = hidden_batch(torch.tensor([0] * 5 + [1] * 4 + [2] * 3).expand(3, 12) + first)
    packed, _ = masked_token_loss(model, batch)
    alone = 0.0
    for start, end in ((0, 5), (5, 9), (9, 12)):
        part = TokenBatch(*(x[:, start:end] for x in (batch.inputs_BT, batch.targets_BT, batch.weights_BT)))
        alone = alone + masked_token_loss(model, part)[0]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_an_encoder_without_the_head_is_refused():
    with pytest.raises(GristmillError, match="masked_lm: true"):
        masked_token_loss(encoder(masked_lm=False), hidden_batch())
