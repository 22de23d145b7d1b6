import math

import pytest
import torch

from gristmill.align.dpo import find_pairs
from gristmill.align.losses import dpo_loss, sequence_logprobs
from gristmill.evaluate.tasks import Task


def test_dpo_is_ln_2_where_policy_and_reference_agree():
    chosen, rejected = torch.tensor([-3.0, -8.0]), torch.tensor([-5.0, -1.0])
    losses, margins = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))
    assert margins.tolist() == [0, 0]


def test_dpo_in_closed_form():
    losses, margins = dpo_loss(
        torch.tensor([-2.0]), torch.tensor([-6.0]), torch.tensor([-4.0]), torch.tensor([-5.0]), beta=0.5
    )
    margin = 0.5 * ((-2 + 4) - (-6 + 5))
    assert margins.item() == pytest.approx(margin)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-margin)))


def test_dpo_gradient_has_the_papers_form():
    chosen = torch.tensor([-2.0], requires_grad=True)
    rejected = torch.tensor([-3.0], requires_grad=True)
    losses, margins = dpo_loss(chosen, rejected, torch.tensor([-2.5]), torch.tensor([-2.5]), beta=0.3)
    losses.sum().backward()
    weight = 0.3 * torch.sigmoid(-margins)
    torch.testing.assert_close(chosen.grad, -weight)
    torch.testing.assert_close(rejected.grad, weight)


def test_sequence_logprobs_are_sums_over_the_mask():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[0.0, 1, 1], [1, 0, 0]])
    assert sequence_logprobs(logprobs, mask).tolist() == [-6, -1]


def test_pairs_take_the_first_right_and_the_first_wrong_answer():
    tasks = [Task(f"t{i}", "f", f"prompt {i}", "yes") for i in range(3)]
    answers = [["no", "Yes.", "maybe"], ["yes", "yes", "yes"], ["no", "no", "no"]]
    pairs, right = find_pairs(tasks, answers)
    assert pairs == [{"id": "t0", "family": "f", "prompt": "prompt 0", "chosen": "Yes.", "rejected": "no"}]
    assert right == pytest.approx(4 / 9)
