"""Log-probabilities by chunks against the plain ones of all logits: values, gradients, memory."""

import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from forked_processes import two
from live_bytes import LiveBytes
from torch import nn

from gristmill.align.dpo import PairBatch, _loss
from gristmill.artifact import StageRun
from gristmill.events import StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train import losses
from gristmill.train.config import TrainingConfig
from gristmill.train.data import WHOLE, TokenBatch
from gristmill.train.logprobs import target_logprobs
from gristmill.train.loop import train
from gristmill.train.parallel.processes import alone

VOCAB, WIDTH = 50, 12
SHAPES = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "soft-capped": {"softcap": 2.0, "scale": 1.5},
    "with a bias": {"bias_V": True},
}


def plain(hidden, head, targets, bias_V=None, scale=1.0, softcap=None):
    logits = hidden.float() @ head.float().T
    logits = scale * (logits if bias_V is None else logits + bias_V)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


def tensors(count, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, WIDTH), (VOCAB, WIDTH), *([(VOCAB,)] if bias else [])]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[0] = made[0].to(dtype)
    targets = torch.randint(VOCAB, (count,), generator=generator)
    return [nn.Parameter(tensor) for tensor in made], targets, torch.randn(count, generator=generator)


@pytest.mark.parametrize("count", [0, 1, 10, 37])  # up to four chunks
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_plain_ones(monkeypatch, shape, count):
    monkeypatch.setattr(losses, "CPU_LEAST_TOKENS", 10)
    monkeypatch.setattr(losses, "CPU_LOGITS_BYTES", 1)
    options = {name: value for name, value in SHAPES[shape].items() if name != "bias_V"}
    found = []
    for function in (target_logprobs, plain):
        parameters, targets, grad = tensors(count, "bias_V" in SHAPES[shape])
        hidden, head, *bias = parameters
        values = function(hidden, head, targets, *bias, **options)
        values.backward(grad)  # of both signs
        found.append([values.detach(), *(parameter.grad for parameter in parameters)])
    assert found[0][0].dtype == torch.float32
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_in_bf16_products_alone_are_rounded():
    found = []
    for function in (target_logprobs, plain):
        (hidden, head), targets, grad = tensors(37, False, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16) if function is target_logprobs else nullcontext():
            values = function(hidden, head, targets)
        values.backward(grad)
        found.append([values.detach(), hidden.grad.float(), head.grad])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_no_more_than_a_chunk_of_logits_is_ever_there(monkeypatch):
    monkeypatch.setattr(losses, "CPU_LEAST_TOKENS", 8)
    monkeypatch.setattr(losses, "CPU_LOGITS_BYTES", 1)
    with LiveBytes() as meter:
        (hidden, head), targets, grad = tensors(4000, False)
        target_logprobs(hidden, head, targets).backward(grad)
    assert meter.peak < 4000 * VOCAB * 4


SHAPE = ModelConfig(vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                    intermediate_size=24, max_seq_len=16)  # fmt: skip


def pairs_at(step, shard=WHOLE):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(32, (2, 4, 9), generator=generator)[:, shard.rows(4).start : shard.rows(4).stop]
    rows = ids.flatten(0, 1)
    weights = torch.ones(len(rows), 8)
    weights[:, :3] = 0
    return PairBatch(TokenBatch(rows[:, :-1], rows[:, 1:], weights), torch.full((len(rows),), -20.0))


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("data", ["ddp", "zero3"])
def test_two_processes_align_as_one(tmp_path, data):
    """Backward needs the head's weights again, which zero3 has in shards."""
    settings = {"steps": 4, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.01, "precision": "fp32",
                "device": "cpu", "log_every": 1, "eps": 1e-5, "parallel": {"data": data}}  # fmt: skip
    config = TrainingConfig.model_validate(settings)

    def work(processes):
        model = Decoder(SHAPE).init_weights(1)
        scratch = tmp_path / str(processes.count)
        scratch.mkdir(exist_ok=True)
        run = StageRun(tmp_path / "out", scratch, {}, 1, StageLog.silent())
        result = train(model, pairs_at, partial(_loss, beta=0.5), config, run)
        if processes.main:
            (scratch / "history").write_text(json.dumps([entry["loss"] for entry in result.history]))

    work(alone())
    assert two(tmp_path, work) == [0, 0]
    one, both = (json.loads((tmp_path / count / "history").read_text()) for count in "12")
    assert len(one) == 4
    assert both == pytest.approx(one, rel=1e-5)
