"""A model on a device's roofline: arithmetic intensity of its prefill and decoding, where they cross the ridge, and the
least times that follow. Nothing is lost here; `plan serve` says what an engine reaches."""

from __future__ import annotations

import math

from ..errors import GristmillError
from ..model.config import ModelConfig
from .device import Device
from .flops import flops_per_token_decode
from .kv_cache import kv_cache_bytes
from .parameters import head_params, matrix_params
from .plot import Curve, Plot
from .quantity import Quantity
from .roofline import (
    attainable_flops,
    decode_ceiling_tokens_per_s,
    decode_flop_per_byte,
    decode_flop_per_byte_limit,
    min_compute_bound_tokens,
    prefill_floor_seconds,
    ridge_flop_per_byte,
)
from .step_time import Efficiency, Load, StepModel, distinct_experts, expert_params, product_precision

MOST_CONTEXT = 2**40  # beyond this a crossing is none
BATCHES = tuple(2**power for power in range(13))


class ModelRoofline:
    """A model's intensities on one device, with weights of `weight_bits` and keys and values of `kv_bits`."""

    def __init__(self, config: ModelConfig, device: Device, weight_bits: float = 16, kv_bits: float = 16):
        self.config, self.device = config, device
        self.weight_bits, self.kv_bits = weight_bits, kv_bits
        self.precision = product_precision(device, weight_bits)
        self.peak, self.bandwidth = device.peak(self.precision), device.memory_bandwidth
        self.ridge = ridge_flop_per_byte(self.peak, self.bandwidth)
        self.matrices = matrix_params(config)

    def weight_bytes(self, tokens: float) -> float:
        """Of the matrices that a step of so many tokens reads: of experts those that a token is sent to."""
        head, experts = head_params(self.config), self.config.experts
        blocks: float = self.matrices - head
        if experts is not None:
            touched = distinct_experts(experts.num_experts, experts.top_k, tokens)
            blocks += (touched - experts.top_k) * expert_params(self.config)
        return blocks * self.weight_bits / 8 + head * max(self.weight_bits, 16) / 8

    def kv_bytes(self, context: int) -> float:
        """Of one sequence, that one of its steps reads: of sliding layers the window."""
        return kv_cache_bytes(self.config, context, self.kv_bits / 8)

    def decode(self, batch: float, context: int) -> float:
        """FLOP/byte of a step in which `batch` sequences compute one token each, behind `context`."""
        attention = flops_per_token_decode(self.config, context) - 2 * self.matrices
        return decode_flop_per_byte(self.matrices, self.weight_bytes(batch), batch, self.kv_bytes(context), attention)

    def decode_limit(self, context: int) -> float:
        """FLOP/byte as the batch grows without end."""
        attention = flops_per_token_decode(self.config, context) - 2 * self.matrices
        return decode_flop_per_byte_limit(self.matrices, self.kv_bytes(context), attention)

    def prefill(self, tokens: int) -> tuple[float, float]:
        """FLOPs and bytes of reading a prompt of so many tokens."""
        ideal = StepModel(self.config, self.device, weight_bits=self.weight_bits, kv_bits=self.kv_bits,
                          efficiency=Efficiency.ideal)  # fmt: skip
        work = ideal.work(Load.prefill(tokens))
        flops = work.flops + work.head_flops + work.attention_flops
        return flops, work.weight_bytes + work.head_bytes + work.kv_bytes

    def crossing_context(self) -> int | None:
        """The longest context at which decoding can still reach the ridge, with a batch however large: from (2 N + A) /
        KV = ridge, A and KV growing with the context. None where it always can. 0 where it never can."""
        if self.decode_limit(MOST_CONTEXT) >= self.ridge:
            return None
        low, high = 0, MOST_CONTEXT
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.decode_limit(middle) >= self.ridge else (low, middle)
        return low

    def crossing_batch(self, context: int) -> int | None:
        """The smallest batch with which decoding behind `context` tokens reaches the ridge; None where none does."""
        if self.decode_limit(context) <= self.ridge:
            return None
        low, high = 0, 2**50
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.decode(middle, context) >= self.ridge else (middle, high)
        return high if high < 2**50 else None


def plan_roofline(roofline: ModelRoofline, batch: int, seq_len: int) -> list[Quantity]:
    """Ridges, intensities, rates and floors; GristmillError for sizes below 1."""
    for name, value in (("--batch", batch), ("--seq-len", seq_len)):
        if not 1 <= value < math.inf:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    device, config = roofline.device, roofline.config
    rows = [
        Quantity(f"ridge.{name}", ridge_flop_per_byte(peak, device.memory_bandwidth), "FLOP/byte",
                 f"{peak / 1e12:,.4g} TFLOP/s / {device.memory_bandwidth / 1e9:,.4g} GB/s")
        for name, peak in device.peak_flops.items()
    ]  # fmt: skip
    tokens = min_compute_bound_tokens(roofline.peak, roofline.bandwidth, roofline.weight_bits / 8)
    rows.append(
        Quantity("ridge.tokens", tokens, "token", f"{roofline.precision}: ridge * bytes a weight / 2, to share a read")
    )
    rows += _prefill(roofline, seq_len)
    if config.causal:
        rows += _decode(roofline, batch, seq_len)
    return rows


def _prefill(roofline: ModelRoofline, seq_len: int) -> list[Quantity]:
    flops, moved = roofline.prefill(seq_len)
    intensity, peak = flops / moved, roofline.peak
    rate = attainable_flops(intensity, peak, roofline.bandwidth)
    words = f"a prompt of {seq_len} tokens"
    return [
        Quantity("prefill.intensity", intensity, "FLOP/byte", f"{words}: FLOPs / (weights + new keys and values)"),
        Quantity("prefill.attainable", rate, "FLOP/s", "min(peak, intensity * bandwidth)"),
        Quantity("prefill.share_of_peak", rate / peak, "1", "attainable / peak"),
        Quantity("prefill.ttft_floor", prefill_floor_seconds(flops, moved, peak, roofline.bandwidth), "s",
                 "max(FLOPs / peak, bytes / bandwidth)"),
    ]  # fmt: skip


def _decode(roofline: ModelRoofline, batch: int, seq_len: int) -> list[Quantity]:
    config = roofline.config
    intensity, cache = roofline.decode(batch, seq_len), roofline.kv_bytes(seq_len)
    rate = attainable_flops(intensity, roofline.peak, roofline.bandwidth)
    weights = roofline.weight_bytes(batch)
    flops = batch * flops_per_token_decode(config, seq_len)
    floor = prefill_floor_seconds(flops, weights + batch * cache, roofline.peak, roofline.bandwidth)
    ceiling = decode_ceiling_tokens_per_s(weights, cache, batch, roofline.bandwidth)
    rows = [
        Quantity("decode.intensity", intensity, "FLOP/byte",
                 f"B (2 N + A) / (W + B KV), B = {batch}, {seq_len} tokens of context"),
        Quantity("decode.intensity_weights", batch * 2 * roofline.matrices / weights, "FLOP/byte",
                 "B 2 N / W: without attention and its cache"),
        Quantity("decode.intensity_limit", roofline.decode_limit(seq_len), "FLOP/byte", "(2 N + A) / KV: any batch"),
    ]  # fmt: skip
    if config.latent is None and config.num_kv_heads < config.num_heads:
        full = ModelRoofline(
            config.model_copy(update={"num_kv_heads": config.num_heads}), roofline.device, roofline.weight_bits,
            roofline.kv_bits,
        )  # fmt: skip
        rows.append(
            Quantity("decode.intensity_limit_mha", full.decode_limit(seq_len), "FLOP/byte",
                     f"the same with {config.num_heads} key/value heads instead of {config.num_kv_heads}")
        )  # fmt: skip
    rows += [
        Quantity("decode.attainable", rate, "FLOP/s", "min(peak, intensity * bandwidth)"),
        Quantity("decode.share_of_peak", rate / roofline.peak, "1", "attainable / peak"),
        Quantity("decode.tpot_floor", floor, "s", "max(B (2 N + A) / peak, (W + B KV) / bandwidth)"),
        Quantity("decode.tokens_per_s_ceiling", min(ceiling, batch / floor), "token/s", "B / floor"),
    ]
    context, needed = roofline.crossing_context(), roofline.crossing_batch(seq_len)
    if context is not None:
        rows.append(
            Quantity("crossover.context", context, "token",
                     "longest at which a batch, however large, reaches the ridge: (2 N + A) / KV = ridge")
        )  # fmt: skip
    if needed is not None:
        rows.append(
            Quantity("crossover.batch", needed, "sequence", f"smallest that reaches the ridge at {seq_len} tokens")
        )
    return rows


def roofline_sentences(roofline: ModelRoofline, seq_len: int) -> list[str]:
    """Where prefill and decoding stand to the ridge, in words."""
    tokens = min_compute_bound_tokens(roofline.peak, roofline.bandwidth, roofline.weight_bits / 8)
    words = [
        f"Prefill: a step of {math.ceil(tokens):,} tokens or more is limited by arithmetic, a smaller one by memory."
    ]
    if not roofline.config.causal:
        return words
    context, limit = roofline.crossing_context(), roofline.decode_limit(seq_len)
    needed = roofline.crossing_batch(seq_len)
    if needed is None:
        words.append(
            f"Decoding behind {seq_len:,} tokens never reaches the ridge ({roofline.ridge:,.3g} FLOP/byte): its "
            f"intensity stays below {limit:,.3g}, since each sequence brings its own keys and values."
        )
    else:
        words.append(
            f"Decoding behind {seq_len:,} tokens is limited by memory with fewer than {needed:,} sequences at once."
        )
    if context is None:
        words.append("A longer context does not change that: its attention alone is above the ridge.")
    elif context:
        words.append(f"Beyond {context:,} tokens of context no batch is large enough.")
    return words


def roofline_plots(roofline: ModelRoofline, batch: int, seq_len: int) -> list[Plot]:
    """The roof with prefill and decoding on it, and decoding's intensity over the batch at several contexts."""
    flops, moved = roofline.prefill(seq_len)
    points = [("prefill", flops / moved)]
    if roofline.config.causal:
        points = [("decode, one", roofline.decode(1, seq_len)), (f"decode, {batch:,}", roofline.decode(batch, seq_len)),
                  *points]  # fmt: skip
        if batch == 1:
            points = points[1:]
    low, high = min(0.5, *(x / 2 for _, x in points)), max(roofline.ridge * 8, *(x * 2 for _, x in points))
    steps = sorted({low * (high / low) ** (step / 40) for step in range(41)} | {roofline.ridge})

    def rate(intensity: float) -> float:
        return attainable_flops(intensity, roofline.peak, roofline.bandwidth)

    roof = Curve(f"roof, {roofline.precision}", tuple(steps), tuple(rate(x) for x in steps))
    marks = tuple(Curve(name, (x,), (rate(x),), "points") for name, x in points)
    plots = [
        Plot("roofline", f"Roofline of {roofline.device.name}", "arithmetic intensity", "FLOP/byte", "attainable",
             "FLOP/s", (roof, *marks), log_x=True, log_y=True)
    ]  # fmt: skip
    if roofline.config.causal:
        contexts = sorted({128, 1024, 8192, seq_len})
        lines = [
            Curve(f"{context:,} tokens", BATCHES, tuple(roofline.decode(size, context) for size in BATCHES))
            for context in contexts
        ]
        ridge = Curve("ridge", (BATCHES[0], BATCHES[-1]), (roofline.ridge,) * 2)
        plots.append(
            Plot("decode_intensity", "Intensity of decoding", "batch", "sequence", "intensity", "FLOP/byte",
                 (*lines, ridge), log_x=True, log_y=True)
        )  # fmt: skip
    return plots
