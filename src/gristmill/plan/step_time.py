"""How long a device takes for one step of the engine: a roofline for each kind of work that a step consists of.

A step reads every matrix once, whatever the number of its tokens (of experts those that a token was sent to), and the
keys and values of the sequences that take part; it multiplies each new token with the matrices, and each pair of a
token and a key in attention. Products take the longer of what arithmetic and memory need (Williams et al. 2009),
because a GPU's kernel loads the next tile while it multiplies this one; one core of a processor, measured, does the one
after the other, so that they add up. `overlap` says which: 1 is the longer one, 0 the sum. Kinds of work follow each
other, so their seconds add up:

  products   FLOPs / (peak * compute) with weights / (bandwidth * memory), of the blocks' matrices and of the head
  attention  FLOPs / (peak * attention_compute) with keys and values / (bandwidth * attention_memory); at least what
             the keys of a part take one after the other, layers * context_seconds
  elements   norms, rotations, gates, sums and logits, which multiply no matrices: bytes / (bandwidth * elements)
  starting   step_seconds + layers * layer_seconds (of one token; few_ or many_layer_seconds of more) + sequences *
             sequence_seconds, and alone_seconds where the device had nothing to do before
  waiting    for the host, which prepares a step that reads prompts for reading_seconds + prompts * prompt_seconds +
             their tokens * prompt_token_seconds, less the seconds that the device is busy with what was launched before
  sending    two all-reduces a layer between tensor-parallel devices, all-to-alls between expert-parallel ones

On a GPU steps in which every sequence decodes are recorded and replayed, and those that read prompts, filled up to a
size that comes again, unless they are large (plan/recorded_steps.py). In others the host starts kernel by kernel, and
the device waits where that takes longer: the whole, with what the device was busy with, is at least step_seconds +
layers * eager_layer_seconds.

Weights that are stored in fewer bits are multiplied in 16: their bytes shrink, their FLOPs do not.
Symbols as in plan/parameters.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from ..errors import GristmillError
from ..model.config import ModelConfig
from .device import Device
from .flops import pair_flops
from .kv_cache import kv_cache_bytes
from .layouts import Layout
from .parameters import head_params, matrix_params
from .recorded_steps import is_recorded, recorded_size, recorded_tokens

FEW_ROWS = 16  # tokens of a step that a GPU's small kernels pad to 16; more to 32, or the library's (small_linear.py)
FAR = 512  # keys: a sequence of more is divided among programs
LOGIT_BYTES = 16  # of each logit: made and read in 16 bits, written and read in float32 to draw by


@dataclass(frozen=True)
class Load:
    """What one step of the engine computes, summed over its sequences."""

    tokens: int  # new tokens, which go through all matrices but the head
    sequences: int  # sequences that take part
    logits: int  # tokens behind which the head's logits are made
    pairs: int  # pairs of a new token and a key that it sees, in a full layer
    cached: int  # tokens whose keys and values a full layer reads from the cache
    prompts: int = 0  # sequences of which more than one token of a prompt is computed: more for the host to do
    alone: bool = False  # nothing was under way when it was planned, so the device waited for the host
    # Seconds that the device goes on, when it is planned, with what was launched before; inf: the host is far ahead.
    busy: float = field(default=math.inf, compare=False)

    @property
    def hidden(self) -> float:
        """Seconds of the host's work on it that cost no time, since the device is busy."""
        return 0.0 if self.alone else self.busy

    @property
    def prompt_tokens(self) -> float:
        """Of its tokens those that prompts have, where the other sequences compute one each."""
        return self.tokens - self.sequences + self.prompts if self.prompts else 0

    @staticmethod
    def decode(sequences: int, context: float, new_tokens: int = 1) -> Load:
        """`sequences` that each have `context` tokens behind them and compute `new_tokens`, one or one and guesses."""
        keys = sequences * (context + (new_tokens + 1) / 2)
        return Load(
            tokens=sequences * new_tokens,
            sequences=sequences,
            logits=sequences * new_tokens,
            pairs=round(keys * new_tokens),
            cached=round(sequences * (context + new_tokens)),
        )

    @staticmethod
    def prefill(tokens: int, cached: int = 0, sequences: int = 1, last: bool = True) -> Load:
        """`sequences` prompts of which `tokens` each are computed behind `cached` that are there already; `last` where
        a token is drawn behind them."""
        pairs = tokens * cached + tokens * (tokens + 1) // 2
        return Load(
            tokens=sequences * tokens,
            sequences=sequences,
            logits=sequences * last,
            pairs=sequences * pairs,
            cached=sequences * (cached + tokens),
            prompts=sequences * (tokens > 1),
        )

    def __add__(self, other: Load) -> Load:
        return Load(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.logits + other.logits,
            self.pairs + other.pairs,
            self.cached + other.cached,
            self.prompts + other.prompts,
            self.alone and other.alone,
            min(self.busy, other.busy),
        )


@dataclass(frozen=True)
class Efficiency:
    """What share of its ceilings a device reaches in the engine, and what it takes besides. The shares' defaults are
    those measured on an H100 SXM through torch (8192^3 products 695 of 989 TFLOP/s, copies 3,016 of 3,350 GB/s); of
    attention's arithmetic what FlashAttention 2 publishes for the H100 (its README: about 350 TFLOP/s forward)."""

    compute: float = 0.70  # of the peak, in products of matrices
    memory: float = 0.90  # of the bandwidth, in reading weights
    attention_compute: float = 0.35  # of the peak
    attention_memory: float = 0.75  # of the bandwidth, in reading keys and values from blocks
    elements: float = 0.75  # of the bandwidth, in what multiplies no matrices
    link: float = 0.80  # of the bandwidth between devices
    overlap: float = 1.0  # of arithmetic and memory within a kernel
    step_seconds: float = 20e-6  # of the host for a step (measured: 20 us for one request)
    # Of a layer, however small: with one token, with up to FEW_ROWS, with more (measured on an H100: 30 layers with a
    # floor of 0.09 ms take 0.47 and, with 32 tokens, 0.92 ms; 28 with one of 0.40 ms take 0.80 and 2.15).
    layer_seconds: float = 10e-6
    few_layer_seconds: float = 20e-6
    many_layer_seconds: float = 20e-6
    context_seconds: float = 5e-6  # of a layer's attention over FAR keys and more a sequence, a share of it over fewer
    alone_seconds: float = 0.4e-3  # of a step before which nothing was under way: the device waits for the host
    eager_layer_seconds: float = 0.7e-3  # of the host to start a layer's kernels (measured: 14 to 36 ms for 30 or 32)
    sequence_seconds: float = 2.5e-6  # of the host for a sequence's token (measured: 640 us for 256)
    # Of the host for a step that reads prompts, for each of them, and for each of their tokens; measured: 1.3 to 2 ms
    # for one short prompt, 5 to 8 ms for sixteen of 8,192 tokens in all.
    reading_seconds: float = 1.3e-3
    prompt_seconds: float = 50e-6
    prompt_token_seconds: float = 0.3e-6
    read_seconds: float = 0.1e-3  # from a step's end until its tokens are handed out
    message_seconds: float = 8e-6  # of an exchange between devices, however short (cited: llm-analysis, NVLink)

    default: ClassVar[Efficiency]
    ideal: ClassVar[Efficiency]  # the ceilings themselves, nothing lost: floors

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            least = 0 if name.endswith("_seconds") or name == "overlap" else 1e-6
            if not least <= value < math.inf:
                raise GristmillError(f"efficiency: {name} must be above 0 and finite, not {value}")
        if self.overlap > 1:
            raise GristmillError(f"efficiency: overlap must be from 0 to 1, not {self.overlap}")

    def host_seconds(self, load: Load) -> float:
        """What the host prepares a step for, as far as the step reads prompts."""
        if not load.prompts:
            return 0.0
        tokens = load.prompt_tokens * self.prompt_token_seconds
        return self.reading_seconds + load.prompts * self.prompt_seconds + tokens


def is_processor(device: Device) -> bool:
    """Whether this is a CPU: this machine's own, which `plan calibrate` measured."""
    return device.label == "measured" and device.devices_per_node == 1


def usual_efficiency(device: Device) -> Efficiency:
    """What to reckon with before steps were measured and fitted: the defaults above for a datasheet's ceilings; of
    ceilings that were measured themselves (`plan calibrate`) products and reading weights reach all. A processor, one
    thread: fitted to 378 steps of SmolLM2-135M in float32 (benchmarks/RESULTS.md)."""
    if device.label == "cited":
        return Efficiency.default
    if is_processor(device):
        return Efficiency(
            compute=1.0, memory=0.63, attention_compute=0.75, attention_memory=0.2, elements=1.0, overlap=0.0,
            layer_seconds=18e-6, few_layer_seconds=18e-6, many_layer_seconds=18e-6, context_seconds=0.0,
            alone_seconds=0.0, prompt_seconds=0.0, reading_seconds=0.0, prompt_token_seconds=0.0,
            read_seconds=0.0, eager_layer_seconds=0.0, sequence_seconds=10e-6,
        )  # fmt: skip
    return replace(
        Efficiency.default,
        compute=1.0,
        memory=1.0,
        attention_compute=0.5,
        attention_memory=0.83,
        elements=0.83,
        link=1.0,
    )


_SECONDS = tuple(one.name for one in fields(Efficiency) if one.name.endswith("_seconds"))
Efficiency.default = Efficiency()
Efficiency.ideal = Efficiency(1, 1, 1, 1, 1, 1, 1, **dict.fromkeys(_SECONDS, 0.0))


@dataclass(frozen=True)
class Work:
    """What a step moves and multiplies on one device, and how often it is started."""

    flops: float  # of the blocks' matrices
    weight_bytes: float
    head_flops: float
    head_bytes: float
    attention_flops: float
    kv_bytes: float
    element_bytes: float
    sent_bytes: float
    messages: int


class StepModel:
    """Seconds of steps of one model on one device, or on the `tensor` devices of a layout that share each layer.

    `weight_bits` are those of the blocks' matrices, scales of groups included; embedding and head stay in `head_bits`
    (16 where the others have fewer). `kv_bits` are those of keys and values, scales included. `precision` is the type
    of the products: bf16, for 32-bit weights fp32. Pipeline stages follow each other within a step. `efficiency`
    defaults to `usual_efficiency` of the device."""

    def __init__(
        self,
        config: ModelConfig,
        device: Device,
        layout: Layout = Layout(),
        weight_bits: float = 16,
        kv_bits: float = 16,
        efficiency: Efficiency | None = None,
        precision: str | None = None,
        head_bits: float | None = None,
    ):
        layout.check(config)
        for name, bits in (("weight_bits", weight_bits), ("kv_bits", kv_bits), ("head_bits", head_bits or 16)):
            if not 0 < bits <= 64:
                raise GristmillError(f"{name} must be above 0 and at most 64, not {bits}")
        share = usual_efficiency(device) if efficiency is None else efficiency
        self.config, self.device, self.layout, self.efficiency = config, device, layout, share
        self.precision = precision or product_precision(device, weight_bits)
        peak, bandwidth = device.peak(self.precision), device.memory_bandwidth
        tensor = layout.tensor
        # Per token, per weight read, per pair ... on one device.
        head_bits = max(weight_bits, 16) if head_bits is None else head_bits
        experts, each = config.experts, expert_params(config)
        self._experts, self._top_k, self._expert_bytes, expert_flops = 0, 0, 0.0, 0.0
        dense = matrix_params(config) - head_params(config)
        if experts is not None:
            spread = max(tensor, layout.expert)
            self._experts, self._top_k = experts.num_experts, experts.top_k
            self._pooled = max(layout.expert // tensor, 1)  # replicas whose tokens come to one device's experts
            self._expert_bytes = each * weight_bits / 8 / spread
            dense -= experts.top_k * each
            expert_flops = 2 * experts.top_k * each * self._pooled / spread
        else:
            self._pooled = 1
        self._flops = 2 * dense / tensor + expert_flops
        self._weight_bytes = dense * weight_bits / 8 / tensor
        self._head_flops, self._head_bytes = (
            2 * head_params(config) / tensor,
            head_params(config) * head_bits / 8 / tensor,
        )
        kinds = config.layer_kinds
        self._full, self._sliding = kinds.count("full"), kinds.count("sliding")
        self._window = (config.sliding_window or 0) + config.sink_tokens
        self._pair_flops = pair_flops(config) / tensor
        heads = config.cache_shape[0]
        self._kv_bytes = kv_cache_bytes(config, 1, kv_bits / 8) / config.num_layers / min(tensor, heads)
        operand = max(weight_bits, 16) / 8 if head_bits < 32 else 4
        self._element_bytes = element_numbers(config, tensor) * operand
        self._logit_bytes = config.vocab_size * LOGIT_BYTES / tensor
        self._sent_bytes, self._messages = _sent(config, layout, operand)
        link = device.link_bandwidth or device.host_link_bandwidth
        if self._messages and link is None:
            raise GristmillError(
                f"{device.id} has no known link between devices: tensor, pipeline and expert must be 1"
            )
        # Seconds of each unit.
        self._per_flop, self._per_byte = 1 / (peak * share.compute), 1 / (bandwidth * share.memory)
        self._per_pair_flop = 1 / (peak * share.attention_compute)
        self._per_kv_byte = 1 / (bandwidth * share.attention_memory)
        self._per_element_byte = 1 / (bandwidth * share.elements)
        self._per_sent_byte = 1 / (link * share.link) if link else 0.0
        fixed = share.step_seconds + self._messages * share.message_seconds
        layers = config.num_layers
        self._fixed_one, self._fixed_few, self._fixed_many = (
            fixed + layers * each for each in (share.layer_seconds, share.few_layer_seconds, share.many_layer_seconds)
        )
        self._far_seconds, self._alone = layers * share.context_seconds / FAR, share.alone_seconds
        self._eager = share.step_seconds + config.num_layers * share.eager_layer_seconds
        self._recorded = is_recorded(config) and not is_processor(device)
        self._most_recorded = recorded_tokens(config) if self._recorded else 0
        self._per_sequence, self._both = share.sequence_seconds, 1 - share.overlap
        self._token_compute = self._flops * self._per_flop
        self._token_extra = self._element_bytes * self._per_element_byte + self._sent_bytes * self._per_sent_byte
        self._weight_seconds = self._weight_bytes * self._per_byte
        self._expert_seconds = self._expert_bytes * self._per_byte
        self._logit_compute = self._head_flops * self._per_flop
        self._logit_extra = self._logit_bytes * self._per_element_byte
        self._head_seconds = self._head_bytes * self._per_byte
        self._pair_seconds = self._pair_flops * self._per_pair_flop
        self._kv_seconds = self._kv_bytes * self._per_kv_byte

    def replayed(self, load: Load) -> bool:
        """Whether the host starts such a step with one call."""
        if not _reads_prompts(load):
            return self._recorded
        return recorded_size(load.tokens) <= self._most_recorded

    def filled_up(self, load: Load) -> int:
        """Tokens that go through the matrices."""
        if self._most_recorded and _reads_prompts(load) and (size := recorded_size(load.tokens)) <= self._most_recorded:
            return size
        return load.tokens

    def seconds(self, load: Load) -> float:
        """Of one step: the sum over kinds of work. The simulator asks this for each of its steps."""
        tokens, sequences, logits = self.filled_up(load), load.sequences, load.logits
        if tokens > FEW_ROWS:
            total = self._fixed_many
        else:  # a mean may lie between one token and two
            total = self._fixed_one + min(max(tokens - 1, 0.0), 1.0) * (self._fixed_few - self._fixed_one)
        total += sequences * self._per_sequence + tokens * self._token_extra
        if load.prompts:
            total += max(self.efficiency.host_seconds(load) - load.hidden, 0.0)
        memory = self._weight_seconds
        if self._experts:
            memory += self._expert_seconds * distinct_experts(self._experts, self._top_k, tokens * self._pooled)
        compute = tokens * self._token_compute
        both = self._both
        total += compute + both * memory if compute > memory else memory + both * compute
        if logits:
            compute, memory = logits * self._logit_compute, self._head_seconds
            total += compute + both * memory if compute > memory else memory + both * compute
            total += logits * self._logit_extra
        tokens = load.tokens
        pairs, keys = self._full * load.pairs, self._full * (load.cached + tokens)
        if self._sliding:
            pairs += self._sliding * min(load.pairs, tokens * self._window)
            keys += self._sliding * (min(load.cached, sequences * self._window + tokens) + tokens)
        compute, memory = pairs * self._pair_seconds, keys * self._kv_seconds
        attention = compute + both * memory if compute > memory else memory + both * compute
        total += max(attention, reach(load) * self._far_seconds)
        if load.alone:
            total += self._alone
        if total < self._eager and not self.replayed(load):
            total = max(total, self._eager - load.hidden if load.hidden < math.inf else self._eager)
        return total

    def work(self, load: Load) -> Work:
        """What `seconds` takes time for, in FLOPs and bytes. In a sliding layer sequences are taken to be alike."""
        touched = distinct_experts(self._experts, self._top_k, load.tokens * self._pooled) if self._experts else 0.0
        tokens = self.filled_up(load)
        pairs = self._full * load.pairs + self._sliding * min(load.pairs, load.tokens * self._window)
        keys = self._full * (load.cached + load.tokens)  # read, and the new ones written
        keys += self._sliding * (min(load.cached, load.sequences * self._window + load.tokens) + load.tokens)
        return Work(
            flops=tokens * self._flops,
            weight_bytes=self._weight_bytes + touched * self._expert_bytes,
            head_flops=load.logits * self._head_flops,
            head_bytes=self._head_bytes if load.logits else 0.0,
            attention_flops=pairs * self._pair_flops,
            kv_bytes=keys * self._kv_bytes,
            element_bytes=tokens * self._element_bytes + load.logits * self._logit_bytes,
            sent_bytes=tokens * self._sent_bytes,
            messages=self._messages,
        )


def reach(load: Load) -> float:
    """Keys that a sequence's attention takes one after the other, in the mean; more are divided among programs."""
    return min(load.cached / load.sequences, FAR) if load.sequences else 0.0


def _reads_prompts(load: Load) -> bool:
    """Not where every sequence computes one token, nor where logits are made behind guesses, to check them."""
    return load.logits <= load.sequences < load.tokens


def product_precision(device: Device, weight_bits: float = 16) -> str:
    """In which type this device multiplies weights of so many bits: fp32 (or tf32) those of 32, else bf16 or fp16."""
    wanted = ("fp32", "tf32") if weight_bits > 16 else ("bf16", "fp16", "fp32")
    return next((name for name in wanted if name in device.peak_flops), wanted[0])


def expert_params(config: ModelConfig) -> int:
    """Parameters of one routed expert, summed over the layers that have experts; 0 without."""
    if config.experts is None:
        return 0
    layers = sum(config.has_experts(layer) for layer in range(config.num_layers))
    return layers * (3 if config.gated else 2) * config.hidden_size * config.experts.intermediate_size


def distinct_experts(num_experts: int, top_k: int, tokens: float) -> float:
    """X (1 - (1 - k/X)^n): how many experts n tokens are sent to in the mean, each to k of X, all equally likely."""
    return num_experts * (1 - (1 - top_k / num_experts) ** tokens)


def element_numbers(config: ModelConfig, tensor: int = 1) -> float:
    """Numbers that a token's norms, rotations, gates and sums read and write in all layers: of the stream 10 C (two
    norms and two sums), of queries, keys and values 2 each, of the feed-forward layer 4 F (6 F where gated)."""
    experts = config.experts
    wide = 0.0
    for layer in range(config.num_layers):
        if experts is not None and config.has_experts(layer):
            wide += experts.top_k * experts.intermediate_size + experts.shared_intermediate_size
        else:
            wide += config.intermediate_size
    heads = config.num_heads * (config.head_dim + config.value_dim) + 2 * config.num_kv_heads * config.head_dim
    inner = (6 if config.gated else 4) * wide + config.num_layers * 2 * heads
    return config.num_layers * 10 * config.hidden_size + inner / tensor


def _sent(config: ModelConfig, layout: Layout, operand: float) -> tuple[float, int]:
    """Bytes that a device sends for each token, and how many exchanges there are in a step: two ring all-reduces a
    layer, 2 (t - 1)/t of the stream each; two all-to-alls a layer of experts, k (e - 1)/e; a hop a pipeline stage."""
    stream, layers = config.hidden_size * operand, config.num_layers
    sent, messages = 0.0, 0
    if layout.tensor > 1:
        sent += 2 * layers * 2 * (layout.tensor - 1) / layout.tensor * stream
        messages += 2 * layers
    if config.experts is not None and layout.expert > layout.tensor:
        expert_layers = sum(config.has_experts(layer) for layer in range(layers))
        sent += 2 * expert_layers * config.experts.top_k * (layout.expert - 1) / layout.expert * stream / layout.tensor
        messages += 2 * expert_layers
    if layout.pipeline > 1:
        sent += (layout.pipeline - 1) * stream
        messages += layout.pipeline - 1
    return sent, messages
