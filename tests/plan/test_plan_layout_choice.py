"""Which layout is chosen: by brute force, by what was published, and by what must not happen."""

import itertools

import pytest

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.activations import Arithmetic
from gristmill.plan.communication import Links
from gristmill.plan.device import device
from gristmill.plan.layout_choice import choose_layout
from gristmill.plan.layout_memory import MODES, LayoutMemory
from gristmill.plan.layout_search import MICRO_BATCHES
from gristmill.plan.layouts import Layout
from gristmill.plan.memory import TrainingRun, peak_memory
from gristmill.plan.memory_plan import usable_bytes
from gristmill.plan.training_step import Schedule, Work, step_time
from gristmill.plan.utilization import measured_share


def by_hand(config, n, length, batch):
    """The quickest time of all layouts and schedules, each tried."""
    on = device("h100-sxm")
    work, links, share = Work(config, Arithmetic(), length), Links.of(on), measured_share(config).share
    memory, sequences = LayoutMemory(work), batch // length
    divisors = [size for size in range(1, n + 1) if n % size == 0]
    best = float("inf")
    for tensor, pipeline, zero, size, chunks, mode in itertools.product(
        divisors, divisors, range(4), MICRO_BATCHES, (1, 2, 4, 8), MODES
    ):
        if n % (tensor * pipeline) or tensor > 8 or config.num_heads % tensor or pipeline > config.num_layers:
            continue
        data = n // tensor // pipeline
        layers = -(-config.num_layers // pipeline)
        if sequences % (data * size) or (zero > 1 and pipeline > 1) or (zero and data == 1) or layers % chunks:
            continue
        count = sequences // data // size
        if chunks > 1 and (pipeline == 1 or count % pipeline):
            continue
        layout, schedule = Layout(tensor, pipeline, data, 1, zero), Schedule(length, size, count, chunks, mode)
        if memory.total(layout, schedule) <= usable_bytes(on):
            step = step_time(work, layout, schedule, links, on.peak("bf16"), share)
            best = min(best, step.seconds)
    return best


@pytest.mark.parametrize(
    ("name", "n", "length", "batch"),
    [("llama-3-8b", 16, 8192, 2**21), ("llama-3-70b", 64, 4096, 2**21), ("gristmill-135m", 6, 2048, 96 * 2048)],
)
def test_no_layout_is_quicker_than_the_one_chosen(name, n, length, batch):
    config = preset(name)
    answer = choose_layout(config, "h100-sxm", n, sequence_length=length, batch_tokens=batch)
    assert answer.choices[0].step.seconds <= by_hand(config, n, length, batch) * 1.006
    times = [choice.step.seconds for choice in answer.choices]
    assert times == sorted(times)
    for choice in answer.choices:
        assert choice.layout.devices == n
        assert choice.memory_bytes <= usable_bytes(device("h100-sxm"))
        layout, schedule = choice.layout, choice.schedule
        assert layout.data * schedule.micro_batches * schedule.micro_batch_size == batch // length


def test_llama_3_405b_is_laid_out_as_meta_did():
    """Grattafiori et al. 2024, table 4: 16,384 H100, 16 Mi tokens a step: TP 8, PP 16, DP 128."""
    answer = choose_layout(preset("llama-3.1-405b"), "h100-sxm", 16_384, sequence_length=8192, batch_tokens=2**24)
    first = answer.choices[0].layout
    assert (first.tensor, first.pipeline, first.data) == (8, 16, 128)
    assert "It needs more than a node" in answer.reasons[0]


def test_what_fits_one_device_is_not_cut():
    answer = choose_layout(preset("gristmill-135m"), "h100-sxm", 8)
    assert answer.choices[0].layout == Layout(data=8)
    assert answer.reasons[0].startswith("It fits on one device")
    assert answer.reasons[-2].startswith("It beats PP 2 x DP 4 by ")
    assert answer.reasons[-1].endswith("it runs the quickest.")
    one = choose_layout(preset("gristmill-135m"), "h100-sxm", 1)
    assert len(one.choices) == 1
    assert one.choices[0].name() == "one device"


def test_what_gristmills_own_training_can_do_is_said():
    cut = choose_layout(preset("llama-3-70b"), "h100-sxm", 64, sequence_length=4096)
    alone = choose_layout(
        preset("llama-3-70b"), "h100-sxm", 64, sequence_length=4096, fixed={"tensor": 1, "pipeline": 1}
    )
    assert f"there {alone.choices[0].name()} is quickest, {alone.choices[0].step.seconds:.4g} s" in cut.reasons[-1]
    large = choose_layout(preset("llama-3.1-405b"), "h100-sxm", 256, sequence_length=8192)
    assert "it runs none of these" in large.reasons[-1]


def test_what_fits_a_node_says_so_and_experts_are_spoken_of():
    assert "but on one node" in choose_layout(preset("llama-3-8b"), "h100-sxm", 8).reasons[0]
    spoken = choose_layout(preset("mixtral-8x7b"), "h100-sxm", 64, sequence_length=4096).reasons
    assert any(reason.startswith("Experts hold 9") for reason in spoken)


@pytest.mark.parametrize(("name", "most"), [("llama-3-70b", 400), ("deepseek-v3", 3000)])
def test_of_a_thousand_devices_few_schedules_are_reckoned_out(name, most):
    """So that an answer takes about a tenth of a second."""
    answer = choose_layout(preset(name), "h100-sxm", 1024, sequence_length=4096)
    assert len(answer.choices) == 8
    assert answer.looked_at < most


def test_more_devices_are_not_slower():
    times = [
        choose_layout(preset("llama-3-70b"), "h100-sxm", n, sequence_length=4096).choices[0].step.seconds
        for n in (32, 64, 128, 256, 512)
    ]
    assert times == sorted(times, reverse=True)


def test_rules_are_named_with_an_example():
    answer = choose_layout(preset("llama-3-70b"), "h100-sxm", 64, sequence_length=4096)
    rules = " ".join(rule.sentence() for rule in answer.excluded)
    assert "tensor parallelism stays within a node of 8 devices (TP 16)" in rules
    assert "zero2 and zero3 are not combined with a pipeline" in rules
    assert "a device's share fits into 81.24 GB" in rules
    uneven = choose_layout(preset("llama-3-8b"), "h100-sxm", 8, sequence_length=8192, batch_tokens=12 * 8192)
    assert "divides the batch's 12 sequences equally (DP 8)" in " ".join(rule.sentence() for rule in uneven.excluded)
    assert all(choice.layout.data in (1, 2, 4) for choice in uneven.choices)


def test_sizes_that_are_given_are_kept():
    fixed = {"tensor": 4, "zero": 1}
    answer = choose_layout(preset("llama-3-8b"), "h100-sxm", 32, fixed=fixed)
    assert {choice.layout.tensor for choice in answer.choices} == {4}
    assert {choice.layout.zero for choice in answer.choices if choice.layout.data > 1} == {1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"devices": 0}, "devices must be between 1 and 131,072, not 0"),
        ({"sequence_length": 0}, "seq_len must be at least 1, not 0"),
        ({"sequence_length": 99_999}, r"seq_len \(99999\) is more than the model's max_seq_len \(8192\)"),
        ({"batch_tokens": 10_000}, "a batch of 10,000 tokens is not a whole number of sequences of 8,192"),
        ({"batch_tokens": 0}, "a batch of 0 tokens holds no sequence"),
        ({"utilization": float("nan")}, "mfu must be above 0 and at most 1, not nan"),
        ({"devices_per_node": 0}, "devices_per_node must be at least 1, not 0"),
        ({"device_id": "h100"}, "'h100' is not known"),
        ({"fixed": {"tensor": 3}}, "tensor parallelism 3 does not divide 32 attention heads"),
        ({"fixed": {"tensor": 16}}, "tensor parallelism 16 does not divide 8 devices"),
        ({"fixed": {"tensor": 4, "pipeline": 4}}, "tensor x pipeline x data = 16 does not divide 8 devices"),
        ({"fixed": {"zero": 4}}, "zero must be a stage, 0 to 3, not 4"),
        ({"fixed": {"expert": 2}}, "expert parallelism needs a model with experts"),
        ({"fixed": {"expert": 0}}, "expert parallelism must be at least 1, not 0"),
        ({"fixed": {"pipeline": 0}}, "pipeline parallelism must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_says_which_rule_it_breaks(arguments, said):
    with pytest.raises(GristmillError, match=said):
        choose_layout(preset("llama-3-8b"), **arguments)


def test_too_large_a_model_says_by_how_much_and_what_helps():
    with pytest.raises(GristmillError, match=r"the smallest, TP 8, takes .* take more devices"):
        choose_layout(preset("llama-3.1-405b"), "h100-sxm", 8, sequence_length=8192)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_quick_memory_is_near_the_careful_one(zero, mode):
    """Where both can tell: data parallelism alone."""
    config = preset("gristmill-1.7b")
    work = Work(config, Arithmetic(), 2048)
    quick = LayoutMemory(work).total(Layout(data=8, zero=zero), Schedule(2048, 8, 2, 1, mode))
    data = ("ddp", "zero1", "zero2", "zero3")[zero]
    run = TrainingRun(8, 2048, accumulates=True, checkpointing=mode, data=data, processes=8)
    careful = peak_memory(config, Arithmetic(), run).total
    assert quick == pytest.approx(careful, rel=0.2)
