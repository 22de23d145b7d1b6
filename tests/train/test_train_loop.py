import dataclasses
import errno
import os
import threading

import numpy as np
import pytest
import torch

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.checkpoint import saving
from gristmill.train.config import TrainingConfig
from gristmill.train.data import ConversationBatches, PretrainBatches, epoch_indices, pad_examples
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss

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


def learn(path, training, batch_at=None, on_event=None, **more):
    model = Decoder(SHAPE).init_weights(1)
    result = train(model, batch_at or batches(), next_token_loss, training, stage_run(path, on_event), **more)
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


def test_a_checkpoint_that_could_not_be_written_behind_is_told_at_the_next_logged_step(tmp_path, monkeypatch):
    def full(path, pieces):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    steps = []

    def on_event(event):
        if event["type"] == "metric":
            steps.append(event["step"])
            if event["step"] == 5:  # by now the disk has failed
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":
                        thread.join()

    monkeypatch.setattr(saving, "write_shard", full)
    with pytest.raises(GristmillError, match=r"step 4 could not be saved .*no space is left"):
        learn(tmp_path, config(steps=30, checkpoint_every=4), on_event=on_event)
    assert steps[-1] <= 5


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    learn(tmp_path, config(keep_checkpoints=1))
    (left,) = (tmp_path / "scratch" / "checkpoints").iterdir()
    assert left.name.startswith("step-00000008")


def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path):
    def uneven(step, shard):
        batch = batches()(step, shard)
        weights = batch.weights_BT.clone()
        weights[0, 2:] = 0  # one row carries little weight: averages of averages would differ
        return dataclasses.replace(batch, weights_BT=weights)

    whole, _ = learn(tmp_path / "a", config(), uneven)
    parts, _ = learn(tmp_path / "b", config(micro_batch_size=1), uneven)
    torch.testing.assert_close(weights_of(whole), weights_of(parts), atol=2e-5, rtol=1e-4)


def test_the_loss_falls_on_a_repeated_batch(tmp_path):
    _, result = learn(tmp_path, config(steps=40, log_every=39), lambda step, shard: batches()(0, shard))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2


def test_masked_labels_only_is_an_error_not_a_silent_no_op(tmp_path):
    batch = batches()(0)
    silent = dataclasses.replace(batch, weights_BT=torch.zeros_like(batch.weights_BT))
    with pytest.raises(GristmillError, match="every label is masked"):
        learn(tmp_path, config(), lambda step, shard: silent)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(GristmillError, match="not finite"):
        learn(tmp_path, config(learning_rate=1e30, warmup_steps=0))


def test_batches_depend_on_the_step_alone():
    one, other = batches(), batches()
    for step in (900, 3, 0):
        torch.testing.assert_close(one(step).inputs_BT, other(step).inputs_BT, rtol=0, atol=0)
    assert not torch.equal(one(0).inputs_BT, batches(seed=2)(0).inputs_BT)


def test_targets_are_the_inputs_moved_by_one():
    batch = batches()(5)
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_document_segments_change_at_every_bos():
    drawn = batches(document_mask=True, bos_id=7)(0)
    assert torch.equal(drawn.segments_BT, (drawn.inputs_BT == 7).cumsum(1))


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
