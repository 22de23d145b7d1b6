import math

import pytest
import torch

from gristmill.align.dpo import PairBatch, _loss, _reference, find_pairs
from gristmill.align.losses import dpo_loss, sequence_logprobs
from gristmill.evaluate.tasks import Task
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train import losses
from gristmill.train.config import TrainingConfig
from gristmill.train.data import pad_examples
from gristmill.train.precision import autocast


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


def pairs(precision, **changes):
    """A small model, a batch of three pairs of unequal lengths, and the reference computed as the stage does."""
    shape = {"hidden_size": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "intermediate_size": 96}
    shape |= {"vocab_size": 96} | changes
    model = Decoder(ModelConfig(num_layers=2, max_seq_len=64, **shape)).init_weights(3)
    rng = torch.Generator().manual_seed(0)
    examples = []
    for length in (9, 30, 17, 12, 25, 8):
        ids = torch.randint(3, 96, (length,), generator=rng).tolist()
        examples.append((ids, [0] * 5 + [1] * (length - 5)))
    training = TrainingConfig(steps=1, batch_size=3, learning_rate=1e-3, precision=precision, device="cpu")
    return model, PairBatch(pad_examples(examples, 0), _reference(model, examples, 0, training))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_costs_ln_2_in_the_precision_of_the_training(precision):
    model, batch = pairs(precision)
    with autocast(precision, torch.device("cpu")):
        total, _ = _loss(model, batch, beta=1.0)
    assert total.item() / batch.weight == pytest.approx(math.log(2), abs=1e-5)


def test_micro_batches_of_pairs_keep_chosen_beside_rejected():
    model, batch = pairs("fp32")
    batch = PairBatch(batch.rows, batch.reference + torch.linspace(-1, 1, 6))
    whole, _ = _loss(model, batch, beta=0.5)
    parts = batch.split(2)
    assert [part.weight for part in parts] == [2, 1]
    assert sum(_loss(model, part, beta=0.5)[0].item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": False, "head_bias": True}, {"logit_softcap": 30.0}])
def test_the_loss_and_its_gradients_are_those_of_all_logits(shape, monkeypatch):
    """Chunked, against log-softmax over whole logits, in one step of the stage's loss."""
    monkeypatch.setattr(losses, "CPU_LEAST_TOKENS", 16)
    monkeypatch.setattr(losses, "CPU_LOGITS_BYTES", 1)
    model, batch = pairs("fp32", **shape)
    batch = PairBatch(batch.rows, batch.reference + torch.linspace(-1, 1, 6))
    found = []
    for by_chunks in (True, False):
        if by_chunks:
            total, _ = _loss(model, batch, beta=0.5)
        else:
            logprobs = (
                model(batch.rows.inputs_BT).float().log_softmax(-1).gather(-1, batch.rows.targets_BT[..., None])[..., 0]
            )
            sums = sequence_logprobs(logprobs, batch.rows.weights_BT)
            total = dpo_loss(*sums.chunk(2), *batch.reference.chunk(2), 0.5)[0].sum()
        model.zero_grad()
        total.backward()
        found.append([total.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
