import math

import pytest
import torch
import torch.nn.functional as F

from gristmill.train import losses
from gristmill.train.losses import token_logprobs, weighted_cross_entropy
from gristmill.train.schedule import cosine_with_warmup


@pytest.mark.parametrize("chunk", [3, 512])
def test_chunked_cross_entropy_equals_torchs_with_its_gradients(monkeypatch, chunk):
    monkeypatch.setattr(losses, "CHUNK_TOKENS", chunk)
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
    monkeypatch.setattr(losses, "CHUNK_TOKENS", 4)
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


def test_token_logprobs_pick_the_targets():
    logits = torch.randn(2, 3, 5)
    targets = torch.randint(0, 5, (2, 3))
    expected = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 3)
    torch.testing.assert_close(token_logprobs(logits, targets), expected)


def test_cosine_schedule_at_its_corners():
    def at(step):
        return cosine_with_warmup(step, steps=101, warmup_steps=10, peak=2.0, min_ratio=0.1)

    assert at(0) == pytest.approx(0.2)
    assert at(9) == pytest.approx(2.0)
    assert at(10) == pytest.approx(2.0)
    assert at(55) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert at(100) == pytest.approx(0.2)
    assert all(at(step) >= at(step + 1) for step in range(10, 100))
