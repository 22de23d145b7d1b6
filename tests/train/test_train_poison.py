"""Poisoned batches in a real run: what a defended run loses by them, what an undefended one does, and going back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.config import TrainingConfig
from gristmill.train.data import WHOLE, Shard, TokenBatch
from gristmill.train.loop import TrainResult, train
from gristmill.train.objectives import next_token_loss

VOCABULARY = 32
SHAPE = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_seq_len=32,
)
FOLLOWERS = np.random.default_rng(0).dirichlet(np.full(VOCABULARY, 0.1), VOCABULARY).cumsum(axis=1)


@cache
def text(number: int, rows: int = 8) -> TokenBatch:
    """A batch of a language in which each token says how likely each next one is."""
    rng = np.random.default_rng([9, number])
    tokens = rng.integers(0, VOCABULARY, (rows, 33))
    for place in range(1, 33):
        drawn = rng.random((rows, 1))
        tokens[:, place] = (FOLLOWERS[tokens[:, place - 1]] < drawn).sum(axis=1).clip(max=VOCABULARY - 1)
    ids = torch.from_numpy(tokens)
    return TokenBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, 32))


class Batches:
    """The language, but where it is poisoned; `asked`: which batches were."""

    def __init__(self, poisoned: range = range(0), poison: str = "", moved_from: int = 10**9, by: int = 0):
        self.poisoned, self.poison, self.moved_from, self.by = poisoned, poison, moved_from, by
        self.asked: list[int] = []

    def __call__(self, step: int, shard: Shard = WHOLE) -> TokenBatch:
        assert shard == WHOLE
        number = step + self.by if step >= self.moved_from else step
        self.asked.append(number)
        batch = text(number)
        if number not in self.poisoned:
            return batch
        if self.poison == "nan":
            return replace(batch, weights_BT=torch.full_like(batch.weights_BT, torch.nan))
        return replace(batch, targets_BT=torch.full_like(batch.targets_BT, 7))


def run(path: Path, batches: Batches, stability: dict[str, object], **changes: object) -> TrainResult:
    values = {
        "batch_size": 8,
        "learning_rate": 6e-3,
        "schedule": "constant",
        "warmup_steps": 10,
        "clip_norm": None,
        "precision": "fp32",
        "device": "cpu",
        "prefetch": 0,
        "log_every": 1,
        "stability": stability,
    }
    (path / "scratch").mkdir(parents=True)
    model = Decoder(SHAPE).init_weights(1)
    log = StageLog(EventLog(None), "base")
    config = TrainingConfig.model_validate(values | changes)
    return train(model, batches, next_token_loss, config, StageRun(path, path / "scratch", {}, 1, log))


def nats(result: TrainResult) -> float:
    """Per token of text that was not learned; bits per byte but for a factor."""
    held_out = text(10**6, rows=64)
    with torch.no_grad():
        return float(next_token_loss(result.model, held_out)[0]) / held_out.weight


def test_a_defended_run_ends_as_a_clean_one_and_an_undefended_one_worse(tmp_path: Path) -> None:
    poisoned, few = range(92, 95), {"steps": 100, "checkpoint_every": 100, "log_every": 40}
    defence = {"window": 32}
    clean = run(tmp_path / "clean", Batches(), defence, **few)
    defended = run(tmp_path / "defended", Batches(poisoned, "sevens"), defence, **few)
    undefended = run(
        tmp_path / "undefended",
        Batches(poisoned, "sevens"),
        {"window": 32, "skip_spikes": False, "rollback_after": None},
        **few,
    )
    assert nats(defended) == pytest.approx(nats(clean), rel=0.01)
    assert nats(undefended) > 1.1 * nats(clean)
    assert (clean.figures["skipped_steps"], defended.figures["skipped_steps"]) == (0, 3)


def weights_of(result: TrainResult) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


@pytest.mark.parametrize("poison", ["nan", "sevens"])
def test_a_run_goes_back_to_calm_water_and_passes_over_what_came_since(tmp_path: Path, poison: str) -> None:
    """Four bad batches, 22 to 25, where three are allowed: seen at the third, the run goes back to the checkpoint after
    20 steps and goes on with batch 25, exactly as a run that was never given batches 20 to 24."""
    stability = {"window": 8, "rollback_after": 3}
    batches = Batches(range(22, 26), poison)
    back = run(tmp_path / "back", batches, stability, steps=35, checkpoint_every=5)
    assert batches.asked == list(range(40))
    assert back.figures["rollbacks"] == 1
    other = Batches(range(22, 26), poison, moved_from=20, by=5)
    never = run(tmp_path / "never", other, stability, steps=35, checkpoint_every=5, prefetch=2)
    assert never.figures["rollbacks"] == 0
    assert torch.equal(weights_of(back), weights_of(never))


def test_a_run_that_keeps_failing_stops_and_says_so(tmp_path: Path) -> None:
    stability = {"window": 8, "rollback_after": 3, "max_rollbacks": 2}
    with pytest.raises(GristmillError, match=r"the loss is not finite .*has gone back 2 times already"):
        run(tmp_path, Batches(range(22, 10**6), "nan"), stability, steps=60, checkpoint_every=5)
