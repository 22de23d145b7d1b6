"""`plan memory`'s answers: layouts, adapters, several models, serving, offload, and what is said of a device."""

import math
import re
from dataclasses import replace

import pytest

from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.activations import Arithmetic
from gristmill.plan.device import device
from gristmill.plan.finetune import frozen_bytes, lora_trainable_params
from gristmill.plan.finetune_memory import Adapters, adapter_memory, alignment_memory, default_targets, inference_memory
from gristmill.plan.kv_cache import kv_cache_bytes
from gristmill.plan.layouts import Layout
from gristmill.plan.memory import TrainingRun, peak_memory
from gristmill.plan.memory_hints import larger_layouts, serving_verdict, smaller_questions, usable_bytes, verdict
from gristmill.plan.memory_plan import MemoryQuestion, answer, inference_answer, offload_seconds, plan_memory
from gristmill.plan.parameters import total_params
from gristmill.plan.serve_memory import served_weight_bytes

LLAMA, LARGE = preset("llama-3-8b"), preset("llama-3-70b")
EXPERTS = preset("deepseek-v3")
H100 = device("h100-sxm")
RUN = TrainingRun(1, 4096, checkpointing="block")


def figures(quantities):
    assert len({quantity.id for quantity in quantities}) == len(quantities)
    assert all(math.isfinite(quantity.value) and quantity.value >= 0 and quantity.formula for quantity in quantities)
    return {quantity.id: quantity.value for quantity in quantities}


def test_adapters_take_their_base_and_their_own_states():
    for base, bits in (("bf16", 16), ("nf4", None)):
        found = adapter_memory(LLAMA, Arithmetic(), RUN, Adapters(16, default_targets(LLAMA), base))
        trained = lora_trainable_params(LLAMA, 16, default_targets(LLAMA))
        assert trained == 41_943_040
        assert found.frozen == frozen_bytes(LLAMA, base)
        assert bits is None or found.frozen == 2 * total_params(LLAMA)
        assert (found.weights, found.optimizer) == (4 * trained, 8 * trained)
        assert found.gradients <= 4 * trained
        assert found.total < peak_memory(LLAMA, Arithmetic(), RUN).total / 3


def test_adapters_of_gpt_3_as_the_guide_has_them():
    """F9: 18.87 million at rank 4, 9,251 times fewer, 8.0 times less of states."""
    config = preset("gpt3-175b")
    question = MemoryQuestion(config, Arithmetic(), TrainingRun(1, 2048), adapters=Adapters(4, ("q", "v"), "bf16"))
    found = figures(answer(question))
    assert found["adapters.parameters"] == 18_874_368
    assert found["adapters.reduction_factor"] == pytest.approx(9250.866536)
    assert found["adapters.states_reduction_factor"] == pytest.approx(7.993087707)


def test_adapters_spare_less_of_the_activations_the_more_they_stand_beside():
    plain = TrainingRun(4, 4096)
    whole = peak_memory(LLAMA, Arithmetic(), plain).activations
    sizes = [
        adapter_memory(LLAMA, Arithmetic(), plain, Adapters(8, targets, "bf16")).activations
        for targets in (("q", "v"), ("q", "v", "gate"), default_targets(LLAMA))
    ]
    assert sizes == sorted(sizes)
    assert 0.5 * whole < sizes[0] < 0.95 * whole


def test_adapters_and_frozen_weights_are_cut_with_their_layers():
    """On T devices a matrix's cut side is in one of its narrow matrices, the other is whole on each."""
    adapters = Adapters(16, ("q", "output"), "bf16")
    one = adapter_memory(LARGE, Arithmetic(), RUN, adapters)
    eight = adapter_memory(LARGE, Arithmetic(), RUN, adapters, Layout(tensor=8))
    width = LARGE.hidden_size
    assert one.weights == 4 * 80 * 2 * 16 * 2 * width
    assert eight.weights == 4 * 80 * 2 * 16 * (width + width // 8)
    assert eight.frozen == pytest.approx(one.frozen / 8, rel=0.001)
    staged = adapter_memory(LARGE, Arithmetic(), RUN, adapters, Layout(pipeline=8), micro_batches=8)
    assert staged.weights == one.weights / 8
    shared = adapter_memory(LARGE, Arithmetic(), RUN, adapters, Layout(data=8, zero=3))
    assert shared.frozen == one.frozen / 8
    experts = adapter_memory(
        EXPERTS, Arithmetic(), RUN, Adapters(8, ("gate", "up", "down")), Layout(data=64, expert=64)
    )
    assert experts.weights < adapter_memory(EXPERTS, Arithmetic(), RUN, Adapters(8, ("gate", "up", "down"))).weights / 8


def test_methods_hold_their_models():
    """Weights, gradients and AdamW's moments 16 bytes a parameter, frozen models 2: 16, 18, 18 and 36 (F13)."""
    params = total_params(LLAMA)
    for method, trained, frozen in (("full", 1, 0), ("dpo", 1, 1), ("grpo", 1, 1), ("ppo", 2, 2)):
        found = {m.moment: m for m in alignment_memory(LLAMA, Arithmetic(), RUN, method, micro_batches=2)}
        training = found["training"]
        assert training.weights == 4 * params * trained
        assert training.optimizer == 8 * params * trained
        assert training.frozen == 2 * params * frozen
        assert training.gradients >= 4 * params * trained
        assert ("generation" in found) == (method in ("grpo", "ppo"))
    cut, whole = (
        alignment_memory(LLAMA, Arithmetic(), TrainingRun(4, 4096), "dpo", Layout(tensor=8), 1, 0, sequence)[0].total
        for sequence in (True, False)
    )
    assert cut < whole
    written = alignment_memory(LLAMA, Arithmetic(), RUN, "grpo", rollouts=64)[1]
    assert written.cache == kv_cache_bytes(LLAMA, 4096, 2, batch=64)
    with pytest.raises(GristmillError, match="method 'pp0' is not known; did you mean 'ppo'"):
        alignment_memory(LLAMA, Arithmetic(), RUN, "pp0")


def test_serving_on_each_device():
    (one,) = inference_memory(LARGE, Layout(), 4, 8192)
    assert one.weights == 2 * total_params(LARGE)
    assert one.cache == kv_cache_bytes(LARGE, 8192, 2, batch=4)
    (eight,) = inference_memory(LARGE, Layout(tensor=8), 4, 8192)
    assert eight.weights == pytest.approx(one.weights / 8, rel=0.001)
    assert eight.cache == one.cache / 8
    (more,) = inference_memory(LARGE, Layout(tensor=16), 4, 8192)
    assert more.cache == eight.cache, "eight key heads on sixteen devices: each stands on two"
    stages = inference_memory(LARGE, Layout(pipeline=4), 4, 8192)
    assert sum(stage.weights for stage in stages) == one.weights
    assert sum(stage.cache for stage in stages) == one.cache
    (spread,) = inference_memory(LARGE, Layout(data=4), 4, 8192)
    assert spread.cache == one.cache / 4
    (few,) = inference_memory(LARGE, Layout(), 4, 8192, weight_bits=4.15625)
    assert few.weights == pytest.approx(served_weight_bytes(LARGE, 4.15625))
    latent, cut = (inference_memory(EXPERTS, Layout(tensor=size, expert=size), 1, 4096)[0] for size in (1, 8))
    assert latent.cache == cut.cache, "the narrow vector stands on every device"
    assert cut.weights < latent.weights / 7


def test_answers_of_every_kind_add_up():
    layout = Layout(tensor=8, pipeline=4, data=2, zero=1)
    for question in (
        MemoryQuestion(LARGE, Arithmetic(), RUN, layout, 16),
        MemoryQuestion(LARGE, Arithmetic(), replace(RUN, offload="disk"), layout, 16),
        MemoryQuestion(LARGE, Arithmetic(), RUN, layout, 16, adapters=Adapters(8, ("q", "v"), "nf4")),
        MemoryQuestion(LLAMA, Arithmetic(), RUN, method="ppo", rollouts=32),
        MemoryQuestion(EXPERTS, Arithmetic(), RUN, Layout(data=64, expert=64, zero=1)),
    ):
        found = figures(answer(question, H100))
        parts = [value for name, value in found.items() if name.startswith("memory.") and name != "memory.total"]
        assert sum(parts) == pytest.approx(found["memory.total"])
        assert found["memory.total"] == max(value for name, value in found.items() if name.startswith("moments."))
        assert found["memory.total"] == pytest.approx(question.peak().total)
        if question.spread.pipeline > 1:
            assert found["memory.total"] == max(value for name, value in found.items() if name.startswith("stages."))
        over = found["memory.total"] - found["device.usable"]
        assert found["device.lacking" if over > 0 else "device.free"] == pytest.approx(abs(over))
    assert figures(plan_memory(LLAMA, Arithmetic(), RUN))["memory.total"] == peak_memory(LLAMA, Arithmetic(), RUN).total


def test_offloaded_state_and_its_way():
    params = total_params(LLAMA)
    for offload, host, disk in (("cpu", 8 * params, 0), ("disk", 0, 8 * params)):
        found = figures(answer(MemoryQuestion(LLAMA, Arithmetic(), replace(RUN, offload=offload)), H100))
        assert (found["offload.host"], found["offload.disk"]) == (host, disk)
        assert found["offload.moved"] == 16 * params
        assert found["memory.optimizer"] == 0
    assert found["offload.step"] == pytest.approx(16 * params / 7e9)
    assert offload_seconds(8e9, 25e9) == pytest.approx(0.32)  # as train/optimizers/offload.py says of a billion
    cut = figures(
        answer(MemoryQuestion(LLAMA, Arithmetic(), replace(RUN, offload="cpu"), Layout(data=8, zero=1)), H100)
    )
    assert cut["offload.host"] == params
    both = figures(answer(MemoryQuestion(LLAMA, Arithmetic(), replace(RUN, offload="cpu"), method="ppo"), H100))
    assert both["offload.host"] == 16 * params


def test_what_is_said_fits_and_what_is_cheaper_does_not():
    question = MemoryQuestion(LLAMA, Arithmetic(), TrainingRun(8, 2048), Layout(data=4, zero=1))
    (first, second) = verdict(question, H100)
    assert first.startswith("It does not fit NVIDIA H100")
    named = re.search(r"fit with (.*):", second)[1]
    for changes, other in smaller_questions(question):
        fits = other.peak().total <= usable_bytes(H100)
        if " ".join(changes) == named:
            assert fits
            break
        assert not fits
    small = MemoryQuestion(preset("gristmill-135m"), Arithmetic(), TrainingRun(8, 1024))
    (only,) = verdict(small, H100)
    assert re.match(r"It fits NVIDIA H100 SXM5 80GB: .* are left\.", only)
    said = " ".join(verdict(MemoryQuestion(LARGE, Arithmetic(), TrainingRun(1, 4096)), H100))
    assert "No setting makes it fit on as many devices." in said
    assert "--lora-rank 16 --base nf4" in said
    named = re.search(r"more devices it would fit with (.*?):", said)[1]
    for changes, other in larger_layouts(MemoryQuestion(LARGE, Arithmetic(), TrainingRun(1, 4096))):
        assert (other.peak().total <= usable_bytes(H100)) == (" ".join(changes) == named)
        if " ".join(changes) == named:
            break


def test_what_is_said_of_a_server():
    asked = (LARGE, Layout(), 4, 8192, 16, 16)
    said = serving_verdict(*asked, H100)
    assert "--weights int4" in said[1]
    assert "--tensor 2" in said[2]
    (fits,) = serving_verdict(LLAMA, Layout(), 4, 8192, 16, 16, H100)
    assert fits.startswith("It fits")
    found = figures(inference_answer(*asked, H100))
    assert found["device.lacking"] == pytest.approx(found["memory.total"] - found["device.usable"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_batches": 0}, "micro_batches must be at least 1, not 0"),
        ({"rollouts": -1}, "rollouts must be 0 or more, not -1"),
        ({"layout": Layout(tensor=3)}, "tensor parallelism 3 does not divide 32 attention heads"),
        ({"adapters": Adapters(0)}, "rank must be at least 1, not 0"),
        ({"adapters": Adapters(8, ("q",), "nf3")}, "the frozen model cannot be kept as 'nf3'; did you mean 'nf4'"),
        ({"adapters": Adapters(8, ("kv",))}, "no matrix 'kv'"),
        ({"adapters": Adapters(8), "method": "dpo"}, "adapters are reckoned without --method"),
        ({"adapters": Adapters(8), "run": replace(RUN, offload="cpu")}, "adapters are reckoned without --offload"),
        ({"run": TrainingRun(0, 4096)}, "micro_batch_size must be at least 1, not 0"),
        ({"run": TrainingRun(1, 99_999)}, r"seq_len \(99999\) is more than the model's max_seq_len"),
    ],
)
def test_questions_that_cannot_be(changes, said):
    question = replace(MemoryQuestion(LLAMA, Arithmetic(), RUN), **changes)
    with pytest.raises(GristmillError, match=said):
        answer(question)
    with pytest.raises(GristmillError, match="sequences must be at least 1, not 0"):
        inference_answer(LLAMA, Layout(), 0, 4096, 16, 16)
