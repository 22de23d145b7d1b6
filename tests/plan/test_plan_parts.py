"""What each device holds: together the whole model, whatever the layout; against slices of the built decoder."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import model_configs

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.plan.activations import Arithmetic, block_bytes
from gristmill.plan.layouts import Layout
from gristmill.plan.memory import TrainingRun, part_moments, peak_memory
from gristmill.plan.parallel_memory import in_flight, memory_per_device, stage_memories
from gristmill.plan.parameters import total_params
from gristmill.plan.parts import numbers, parts, stage_layers, whole
from gristmill.plan.training import STAGES, optimizer_bytes, parameter_shapes, state_bytes

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# What every tensor-parallel device has whole.
COPIED = ("router", "position_embedding", "output.bias", "down.bias", "kv_down", "q_down", "kv_norm", "embedding_norm")


def built(config):
    with torch.device("meta"):
        return Decoder(config)


def is_copied(name, config):
    if "_norm" in name or name.startswith("norm") or ".norm" in name:
        return not (config.qk_norm == "projection" and name.endswith(("q_norm.weight", "k_norm.weight")))
    return any(part in name for part in COPIED)


def sliced_numbers(config, layout):
    """Numbers on the devices of one expert-holding group of each stage, from the built decoder's own tensors: what
    is cut is counted once, what is copied T times, key/value heads as often as devices outnumber them."""
    tensor, model = layout.tensor, built(config)
    total = 0
    for name, parameter in model.named_parameters():
        if ".feed_forward." in name and parameter.dim() == 3:  # experts: cut over g T devices
            total += parameter.numel()
            continue
        copies = tensor if is_copied(name, config) else 1
        total += copies * parameter.numel()
        if not is_copied(name, config) and ".qkv." in name and tensor > config.num_kv_heads:
            keys_and_values = (
                parameter.numel() * 2 * config.num_kv_heads // (config.num_heads + 2 * config.num_kv_heads)
            )
            total += (tensor // config.num_kv_heads - 1) * keys_and_values
        if tensor > config.num_kv_heads and config.qk_norm == "projection" and name.endswith("k_norm.weight"):
            total += (tensor // config.num_kv_heads - 1) * parameter.numel()
    if config.tie_embeddings and layout.pipeline > 1:
        total += config.vocab_size * config.hidden_size
    return total


def divisible(config, tensor):
    """The shape with widths that `tensor` devices can cut evenly."""
    heads = config.num_kv_heads if config.latent is None else config.num_heads
    update = {
        "vocab_size": config.vocab_size * tensor,
        "intermediate_size": config.intermediate_size * tensor,
        "num_heads": config.num_heads * tensor,
        "num_kv_heads": config.num_heads * tensor if config.latent else heads * (tensor if heads > 1 else 1),
    }
    if config.experts is not None:
        experts = config.experts
        update["experts"] = experts.model_copy(update={
            "intermediate_size": experts.intermediate_size * tensor,
            "shared_intermediate_size": experts.shared_intermediate_size * tensor})  # fmt: skip
    return ModelConfig.model_validate(config.model_copy(update=update).model_dump())


@st.composite
def layouts(draw):
    tensor = draw(st.sampled_from([1, 2, 4]))
    config = divisible(draw(model_configs()), tensor)
    pipeline = draw(st.integers(1, config.num_layers))
    data = draw(st.sampled_from([1, 2, 4]))
    expert = 1
    if config.experts is not None:
        both = math.gcd(config.experts.num_experts, data * tensor)
        expert = draw(st.sampled_from([size for size in (1, 2, 4, 8) if both % size == 0]))
    return config, Layout(tensor=tensor, pipeline=pipeline, data=data, expert=expert, zero=draw(st.integers(0, 3)))


@settings(max_examples=150, **SLOW)
@given(layouts())
def test_the_devices_of_a_replica_hold_the_whole_model(case):
    config, layout = case
    found = 0
    for part in parts(config, layout):
        found += layout.tensor * numbers(part.dense_shapes)
        holders = layout.tensor * layout.data // part.expert_copies  # of all experts of a layer, once
        found += holders * numbers(part.expert_shapes)
    assert found == sliced_numbers(config, layout)
    assert [layer for stage in stage_layers(config.num_layers, layout.pipeline) for layer in stage] == list(
        range(config.num_layers)
    )


@settings(max_examples=60, **SLOW)
@given(model_configs())
def test_one_device_holds_everything(config):
    part = whole(config)
    assert part.params == total_params(config)
    for optimizer in ("adamw", "muon", "adam8bit", "adafactor"):
        state = state_bytes([*part.dense_shapes, *part.expert_shapes], optimizer)
        assert state == pytest.approx(optimizer_bytes(config, optimizer))
    outside = [shape for shape in parameter_shapes(config)[:-1] if not shape[2]]
    assert numbers(outside) == numbers(part.ends[:-1])


@settings(max_examples=60, **SLOW)
@given(layouts(), st.sampled_from(["adamw", "muon"]))
def test_states_add_up_to_one_copy(case, optimizer):
    """Under ZeRO stage s what it cuts lies once on all data-parallel devices of a stage; tensor-parallel copies of
    norms and routers are states of their own."""
    config, layout = case
    run = TrainingRun(1, config.max_seq_len, optimizer=optimizer)
    memories = stage_memories(config, Arithmetic("fp32", device="cpu"), run, layout, micro_batches=layout.pipeline)
    of_stage = parts(config, layout)
    devices = layout.tensor * layout.data
    held = [numbers(p.dense_shapes) * layout.tensor + numbers(p.expert_shapes) * devices // p.expert_copies
            for p in of_stage]  # fmt: skip
    state = [layout.tensor * state_bytes(p.dense_shapes, optimizer)
             + devices / p.expert_copies * state_bytes(p.expert_shapes, optimizer) for p in of_stage]  # fmt: skip
    for memory, numbers_held, states in zip(memories, held, state, strict=True):
        if layout.zero >= 1:
            assert devices * memory.optimizer == pytest.approx(states)
        if layout.zero == 3 or (layout.zero == 2 and layout.data > 1):
            assert devices * memory.weights == pytest.approx(4 * numbers_held)
        if layout.zero == 0 and config.experts is None:
            assert devices * memory.weights == pytest.approx(4 * numbers_held * layout.data)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "gpt2-xl"])
def test_data_parallelism_alone_is_what_training_expects(name, stage):
    config = preset(name)
    run = TrainingRun(2, 1024)
    for processes in (1, 8):
        data = next(kind for kind, number in STAGES.items() if number == stage)
        expected = peak_memory(config, Arithmetic(), TrainingRun(2, 1024, data=data, processes=processes))
        found = memory_per_device(config, Arithmetic(), run, Layout(data=processes, zero=stage))
        assert found == expected


LLAMA, EXPERTS = preset("llama-3-70b"), preset("deepseek-v3")


def per_device(config=LLAMA, micro_batches=16, sequence_parallel=True, **layout):
    run = TrainingRun(1, 4096, checkpointing="selective")
    return memory_per_device(config, Arithmetic(), run, Layout(**layout), micro_batches, sequence_parallel)


def test_more_devices_need_less_each():
    for name, sizes in (("tensor", (1, 2, 4, 8)), ("pipeline", (1, 2, 4, 8, 16, 80)), ("data", (1, 2, 8, 64))):
        zero = 3 if name == "data" else 0
        found = [per_device(**{name: size}, zero=zero) for size in sizes]
        assert all(one.total > other.total for one, other in pairwise(found)), name
        assert all(one.weights > other.weights for one, other in pairwise(found)), name
    experts = [per_device(EXPERTS, data=64, expert=size).total for size in (1, 8, 64)]
    assert experts == sorted(experts, reverse=True)
    stages = [per_device(EXPERTS, data=64, expert=8, tensor=8, pipeline=4, zero=zero).total for zero in range(4)]
    assert stages == sorted(stages, reverse=True)


def test_experts_lie_once_on_the_devices_that_share_them_out():
    """All of DeepSeek-V3's experts on 64 devices: 4 of 256 each, states of ZeRO 1 over the data-parallel devices that
    hold the same ones."""
    each = numbers(parts(EXPERTS, Layout())[0].expert_shapes)
    for layout, holders, copies in (
        (Layout(data=64, expert=64), 64, 1),
        (Layout(data=64, expert=8), 8, 8),
        (Layout(tensor=8, expert=8), 8, 1),
        (Layout(tensor=8, data=8, expert=64), 64, 1),
        (Layout(tensor=8, data=8), 8, 8),
        (Layout(tensor=2, data=6, expert=4), 4, 3),
    ):
        (part,) = parts(EXPERTS, layout)
        assert numbers(part.expert_shapes) * holders == each
        assert part.expert_copies == copies


def test_activations_under_sequence_parallelism_are_cut_whole():
    """Korthikanti et al. 2022, table 2: without it the stream, its norms and their outputs stay on every device."""
    config = LLAMA.model_copy(update={"num_kv_heads": 64})
    run = TrainingRun(1, 4096, checkpointing="none")

    def activations(tensor, sequence):
        (part,) = parts(config, Layout(tensor=tensor))
        found = part_moments(part, Arithmetic("bf16", "bf16"), run, 1, sequence)
        return next(memory.activations for memory in found if memory.moment == "last block")

    one = activations(1, True)
    assert activations(8, True) == pytest.approx(one / 8, rel=0.01)
    assert one / 8 < activations(8, False) < one / 2


def test_a_pipeline_keeps_the_micro_batches_that_are_under_way():
    assert [in_flight(stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(stage, 4, 2) for stage in range(4)] == [2, 2, 2, 1]
    run = TrainingRun(1, 4096, checkpointing="block")
    first = [
        stage_memories(LLAMA, Arithmetic(), run, Layout(pipeline=4), count)[0].activations for count in (1, 2, 3, 4, 9)
    ]
    step = first[1] - first[0]
    assert first[2] - first[1] == pytest.approx(step)
    assert first[3] == pytest.approx(first[4])
    assert step == pytest.approx(4096 * 20 * 2 * 8192, rel=0.01), "inputs of its 20 blocks, in bf16"
    assert [len(stage) for stage in stage_layers(10, 4)] == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(tensor=3), "tensor parallelism 3 does not divide 64 attention heads"),
        (Layout(pipeline=81), "pipeline of 81 stages is longer than the model's 80 layers"),
        (Layout(expert=2), "expert parallelism needs a model with experts"),
        (Layout(data=0), "data parallelism must be at least 1, not 0"),
        (Layout(zero=4), "zero must be a stage, 0 to 3, not 4"),
    ],
)
def test_layouts_that_cannot_be(layout, said):
    with pytest.raises(GristmillError, match=said):
        memory_per_device(LLAMA, Arithmetic(), TrainingRun(1, 4096), layout)
    with pytest.raises(GristmillError, match="one must be a multiple of the other"):
        Layout(tensor=4).check(LLAMA.model_copy(update={"num_heads": 48, "num_kv_heads": 6}))
    with pytest.raises(GristmillError, match="micro_batches must be at least 1, not 0"):
        memory_per_device(LLAMA, Arithmetic(), TrainingRun(1, 4096), Layout(), micro_batches=0)


def test_published_activations_of_a_block():
    """Korthikanti et al. 2022, equation 1: 34 s b h bytes a layer of GPT-3 where no scores are kept, 2 of them masks of
    dropout, which there is none of here."""
    config = preset("gpt3-175b")
    block = block_bytes(config, 0, Arithmetic("bf16", "bf16", "cuda", compiled=False))
    assert block.whole / config.hidden_size == pytest.approx(32, rel=0.01)
    norms = (block.norms - 2 * 2 * config.hidden_size) / config.hidden_size  # but the inputs of the products
    assert norms == pytest.approx(4, rel=0.01)
