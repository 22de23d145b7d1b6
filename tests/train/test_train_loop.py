import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.checkpoint import load_latest, save_checkpoint
from gristmill.train.config import TrainingConfig
from gristmill.train.data import ConversationBatches, PretrainBatches, TokenBatch, epoch_indices, pad_examples
from gristmill.train.loop import make_optimizer, next_token_loss, train

SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_seq_len=16,
)


class Store:
    """A token store of two domains, one of them small enough for several epochs."""

    def __init__(self):
        self.directory, self.vocab_size = "tokens", 64
        self.domains = ("big", "small")
        self.weights = {"big": 0.5, "small": 0.5}
        rng = np.random.default_rng(0)
        self.arrays = {"big": rng.integers(5, 64, 4001), "small": rng.integers(5, 64, 97)}

    def tokens(self, split, domain):
        return self.arrays[domain].astype(np.uint16)


def batches(**changes):
    arguments = {"batch_size": 4, "sequence_length": 8, "seed": 1, "document_mask": False, "bos_id": 0} | changes
    return PretrainBatches(Store(), **arguments)


def config(**changes):
    return TrainingConfig(
        **(
            {
                "steps": 12,
                "batch_size": 4,
                "learning_rate": 0.01,
                "warmup_steps": 3,
                "precision": "fp32",
                "checkpoint_every": 4,
                "log_every": 1,
                "device": "cpu",
            }
            | changes
        )
    )


def stage_run(path, on_event=None):
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    log = EventLog(None)
    if on_event:
        log.subscribers.append(on_event)
    return StageRun(path, path / "scratch", {}, 1, StageLog(log, "base"))


def learn(path, training, batch_at=None, on_event=None):
    model = Decoder(SHAPE).init_weights(1)
    split = partial(TokenBatch.split, size=training.micro_batch_size)
    result = train(model, batch_at or batches(), split, next_token_loss, training, stage_run(path, on_event))
    return model, result


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_after", [2, 4, 7, 11])
def test_a_cut_run_goes_on_bitwise_as_if_it_had_not_been_cut(tmp_path, stop_after):
    whole, result = learn(tmp_path / "whole", config())

    def stop(event):
        if event["type"] == "metric" and event["step"] == stop_after:
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "cut", config(), on_event=stop)
    resumed, again = learn(tmp_path / "cut", config())
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert again.history == result.history
    assert again.steps_run == 12 - (stop_after - 1) // 4 * 4


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    model = Decoder(SHAPE).init_weights(1)
    optimizer = make_optimizer(model, config())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    for step in (4, 8):
        save_checkpoint(tmp_path, model, optimizer, step, [{"step": step}], keep=2)
    (tmp_path / "step-00000008" / "model.safetensors").write_bytes(b"torn")
    assert load_latest(tmp_path, model, optimizer) == (4, [{"step": 4}])
    (tmp_path / "step-00000004" / "state.json").write_text("{")
    assert load_latest(tmp_path, model, optimizer) == (0, [])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    learn(tmp_path, config(keep_checkpoints=1))
    assert [p.name for p in sorted((tmp_path / "scratch" / "checkpoints").iterdir())] == ["step-00000008"]


def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path):
    def uneven(step):
        batch = batches()(step)
        weights = batch.weights_BT.clone()
        weights[0, 2:] = 0  # one row carries little weight: averages of averages would differ
        return dataclasses.replace(batch, weights_BT=weights)

    whole, _ = learn(tmp_path / "a", config(), uneven)
    parts, _ = learn(tmp_path / "b", config(micro_batch_size=1), uneven)
    torch.testing.assert_close(weights_of(whole), weights_of(parts), atol=2e-5, rtol=1e-4)


def test_the_loss_falls_on_a_repeated_batch(tmp_path):
    _, result = learn(tmp_path, config(steps=40, log_every=39), lambda step: batches()(0))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2


def test_norms_are_not_decayed():
    groups = make_optimizer(Decoder(SHAPE), config()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_masked_labels_only_is_an_error_not_a_silent_no_op(tmp_path):
    batch = batches()(0)
    silent = dataclasses.replace(batch, weights_BT=torch.zeros_like(batch.weights_BT))
    with pytest.raises(GristmillError, match="every label is masked"):
        learn(tmp_path, config(), lambda step: silent)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(GristmillError, match="not finite"):
        learn(tmp_path, config(learning_rate=1e30, warmup_steps=0))


def test_batches_depend_on_the_step_alone():
    one, other = batches(), batches()
    for step in (900, 3, 0):
        torch.testing.assert_close(one(step).inputs_BT, other(step).inputs_BT, rtol=0, atol=0)
    assert not torch.equal(one(0).inputs_BT, batches(seed=2)(0).inputs_BT)


def test_no_block_comes_twice_before_all_of_its_domain_came_once():
    drawn = batches()
    rows = [drawn._row(sample) for sample in range(400)]
    small = [tuple(row.inputs) for i, row in enumerate(rows) if drawn.domains[drawn._domain_of[i]] == "small"]
    count = len(drawn.rows["small"])
    assert count == 12
    for start in range(0, len(small) - count, count):
        assert len(set(small[start : start + count])) == count
    share = len(small) / len(rows)
    assert 0.4 < share < 0.6


def test_targets_are_the_inputs_moved_by_one():
    batch = batches()(5)
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_document_segments_change_at_every_bos():
    drawn = batches(document_mask=True, bos_id=7)(0)
    assert torch.equal(drawn.segments_BT, (drawn.inputs_BT == 7).cumsum(1))


def test_a_domain_too_small_for_one_sequence_is_named():
    with pytest.raises(GristmillError, match="domain 'small' has fewer than 129 training tokens"):
        batches(sequence_length=128)


def test_padding_and_masks_line_up_with_targets():
    batch = pad_examples([([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6], [0, 1])], pad_id=9)
    assert batch.inputs_BT.tolist() == [[1, 2, 3], [5, 6, 9]]
    assert batch.targets_BT.tolist() == [[2, 3, 4], [6, 9, 9]]
    assert batch.weights_BT.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_epochs_by_domain_count_what_was_drawn():
    made = batches()
    epochs = made.epochs(50)
    assert sum(count * len(made.rows[name]) for name, count in epochs.items()) == pytest.approx(200)
    assert epochs["small"] > 5 > 1 > epochs["big"]  # 12 blocks against 500, drawn alike


def test_epochs_are_permutations():
    picked = [index for step in range(5) for index in epoch_indices(20, 4, step, seed=0)]
    assert sorted(picked) == list(range(20))
    assert picked != list(range(20))
    assert [i for s in range(5, 10) for i in epoch_indices(20, 4, s, seed=0)] != picked


def test_fewer_examples_than_a_batch_is_an_error():
    with pytest.raises(GristmillError, match="do not fill one training batch"):
        ConversationBatches([([1], [1])], 2, 0, 0)
