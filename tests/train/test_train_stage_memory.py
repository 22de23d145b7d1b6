"""A pipeline's middle stage on one of several tensor-parallel devices, against live tensors: its own narrower blocks,
several micro-batches forward before the first goes backward. What devices send each other is left out here."""

import pytest
import torch
from live_bytes import LiveBytes, autocast_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gristmill.model.attention import causal_attention
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Block
from gristmill.model.positions import rotations
from gristmill.plan.activations import Arithmetic
from gristmill.plan.layouts import Layout
from gristmill.plan.memory import TrainingRun, part_moments
from gristmill.plan.parallel_memory import in_flight, spread_run
from gristmill.plan.parts import numbers, parts

SHAPE = {"vocab_size": 512, "hidden_size": 192, "num_layers": 9, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32,
         "intermediate_size": 512, "max_seq_len": 256}  # fmt: skip
ROWS, COLUMNS = 8, 128


def measured(blocks_config, precision, micro_batches):
    """The peak of a stage that runs so many micro-batches forward and then the first one backward."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    with FakeTensorMode(), LiveBytes() as meter:
        blocks = nn.ModuleList(Block(blocks_config, layer) for layer in range(blocks_config.num_layers))
        state = [torch.zeros_like(p) for p in blocks.parameters() for _ in range(2)]
        gradients = [torch.zeros_like(p) for p in blocks.parameters()]
        for parameter, gradient in zip(blocks.parameters(), gradients, strict=True):
            parameter.grad = gradient
        held = sum(p.numel() for p in blocks.parameters())
        meter.peak = meter.live
        outputs = []
        for _ in range(micro_batches):
            x = torch.zeros(ROWS, COLUMNS, blocks_config.hidden_size, dtype=kind, requires_grad=True)
            angles = rotations(blocks_config, torch.arange(COLUMNS)[None], kind)
            with autocast_of(precision):
                for block in blocks:
                    x = block(x, angles, causal_attention)
            outputs.append(x)
        first = outputs.pop(0)
        first.backward(torch.zeros_like(first))
        del state
    return meter.peak, held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_stage_takes_what_is_expected(tensor, micro_batches, precision):
    config = ModelConfig.model_validate(SHAPE)
    layout = Layout(tensor=tensor, pipeline=3)
    part = parts(config, layout)[1]
    run = spread_run(TrainingRun(ROWS, COLUMNS, accumulates=True), layout, micro_batches)
    flying = in_flight(1, 3, micro_batches)
    assert flying == min(2, micro_batches)
    arithmetic = Arithmetic(precision, device="cpu", compiled=False)
    moments = part_moments(part, arithmetic, run, flying, sequence_parallel=False)
    assert {moment.moment for moment in moments} == {"last block", "first block", "step"}
    found, held = measured(part.blocks, precision, flying)
    assert part.params == held == numbers(part.dense_shapes)
    assert max(moment.total for moment in moments) == pytest.approx(found, rel=0.1)
