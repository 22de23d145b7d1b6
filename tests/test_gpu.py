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


@pytest.mark.parametrize(("precision", "documents"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_deterministic_runs_are_equal_to_the_bit_and_so_is_a_cut_one(tmp_path, precision, documents):
    def batch_at(step, shard):
        tokens = torch.from_numpy(np.random.default_rng(step).integers(0, 512, (8, 65)))
        segments = (tokens[:, :-1] < 40).cumsum(1) if documents else None
        return TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(8, 64), segments)

    def learn_again(name, stop=None):
        def or_die(step, shard):
            if step == stop:
                raise KeyboardInterrupt
            return batch_at(step, shard)

        (tmp_path / name / "scratch").mkdir(parents=True, exist_ok=True)
        run = StageRun(tmp_path / name, tmp_path / name / "scratch", {}, 1, StageLog.silent())
        model = Decoder(SHAPE).init_weights(1)
        return train(model, or_die, next_token_loss, config, run), model

    config = TrainingConfig(
        steps=20, batch_size=8, learning_rate=3e-3, log_every=1, checkpoint_every=6, device="cuda",
        precision=precision, deterministic=True, prefetch=0,
    )  # fmt: skip
    whole, model = learn_again("whole")
    with pytest.raises(KeyboardInterrupt):
        learn_again("cut", stop=15)
    resumed, other = learn_again("cut")
    assert resumed.steps_run < 20
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
