"""What a run writes down: every skipped step once, rates however small, and nothing that JSON cannot hold."""

import dataclasses
import math

import pytest
import torch

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.config import StabilityConfig, TrainingConfig, WatchConfig
from gristmill.train.data import TokenBatch
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss

SHAPE = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_seq_len=16,
)


def config(**changes):
    settings = {"steps": 12, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", "device": "cpu"}
    return TrainingConfig(**settings | changes)


def batch_at(step, shard=None):
    ids = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(step))
    return TokenBatch(ids[:, :-1], ids[:, 1:], torch.ones(4, 8))


def bad_at(*steps):
    """Batches, some of whose losses are not finite."""

    def batches(step, shard=None):
        batch = batch_at(step)
        return dataclasses.replace(batch, weights_BT=batch.weights_BT * torch.inf) if step in steps else batch

    return batches


def learn(path, training, batches=batch_at, on_event=None, **more):
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    log = EventLog(None)
    if on_event:
        log.subscribers.append(on_event)
    run = StageRun(path, path / "scratch", {}, 1, StageLog(log, "base"))
    model = Decoder(SHAPE).init_weights(1)
    return train(model, batches, next_token_loss, training, run, **more)


class Killed(Exception):
    pass


UNEVEN = {"log_every": 5, "checkpoint_every": 3, "watch": WatchConfig(norms_every=4)}


def test_a_step_skipped_before_a_checkpoint_stands_in_the_next_entry(tmp_path):
    result = learn(tmp_path, config(**UNEVEN), bad_at(5))  # the sixth step, behind which a checkpoint is saved
    assert {entry["step"]: entry["skipped"] for entry in result.history} == {1: 0, 4: 0, 5: 0, 8: 1, 10: 0, 12: 0}
    assert result.figures["skipped_steps"] == 1


@pytest.mark.parametrize("cut", [5, 8, 10])
def test_the_history_of_a_cut_run_is_that_of_a_whole_one(tmp_path, cut):
    evaluation = {"evaluate": lambda model, step: {"validation": step / 7}, "evaluate_every": 7}
    whole = learn(tmp_path / "whole", config(**UNEVEN), bad_at(5, 7), **evaluation)

    def stop(event):
        if event["type"] == "metric" and event["step"] == cut:
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "cut", config(**UNEVEN), bad_at(5, 7), on_event=stop, **evaluation)
    resumed = learn(tmp_path / "cut", config(**UNEVEN), bad_at(5, 7), **evaluation)
    assert resumed.history == whole.history
    assert resumed.figures["skipped_steps"] == whole.figures["skipped_steps"] == 2


def test_small_numbers_are_not_rounded_away(tmp_path):
    training = config(learning_rate=3e-7, schedule="constant", watch=WatchConfig(norms_every=12))
    last = learn(tmp_path, training).history[-1]
    assert last["learning_rate"] == pytest.approx(3e-7)
    assert last["update_norm/norms"] > 0


def test_a_measurement_that_is_not_finite_is_written_down_as_none(tmp_path):
    measured = {"evaluate": lambda model, step: {"validation": math.nan}, "evaluate_every": 3}
    result = learn(tmp_path, config(checkpoint_every=3, steps=6), **measured)
    assert [entry["validation"] for entry in result.history if "validation" in entry] == [None, None]


def test_norms_that_overflow_do_not_hide_why_a_run_stops(tmp_path):
    training = config(learning_rate=1e30, steps=20, log_every=1, checkpoint_every=1, watch=WatchConfig(norms_every=1))
    with pytest.raises(GristmillError, match="not finite"):
        learn(tmp_path, training)


def test_steps_made_twice_count_twice(tmp_path):
    stability = StabilityConfig(window=8, rollback_after=2)
    training = config(steps=20, log_every=1, checkpoint_every=5, stability=stability)
    result = learn(tmp_path, training, bad_at(12, 13))
    assert result.figures["rollbacks"] == 1
    assert result.figures["passed_over"] == 4  # batches 10 to 13
    assert result.steps_run == 24


@pytest.mark.parametrize("cut", ["went back", 11, 16])
def test_a_run_cut_while_or_after_it_goes_back_ends_as_a_whole_one(tmp_path, cut):
    training = config(steps=20, log_every=1, checkpoint_every=5, stability=StabilityConfig(window=8, rollback_after=2))
    whole = learn(tmp_path / "whole", training, bad_at(12, 13))
    back = []

    def stop(event):
        if event["type"] == "note" and event["message"].startswith("went back"):
            back.append(event)
        if back and (cut == "went back" or event.get("step") == cut):
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "cut", training, bad_at(12, 13), on_event=stop)
    resumed = learn(tmp_path / "cut", training, bad_at(12, 13))
    assert resumed.history == whole.history
    assert resumed.figures == whole.figures
