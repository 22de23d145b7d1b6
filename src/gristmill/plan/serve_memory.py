"""Memory of a server: weights and cache in their formats, sequences that fit at once, and how likely they are to
outgrow the cache.

Formats' bits count the scales that come with them. A model in fewer than 16 bits keeps embedding, head and norms in 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig
from .capacity_limits import kv_budget_bytes, max_concurrent_sequences
from .device import Device
from .kv_cache import kv_cache_bytes_per_token
from .layouts import Layout
from .parameters import head_params, matrix_params, total_params
from .recorded_steps import is_recorded, recorded_tokens
from .step_time import expert_params, is_processor

WEIGHT_BITS = {
    "fp32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,  # a scale for each matrix
    "int8": 8 + 32 / 4096,  # a float32 scale for each row, of about 4,096 weights
    "int4": 4 + 20 / 128,  # groups of 128 with a 16-bit scale and a 4-bit zero (AWQ, GPTQ)
    "nf4": 4 + 8.125 / 64,  # groups of 64 with 8-bit scales, those in groups of 256 (QLoRA, section 3)
}
KV_TYPES = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8}
SCALE_BITS = 32  # of each key and each value of a token and head that is stored in 8 bits (engine/cache.py)
CONTEXT_BYTES = 0.6e9  # what a CUDA context and its libraries take before any tensor (assumed)
BLOCK_TOKENS = 64  # of a block of the cache on a GPU (engine/limits.py)
STEP_TOKENS = 8192  # most tokens of a step on a GPU (engine/limits.py)
SLOTS = 256  # most sequences that run at once, unless somebody asks for more (engine/limits.py)
UTILIZATION = 0.9  # of the free memory, for the cache (engine/limits.py)
CPU_STEP_TOKENS, CPU_SLOTS, CPU_UTILIZATION = 2048, 64, 0.5  # the same on a processor


def weight_bits(name: str) -> float:
    """Bits of a weight in this format; GristmillError for one that is not known."""
    if name not in WEIGHT_BITS:
        raise GristmillError(f"weights {name!r} are not known; use one of {', '.join(WEIGHT_BITS)}")
    return WEIGHT_BITS[name]


def kv_bits(name: str, config: ModelConfig) -> float:
    """Bits of a number of the cache in this type, the scales that 8-bit keys and values have included: 8 + 2 * 32 /
    (D + E) of each head. GristmillError for a type that is not known."""
    if name not in KV_TYPES:
        raise GristmillError(f"kv {name!r} is not known; use one of {', '.join(KV_TYPES)}")
    bits = KV_TYPES[name]
    _, key_width, value_width = config.cache_shape
    return bits + (2 * SCALE_BITS / (key_width + value_width) if bits == 8 else 0)


def served_weight_bytes(config: ModelConfig, bits: float) -> float:
    """Bytes of a served model: the blocks' matrices (all experts) in `bits`, the rest in 16 where those are fewer."""
    matrices = matrix_params(config, active=False) - head_params(config)
    return matrices * bits / 8 + (total_params(config) - matrices) * max(bits, 16) / 8


def step_bytes(config: ModelConfig, tokens: int, sequences: int, bytes_per_element: int = 2) -> int:
    """What a step takes beside weights and cache: the stream and the widest results of a layer for `tokens`, logits of
    `sequences` in three forms. The engine reserves this (engine/limits.py)."""
    heads = config.num_heads * (config.head_dim + config.value_dim) + 2 * config.num_kv_heads * config.head_dim
    wide = config.intermediate_size
    if config.experts is not None:
        experts = config.experts
        wide = max(wide, experts.top_k * experts.intermediate_size + experts.shared_intermediate_size)
    each = 4 * config.hidden_size + max(heads, 3 * wide)
    return tokens * each * bytes_per_element + sequences * config.vocab_size * (bytes_per_element + 4 * 4)


@dataclass(frozen=True)
class ServingMemory:
    """Bytes on each device of a server."""

    weight_bytes: float
    working_bytes: float  # of a step, and the device's context
    kv_budget_bytes: float
    kv_bytes_per_token: float  # of one sequence's token, on this device
    utilization: float = UTILIZATION

    @property
    def kv_tokens(self) -> float:
        """Tokens that the cache holds."""
        return self.kv_budget_bytes / self.kv_bytes_per_token

    def sequences(self, tokens: float) -> int:
        """How many sequences of so many tokens the cache holds at once."""
        return max_concurrent_sequences(self.kv_budget_bytes, tokens * self.kv_bytes_per_token)


def context_bytes(device: Device) -> float:
    """What is taken before any tensor is made."""
    return 0.0 if is_processor(device) else CONTEXT_BYTES


def serving_memory(
    config: ModelConfig,
    device: Device,
    layout: Layout,
    weight_bits: float,
    kv_bits: float,
    utilization: float | None = None,
) -> ServingMemory:
    """What the engine makes of a device's memory: after context and weights, `utilization` of what is free goes to the
    cache, or what a step leaves of it if that is less. Weights and layers are shared by tensor * pipeline devices, of
    the experts by all that `expert` names; keys and values by as many devices as there are key/value heads."""
    processor = is_processor(device)
    if utilization is None:
        utilization = CPU_UTILIZATION if processor else UTILIZATION
    if not 0 < utilization <= 1:
        raise GristmillError(f"--memory-utilization must be above 0 and at most 1, not {utilization}")
    shared = layout.tensor * layout.pipeline
    all_bytes = served_weight_bytes(config, weight_bits)
    weights = all_bytes / shared
    if config.experts is not None and layout.expert > layout.tensor:
        routed = config.experts.num_experts * expert_params(config) * weight_bits / 8
        weights = (all_bytes - routed) / shared + routed / (layout.expert * layout.pipeline)
    tokens, slots = (CPU_STEP_TOKENS, CPU_SLOTS) if processor else (STEP_TOKENS, SLOTS)
    context = context_bytes(device)
    element = 4 if weight_bits > 16 else 2
    working = step_bytes(config, tokens, slots, element) / layout.tensor
    if not processor and is_recorded(config):  # what graphs keep
        recorded = max(recorded_tokens(config, tokens), slots)
        working += step_bytes(config, recorded, 2 * slots, element) / layout.tensor
    free = device.memory_bytes - context - weights
    budget = min(kv_budget_bytes(free, utilization, 0), kv_budget_bytes(free, 1, 0, working))
    heads = min(layout.tensor, config.cache_shape[0])
    per_token = kv_cache_bytes_per_token(config, kv_bits / 8) / heads / layout.pipeline
    return ServingMemory(weights, working + context, budget, per_token, utilization)


def lognormal_moment(mean: float, spread: float, power: int) -> float:
    """E[x^k] = mean^k (1 + spread^2)^(k (k - 1) / 2) of a lognormal length with this mean and coefficient of
    variation."""
    return mean**power * (1 + spread**2) ** (power * (power - 1) / 2)


def lognormal_quantile(mean: float, spread: float, deviations: float) -> float:
    """The length that is so many standard deviations of its logarithm above the median: mean exp(z s - s^2 / 2) with
    s^2 = ln(1 + spread^2); 2.326 of them for 99 %."""
    sigma = math.sqrt(math.log1p(spread**2))
    return mean * math.exp(deviations * sigma - sigma**2 / 2)


def held_tokens(prompt_tokens: float, output_tokens: float, spread: float) -> tuple[float, float]:
    """Mean and variance of the tokens that a running sequence holds, seen at any moment: its prompt, and of its reply
    what is written so far. Lengths are lognormal and independent, `spread` their coefficient of variation. A reply of o
    tokens is o times as likely to be met as one of a single token, and at any of its tokens alike: E[written] =
    E[o^2] / (2 E[o]), E[written^2] = E[o^3] / (3 E[o])."""
    written = lognormal_moment(output_tokens, spread, 2) / (2 * output_tokens)
    squared = lognormal_moment(output_tokens, spread, 3) / (3 * output_tokens)
    prompt_variance = lognormal_moment(prompt_tokens, spread, 2) - prompt_tokens**2
    return prompt_tokens + written, prompt_variance + squared - written**2


def preemption_probability(sequences: int, kv_tokens: float, mean: float, variance: float) -> float:
    """P(the tokens of `sequences` running ones are more than the cache holds): the sum of many independent lengths is
    normal (central limit), so Q((tokens - n mean) / sqrt(n variance)). That share of the time the engine has to take a
    sequence's blocks away."""
    if sequences < 1:
        return 0.0
    room = kv_tokens - sequences * mean
    if variance <= 0:
        return float(room < 0)
    return 0.5 * math.erfc(room / math.sqrt(2 * sequences * variance))


def sequences_at_risk(kv_tokens: float, mean: float, variance: float, risk: float) -> int:
    """The most sequences whose `preemption_probability` is at most `risk`."""
    low, high = 0, max(int(kv_tokens // max(mean, 1)) + 2, 2)
    while low < high:
        middle = (low + high + 1) // 2
        if preemption_probability(middle, kv_tokens, mean, variance) <= risk:
            low = middle
        else:
            high = middle - 1
    return low
