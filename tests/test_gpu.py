"""The same results on a GPU as on the CPU. Run by hand on a machine that has one: `pytest -m gpu`."""

import numpy as np
import pytest
import torch

from gristmill.artifact import StageRun
from gristmill.events import StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.config import TrainingConfig
from gristmill.train.data import TokenBatch
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

SHAPE = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    max_seq_len=64,
)


def learn(path, device, precision, steps=12):
    (path / "scratch").mkdir(parents=True)
    run = StageRun(path, path / "scratch", {}, 1, StageLog.silent())
    config = TrainingConfig(
        steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=2, log_every=1, device=device, precision=precision
    )

    def batch_at(step, shard):
        tokens = torch.from_numpy(np.random.default_rng(step % 3).integers(0, 512, (8, 33)))
        return TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(8, 32))

    model = Decoder(SHAPE).init_weights(1)
    return model, [entry["loss"] for entry in train(model, batch_at, next_token_loss, config, run).history]


def test_training_in_fp32_follows_the_cpus_losses(tmp_path):
    _, cpu = learn(tmp_path / "cpu", "cpu", "fp32")
    _, gpu = learn(tmp_path / "gpu", "cuda", "fp32")
    assert np.abs(np.array(cpu) - np.array(gpu)).max() < 2e-3


def test_training_in_bf16_learns_a_repeated_batch(tmp_path):
    _, losses = learn(tmp_path, "cuda", "bf16", steps=60)
    assert losses[-1] < losses[0] / 2


def test_logits_on_the_gpu_equal_the_cpus():
    model = Decoder(SHAPE).init_weights(2).eval()
    ids = torch.randint(0, 512, (4, 64))
    with torch.no_grad():
        expected = model(ids)
        assert (model.to("cuda")(ids.to("cuda")).cpu() - expected).abs().max() < 1e-3
