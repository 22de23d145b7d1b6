"""Pace, MFU, norms of weights and updates, samples: against counts by hand and runs of the model itself."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gristmill.events import EventLog
from gristmill.model import counts
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.train.config import WatchConfig
from gristmill.train.throughput import flops_per_token, mfu, peak_flops
from gristmill.train.watch import PARTS, Watch, norms_by_part, part_of, weights

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=24,
    max_seq_len=24, qk_norm="head", tie_embeddings=False,
)  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Two:
    """Two processes that hold the same: a sum over them is twice the value."""

    count, main = 2, False

    def all_reduce(self, tensor):
        return 2 * tensor


def watch_with(clock, config=None, **options):
    events = []
    log = EventLog(None)
    log.subscribers.append(events.append)
    watch = Watch(config or WatchConfig(), log.stage("base"), None, torch.device("cpu"), "fp32", clock=clock, **options)
    return watch, events


def test_flops_of_a_llama_shaped_model_by_hand():
    """d12: 12 layers of 768 with 6 heads of 128, feed-forward 2,048, vocabulary 32,768, at 2,048 tokens."""
    config = ModelConfig(
        vocab_size=32_768, hidden_size=768, num_layers=12, num_heads=6, num_kv_heads=6, head_dim=128,
        intermediate_size=2048, max_seq_len=2048, tie_embeddings=True,
    )  # fmt: skip
    matrices = 12 * (4 * 768 * 768 + 3 * 768 * 2048) + 32_768 * 768
    attention = 12 * 2 * 2 * 768 * 2049 / 2  # scores and sums, a multiply-add is two, half of the keys
    assert flops_per_token(config, 2048) == 3 * (2 * matrices + attention)


def test_the_mfu_of_a_measured_run():
    """333,014 tokens/s of the 135M shape on one H100 (989 TFLOP/s) are 34.3 %, by a count of its own."""
    config = preset("smollm2-135m")
    assert mfu(333_014, flops_per_token(config, 2048), 989.4e12) == pytest.approx(0.343, abs=0.002)
    assert mfu(2 * 333_014, flops_per_token(config, 2048), 989.4e12, processes=2) == pytest.approx(0.343, abs=0.002)


def test_peaks_are_those_of_sixteen_bits_and_unknown_devices_have_none():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == peak_flops("NVIDIA H100 80GB HBM3", "fp8") == 989.4e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") == 494.7e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert peak_flops("NVIDIA H100 NVL", "bf16") is None
    assert peak_flops("cpu", "fp32") is None


def test_the_pace_leaves_out_the_warm_up_and_what_is_done_apart():
    clock = Clock()
    watch, events = watch_with(clock)
    watch.step(1000)
    clock.now += 60  # compilation
    assert watch.entry(1, {"loss": 4.0}) == {"step": 1, "loss": 4.0}
    for _ in range(4):
        watch.step(1000)
        clock.now += 0.5
    with watch.apart():
        clock.now += 30
    kept = watch.entry(5, {"loss": 3.12345678}, stall_seconds=0.1)
    assert kept == {"step": 5, "loss": 3.123457}  # no figure of the clock: it goes into an artifact
    first, second = events
    assert "tokens_per_second" not in first
    assert second["tokens_per_second"] == 2000
    assert second["stall"] == 0.05
    assert "mfu" not in second
    assert second["loss"] == kept["loss"]


def test_tokens_of_all_processes_count_and_only_the_main_one_writes():
    clock = Clock()
    watch, events = watch_with(clock, processes=Two())
    watch.entry(1, {"loss": 4.0})
    watch.step(500)
    clock.now += 1
    assert watch._pace(0.0)["tokens_per_second"] == 1000
    assert events == []


def test_norms_and_samples_are_due_at_their_steps():
    watch, _ = watch_with(Clock(), WatchConfig(norms_every=3, sample_every=0))
    assert [step for step in range(1, 8) if watch.wants_norms(step)] == [3, 6]
    assert not any(watch.wants_sample(step) for step in range(8))
    watch, _ = watch_with(Clock(), WatchConfig(norms_every=0, sample_every=4, sample_prompts=("a",)))
    assert [step for step in range(1, 9) if watch.wants_sample(step)] == [4, 8]
    assert not any(watch.wants_norms(step) for step in range(8))


@pytest.mark.parametrize("name", ["gpt2-124m", "deepseek-v2-lite", "gemma-3-270m"])
def test_parameters_belong_to_the_parts_that_the_planner_counts(name):
    config = preset(name).model_copy(update={"num_layers": 2})
    with torch.device("meta"):
        model = Decoder(config)
    found = dict.fromkeys(PARTS, 0)
    for parameter_name, parameter in model.named_parameters():
        found[part_of(parameter_name)] += parameter.numel()
    assert {part: number for part, number in found.items() if number} == counts.parameters_by_part(config)


def test_norms_of_weights_and_updates():
    model = Decoder(CONFIG).init_weights(0)
    before = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.25
    found = norms_by_part(model, before)
    numbers = counts.parameters_by_part(CONFIG)
    assert {name.split("/")[1] for name in found} == set(numbers)
    for part, number in numbers.items():
        assert found[f"update_norm/{part}"] == pytest.approx(0.25 * math.sqrt(number), rel=1e-5)
    assert found["weight_norm/embedding"] == pytest.approx(float(model.embedding.weight.detach().norm()), rel=1e-6)
    assert norms_by_part(model, before, Two()) == found  # whole copies in each process: nothing is added up


def test_shards_are_added_up_over_the_processes():
    """One process's shards, and a sum over two of them that hold the same: norms larger by the root of two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
        model = Decoder(CONFIG).init_weights(0)
        plain = norms_by_part(model, weights(model))
        whole = model.head.weight.detach()
        model.head.weight = torch.nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)]))
        before = weights(model)
        assert type(before[-1]) is torch.Tensor
        assert norms_by_part(model, before) == plain
        both = norms_by_part(model, before, Two())
    finally:
        dist.destroy_process_group()
    assert both["weight_norm/head"] == pytest.approx(math.sqrt(2) * plain["weight_norm/head"])
    assert both["weight_norm/attention"] == plain["weight_norm/attention"]


def test_samples_are_written_with_their_step_by_the_main_process_alone():
    texts = [("a", "one"), ("b", "two")]
    watch, events = watch_with(Clock())
    watch.samples(7, iter(texts))
    assert [(event["type"], event["step"], event["prompt"], event["text"]) for event in events] == [
        ("sample", 7, "a", "one"),
        ("sample", 7, "b", "two"),
    ]
    other, events = watch_with(Clock(), processes=Two())
    made = iter(texts)
    other.samples(7, made)
    assert events == []
    assert list(made) == []  # it takes part in making them
