"""What a training step does without waiting for the device: on torch's meta device, which has no values to wait for,
reading one is an error. And the marks that padding leaves."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from gristmill.align.dpo import PairBatch, _loss
from gristmill.artifact import StageRun
from gristmill.events import StageLog
from gristmill.model.config import Experts, ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.model.experts import experts_of
from gristmill.train.config import StabilityConfig, TrainingConfig
from gristmill.train.data import TokenBatch
from gristmill.train.loop import train
from gristmill.train.objectives import masked_token_loss, next_token_loss
from gristmill.train.optimizers import build_optimizer
from gristmill.train.parallel.data_parallel import parallelize
from gristmill.train.parallel.processes import alone
from gristmill.train.precision import LossScaler
from gristmill.train.stability import Guard
from gristmill.train.step import Objective, StepTools, make_step

SHAPE = {"vocab_size": 30, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
         "intermediate_size": 24, "max_seq_len": 16}  # fmt: skip
EXPERTS = Experts(num_experts=4, top_k=2, intermediate_size=8)
META = torch.device("meta")


def batch_of(padded: bool, packed: bool) -> TokenBatch:
    ids = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(4, 8)
    if padded:
        weights[1, 5:] = weights[2, :3] = 0
    segments = (torch.arange(8) // 3).expand(4, 8) if packed else None
    return TokenBatch(ids[:, :-1], ids[:, 1:], weights, segments)


def config(**changes) -> TrainingConfig:
    settings = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", "device": "cpu"}
    return TrainingConfig(**settings | changes)


def tools(model, loss, precision) -> StepTools:
    trainee = parallelize(Objective(model, loss), config(), None, META, precision)
    return StepTools(
        module=trainee.module,
        optimizer=build_optimizer(model, config()),
        gradient_sync=trainee.gradient_sync,
        gradient_norm=trainee.gradient_norm,
        judge=Guard(StabilityConfig(), META, scaled=precision == "fp16").judge,
        autocast=nullcontext,
        processes=alone(),
        clip_norm=1.0,
        scaler=LossScaler(precision, META),
        device=META,
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stage", ["next token", "masked", "dpo"])
def test_a_step_waits_for_nothing(stage, padded, packed, positions, precision, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it does not know of meta
    model: Decoder | Encoder = Decoder(ModelConfig(**SHAPE, positions=positions)).to("meta").train()
    batch, loss = batch_of(padded, packed), next_token_loss
    parts = batch.split(2)
    if stage == "masked":
        encoder = Encoder(EncoderConfig(**SHAPE, positions=positions, masked_lm=True))
        model, loss = encoder.to("meta").train(), masked_token_loss
    if stage == "dpo":
        parts, loss = PairBatch(batch, torch.zeros(4)).split(1), partial(_loss, beta=0.1)
    figures = make_step(tools(model, loss, precision), parts)
    assert {"loss", "grad_norm"} <= set(figures)
    assert all(value.is_meta and value.dim() == 0 for value in figures.values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        figures["loss"].item()


def marks(model: Decoder) -> list[bool]:
    return [layer.padding is not None for layer in experts_of(model)]


@pytest.mark.parametrize("fails", [False, True])
def test_no_mark_of_padding_outlives_the_training(fails, tmp_path):
    model = Decoder(ModelConfig(**SHAPE, experts=EXPERTS)).init_weights(0)
    seen = []

    def loss(model, batch):
        found = next_token_loss(model, batch)
        seen.extend(marks(model))
        if fails:
            raise KeyError
        return found

    def evaluate(model, step):
        assert marks(model) == [False]
        return {}

    (tmp_path / "scratch").mkdir()
    run = StageRun(tmp_path, tmp_path / "scratch", {}, 1, StageLog.silent())
    go = partial(
        train, model, lambda *_: batch_of(True, False), loss, config(), run, evaluate=evaluate, evaluate_every=1
    )
    if fails:
        with pytest.raises(KeyError):
            go()
    else:
        go()
    assert all(seen)
    assert marks(model) == [False]
