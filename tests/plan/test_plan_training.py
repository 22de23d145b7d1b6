"""What training takes: the guide's figures, and parameters, states and logits as the built things have them."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from plan_shapes import model_configs

from gristmill.errors import GristmillError
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.plan import activations, training
from gristmill.plan.activations import Arithmetic
from gristmill.plan.memory import TrainingRun, logits_chunk, peak_memory
from gristmill.plan.memory_plan import plan_memory
from gristmill.plan.parameters import total_params
from gristmill.plan.train import Budget, plan_train
from gristmill.train.config import TrainingConfig
from gristmill.train.losses import chunk_tokens

LLAMA = preset("llama-3-8b")


def test_arithmetic_of_a_run():
    """F1a, F2a."""
    assert training.train_flops(174_604_259_328, 300e9) == pytest.approx(3.142876668e23, rel=0.005)
    assert training.train_flops(405_853_388_800, 15.6e12) == pytest.approx(3.798787719e25, rel=0.005)


@pytest.mark.parametrize(
    ("stage", "expected"), [(0, 120e9), (1, 31.40625e9), (2, 16.640625e9), (3, 1.875e9)]
)  # fmt: skip
def test_zero_table(stage, expected):
    """F6b-e: 7.5 billion parameters on 64 GPUs (Rajbhandari et al. 2020, figure 1)."""
    assert training.zero_bytes_per_process(7.5e9, 64, stage) == expected


def test_zero_with_less_that_is_cut():
    """F6a, F7: were the 8 bytes of Adam's moments alone cut, stage 1 would take 60.9 GB, not 31."""
    assert training.adam_bytes_per_param() == 16
    kept = {"weight": 2, "gradient": 2}
    for stage, expected in ((1, 60.9375e9), (2, 46.171875e9)):
        cut = training.zero_bytes_per_process(7.5e9, 64, stage, **kept, optimizer=8)
        assert cut + 4 * 7.5e9 == expected  # master weights, whole


def test_zero_traffic():
    """F8."""
    assert [training.zero_communication_factor(stage) for stage in range(4)] == [1, 1, 1, 1.5]


def test_checkpointing():
    """F11."""
    assert activations.checkpointing_saving_fraction(32) == pytest.approx(0.6464466094)
    assert activations.checkpointing_saving_fraction(80) == pytest.approx(0.7763932023)
    assert activations.recompute_overhead_fraction(1, 2) == pytest.approx(1 / 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs())
def test_shapes_are_those_of_the_built_decoder(config):
    with torch.device("meta"):
        model = Decoder(config)
    expected = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            key = (tuple(parameter.shape), name.startswith("blocks."))
            expected[key] = expected.get(key, 0) + 1
    *found, rest = training.parameter_shapes(config)
    assert {(shape, inside): count for shape, count, inside in found} == expected
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    assert rest == ((vectors,), 1, False)
    assert sum(math.prod(shape) * count for shape, count, _ in (*found, rest)) == total_params(config)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adam8bit", "adafactor"])
@pytest.mark.parametrize("experts", [False, True])
def test_states_are_those_of_the_optimizers(optimizer, experts):
    build = pytest.importorskip("gristmill.train.optimizers.build")
    state = pytest.importorskip("gristmill.train.optimizers.state")
    few = {"num_experts": 4, "top_k": 2, "intermediate_size": 64, "dense_layers": (0,)}
    shape = preset("gristmill-5m").model_dump() | {"vocab_size": 512, "num_layers": 2}
    config = type(LLAMA).model_validate(shape | ({"experts": few} if experts else {}))
    model = Decoder(config)
    built = build.build_optimizer(model, TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer=optimizer))
    state.init_state(built)
    found = sum(
        value.numel() * value.element_size()
        for entry in built.state.values()
        for value in entry.values()
        if value.dim()  # not counts of steps
    )
    assert training.optimizer_bytes(config, optimizer) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("tokens", [1, 100, 4096, 5000, 65536])
@pytest.mark.parametrize("vocabulary", [512, 32_768, 128_256])
def test_chunks_of_logits_are_those_of_the_loss(tokens, vocabulary):
    for device, kind in (("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.bfloat16)):
        assert logits_chunk(tokens, vocabulary, kind.itemsize, device) == chunk_tokens(tokens, vocabulary, kind, device)


def total(**changes):
    arithmetic = {key: changes.pop(key) for key in ("precision", "weights", "device", "compiled") if key in changes}
    run = {"micro_batch_size": 8, "sequence_length": 2048} | changes
    return peak_memory(preset("gristmill-1.7b"), Arithmetic(**arithmetic), TrainingRun(**run)).total


def test_what_needs_less_is_said_to_need_less():
    modes = [total(checkpointing=mode) for mode in ("none", "selective", "sqrt", "block")]
    assert modes == sorted(modes, reverse=True)
    sharing = [total(data=data, processes=8) for data in ("ddp", "zero1", "zero2", "zero3")]
    assert sharing == sorted(sharing, reverse=True)
    for change in ({"offload": "cpu"}, {"optimizer": "adam8bit"}, {"weights": "bf16"}):
        assert total(**change) < total()
    assert total(precision="fp32") > total() > total(precision="fp8")
    assert total(compiled=False) > total()
    assert total(accumulates=True) - total() == pytest.approx(total_params(preset("gristmill-1.7b")) * 4, rel=0.1)


def test_most_of_a_large_batch_grows_with_it():
    one, two = total(micro_batch_size=16), total(micro_batch_size=32)
    states = total_params(preset("gristmill-1.7b")) * 12
    assert two - states == pytest.approx(2 * (one - states), rel=0.1)


def test_traffic_of_a_step():
    params = total_params(LLAMA)
    sent = {data: training.communication_bytes(LLAMA, Arithmetic(), data, 4) / params for data in training.STAGES}
    assert sent == pytest.approx({"ddp": 6, "zero1": 9, "zero2": 4.5, "zero3": 6})
    assert training.communication_bytes(LLAMA, Arithmetic(), "zero3", 1) == 0


def figures(quantities):
    return {quantity.id: quantity.value for quantity in quantities}


def test_plan_of_a_run():
    run = TrainingRun(1, 2048, processes=8, data="zero3")
    found = figures(plan_train(LLAMA, Arithmetic(), run, Budget(160e9, 2**22, "h100-sxm", 0.5)))
    rate = 8 * 989.4e12 * 0.5 / found["flops.per_token"]
    assert found["time.tokens_per_second"] == pytest.approx(rate)
    assert found["time.total"] == pytest.approx(160e9 / rate)
    assert found["time.device_hours"] == pytest.approx(8 * 160e9 / rate / 3600)
    assert found["tokens.steps"] == pytest.approx(160e9 / 2**22)
    again = TrainingRun(1, 2048, processes=8, data="zero3", checkpointing="block")
    slower = figures(plan_train(LLAMA, Arithmetic(), again, Budget(160e9, 2**22, "h100-sxm", 0.5)))
    assert slower["time.total"] == pytest.approx(found["time.total"] * 4 / 3)
    assert slower["flops.total"] == found["flops.total"], "what is computed again is no progress"
    assert slower["memory.zero3"] < found["memory.zero3"] < found["memory.ddp"]


def test_parts_sum_and_the_highest_moment_is_the_total():
    found = figures(plan_memory(LLAMA, Arithmetic(), TrainingRun(1, 2048, processes=8, data="zero2")))
    parts = [value for name, value in found.items() if name.startswith("memory.") and name != "memory.total"]
    assert sum(parts) == pytest.approx(found["memory.total"])
    assert found["memory.total"] == max(value for name, value in found.items() if name.startswith("moments."))
    assert found["zero.zero2"] == pytest.approx(total_params(LLAMA) * (2 + 14 / 8))


@pytest.mark.parametrize(
    ("run", "budget", "said"),
    [
        (TrainingRun(0, 2048), Budget(1e9, 2**22), "micro_batch_size must be at least 1, not 0"),
        (TrainingRun(1, 2048), Budget(-5, 2**22), "tokens must be at least 1 and finite, not -5"),
        (TrainingRun(1, 2048), Budget(1e9, 2**22, utilization=1.5), "mfu must be above 0 and at most 1, not 1.5"),
        (TrainingRun(4, 2048, processes=2), Budget(1e9, 4096), "a step of 4,096 tokens is less than the 16,384"),
        (TrainingRun(1, 2048), Budget(1e9, 4096, "h1000"), "'h1000' is not known"),
    ],
)
def test_settings_that_cannot_be(run, budget, said):
    with pytest.raises(GristmillError, match=said):
        plan_train(LLAMA, Arithmetic(), run, budget)
    with pytest.raises(GristmillError, match="1024 learned positions"):
        plan_memory(preset("gpt2-124m"), Arithmetic(), TrainingRun(1, 2048))
