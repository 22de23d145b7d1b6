"""How long a step of training takes in a layout: arithmetic, the pipeline's bubble, and what traffic is not hidden.

    step = (m + (p - 1)/v) (compute + tensor + expert) + exposed(pipeline) + exposed(data)

with the compute, and the traffic that compute waits for, of one micro-batch in the slowest stage. Products that tensor
parallelism makes narrower are less efficient (plan/utilization.py). Symbols as in plan/communication.py and
plan/schedule_bubble.py. Not modelled: micro-batches of few tokens, experts that get unequally many, stragglers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..errors import GristmillError
from ..model.config import ModelConfig
from . import communication
from .activations import Arithmetic, Checkpointing, recomputed_share
from .communication import Links, Traffic
from .flops import flops_per_token_forward
from .layouts import Layout
from .parameters import head_params, total_params
from .schedule_bubble import slowest_stage
from .training import parameter_shapes
from .utilization import narrowing, product_width


@dataclass(frozen=True)
class Schedule:
    """How a step's batch goes through the devices: `micro_batches` of `micro_batch_size` sequences in each data-
    parallel replica; each device of a pipeline holds `interleaved` chunks of layers."""

    sequence_length: int
    micro_batch_size: int = 1
    micro_batches: int = 1
    interleaved: int = 1
    checkpointing: Checkpointing = "none"

    @property
    def tokens(self) -> int:
        """N."""
        return self.micro_batch_size * self.sequence_length


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by parts; `utilization` is the MFU that follows, everything included."""

    compute_seconds: float
    bubble_seconds: float
    traffic: tuple[Traffic, ...]
    utilization: float

    @property
    def exposed_seconds(self) -> float:
        return sum(part.exposed_seconds for part in self.traffic)

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.bubble_seconds + self.exposed_seconds


class Work:
    """What a model asks of each token and holds in parameters, counted once for all layouts."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic, sequence_length: int):
        self.config, self.arithmetic, self.sequence_length = config, arithmetic, sequence_length
        self.layers = config.num_layers
        forward = flops_per_token_forward(config, sequence_length)
        self.head_flops = 3 * 2.0 * head_params(config)
        self.flops_per_token = 3 * forward
        self.layer_flops = (self.flops_per_token - self.head_flops) / self.layers
        inside = [(shape, count) for shape, count, inside in parameter_shapes(config) if inside]
        # Matrices of experts are the ones with three axes.
        self.expert_params = sum(count * math.prod(shape) for shape, count in inside if len(shape) == 3)
        self.table_params = head_params(config)
        tables = self.table_params * (1 if config.tie_embeddings else 2)
        self.dense_params = total_params(config) - self.expert_params - tables  # learned positions among them
        self.expert_layers = sum(config.has_experts(layer) for layer in range(self.layers))
        self.width = product_width(config)
        self._slowest: dict[tuple[int, float], float] = {}

    @cached_property
    def head_layers(self) -> float:
        """The head's work, in layers."""
        return self.head_flops / self.layer_flops

    def slowest(self, stages: int, again: float) -> float:
        """FLOPs per token of the slowest stage, in layers of `again` times their own work (the head runs once)."""
        key = stages, again
        if key not in self._slowest:
            self._slowest[key] = slowest_stage(self.layers, stages, self.head_layers / again)
        return self._slowest[key]

    def device_params(self, layout: Layout) -> tuple[float, float]:
        """(parameters of no expert, parameters of experts) on the fullest device."""
        share = math.ceil(self.layers / layout.pipeline) / self.layers
        tables = self.table_params * (2 if layout.pipeline == 1 and not self.config.tie_embeddings else 1)
        dense = (self.dense_params * share + tables) / layout.tensor
        return dense, self.expert_params * share / (layout.tensor * layout.expert)


def step_time(
    work: Work, layout: Layout, schedule: Schedule, links: Links, peak_flops: float, utilization: float
) -> StepTime:
    """Estimate for one step; `utilization` is the share of `peak_flops` that a device reaches while it computes."""
    again = 1 + recomputed_share(schedule.checkpointing)
    m, v, p = schedule.micro_batches, schedule.interleaved, layout.pipeline
    reached = peak_flops * utilization * narrowing(work.width, layout.tensor)
    compute = work.slowest(p, again) * again * work.layer_flops * schedule.tokens / (layout.tensor * reached)
    traffic = _traffic(work, layout, schedule, links, compute)
    waited = sum(part.seconds for part in traffic if part.kind in ("tensor", "expert"))
    # Compute waits for these within each micro-batch, so that they lengthen the bubble too.
    bubble = (p - 1) / v * (compute + waited / m)
    whole = m * compute + bubble + sum(part.exposed_seconds for part in traffic)
    done = work.flops_per_token * schedule.tokens * m * layout.data
    return StepTime(m * compute, bubble, traffic, done / (whole * peak_flops * layout.devices))


def _traffic(
    work: Work, layout: Layout, schedule: Schedule, links: Links, compute: float
) -> tuple[Traffic, Traffic, Traffic, Traffic]:
    config, element = work.config, work.arithmetic.operand
    m, t, p = schedule.micro_batches, layout.tensor, layout.pipeline
    again = recomputed_share(schedule.checkpointing) > 0
    each = 6 if again else 4
    found = communication.groups(layout)

    layers = math.ceil(work.layers / p)
    sent = m * communication.tensor_bytes(config.hidden_size, schedule.tokens, layers, t, element, again)
    seconds = communication.ring_seconds(sent, found["tensor"], links, m * layers * each)
    tensor = Traffic("tensor", sent, found["tensor"].crosses(links), seconds)

    top_k = config.experts.top_k if config.experts else 0
    layers = math.ceil(work.expert_layers / p)
    sent = m * communication.expert_bytes(
        config.hidden_size, schedule.tokens, layers, top_k, layout.expert, t, element, again
    )
    seconds = communication.exchange_seconds(sent, found["expert"], links, m * layers * each)
    expert = Traffic("expert", sent, found["expert"].crosses(links), seconds)

    chunks = schedule.interleaved
    sent = m * communication.pipeline_bytes(config.hidden_size, schedule.tokens, chunks, t, element) if p > 1 else 0.0
    seconds = communication.transfer_seconds(sent, found["pipeline"], links, 2 * m * chunks)
    # Transfers of other micro-batches hide behind compute; those that fill and drain the pipeline do not.
    open_ = seconds / (m * chunks) * (p - 1)
    pipeline = Traffic(
        "pipeline", sent, found["pipeline"].crosses(links), seconds, min(max(seconds - open_, 0.0), m * compute)
    )
    return tensor, expert, pipeline, _data_traffic(work, layout, schedule, links, compute)


def _data_traffic(work: Work, layout: Layout, schedule: Schedule, links: Links, compute: float) -> Traffic:
    """Gradients of ddp and zero1 hide behind the last micro-batch's backward pass, which is two thirds of its compute;
    those of zero2 and zero3 behind every one. An interleaved pipeline takes a round of p micro-batches through one
    chunk after the other (Narayanan et al. 2021, section 2.2), so that gradients of all chunks but the last to come are
    complete while p (v - 1)/v backward passes go on. Weights of zero1 come when all is done, those of zero2 hide behind
    the first forward pass, those of zero3 behind all compute."""
    m, zero = schedule.micro_batches, layout.zero
    group = communication.groups(layout)["data"]
    dense, experts = work.device_params(layout)
    owners = layout.data // layout.expert
    g, e = work.arithmetic.weight, work.arithmetic.operand
    others = communication.Group(owners, layout.tensor * layout.expert * layout.pipeline)
    sent, seconds = [0.0, 0.0], [0.0, 0.0]
    for params, members in ((dense, group), (experts, others)):
        for i, part in enumerate(communication.data_bytes(params, members.size, zero, g, e, m)):
            sent[i] += part
            if part:
                seconds[i] += communication.ring_seconds(part, members, links)
    backward, forward = compute * 2 / 3, compute / 3
    v, p = schedule.interleaved, layout.pipeline
    window = backward * (max(1.0, min(p, m) * (v - 1) / v) if zero < 2 else m)
    behind = {0: 0.0, 1: 0.0, 2: forward, 3: m * compute}[zero]
    hidden = min(seconds[0], window)
    if zero == 3:  # one link, and one stretch of compute to hide behind
        hidden = min(sum(seconds), m * compute)
    else:
        hidden += min(seconds[1], behind)
    return Traffic("data", sum(sent), group.crosses(links), sum(seconds), hidden)


def check_batch(batch_tokens: int, sequence_length: int, data: int, micro_batch_size: int = 1) -> int:
    """Micro-batches of a step in each replica; GristmillError that names the rule where they do not come out whole."""
    if batch_tokens < sequence_length:
        raise GristmillError(f"a batch of {batch_tokens:,} tokens holds no sequence of {sequence_length:,}")
    if batch_tokens % sequence_length:
        raise GristmillError(
            f"a batch of {batch_tokens:,} tokens is not a whole number of sequences of {sequence_length:,}"
        )
    sequences = batch_tokens // sequence_length
    if sequences % data:
        raise GristmillError(
            f"the batch's {sequences:,} sequences cannot be shared equally by {data} data-parallel replicas"
        )
    if sequences // data % micro_batch_size:
        raise GristmillError(
            f"the {sequences // data:,} sequences of each data-parallel replica are no multiple of the micro-batch "
            f"size {micro_batch_size}"
        )
    return sequences // data // micro_batch_size
