"""What serving a model takes and gives on some devices: memory, sequences, speed, and what would change it.

The answer's parts: what the cache holds and how likely it is outgrown (plan/serve_memory.py), mean times at a number of
requests at once and at the best one (plan/serving.py), and the effects of prefix caching, chunked prefill, quantization
and guessing ahead, each by the same model of a step (plan/step_time.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..errors import GristmillError
from ..model.config import ModelConfig
from .capacity_limits import model_load_seconds
from .device import Device
from .kv_cache import kv_cache_bytes
from .layouts import Layout
from .plot import Curve, Plot
from .quantity import Quantity
from .serve_memory import kv_bits, served_weight_bytes, weight_bits
from .serving import Server, ServingEstimate, Traffic, ladder, serving_estimate
from .speculation import expected_tokens
from .step_time import Efficiency, Load, StepModel

__all__ = [
    "Server",
    "Serving",
    "ServingEstimate",
    "Speculation",
    "Traffic",
    "plan_serve",
    "serving_estimate",
    "serving_plots",
    "serving_sentences",
]

READ_BYTES_PER_S = 5e9  # of a fast disk; NVMe drives of the fourth generation reach 5 to 7 GB/s
FORMATS = (("bf16", "bf16"), ("fp8", "fp8"), ("int8", "bf16"), ("int4", "bf16"), ("int4", "fp8"))


@dataclass(frozen=True)
class Speculation:
    """Guessing ahead: `draft_tokens` a step, each accepted with probability `acceptance` on its own; a guess costs
    `draft_cost` of a step of the model (0 where guesses are looked up in the text)."""

    draft_tokens: int = 4
    acceptance: float = 0.7
    draft_cost: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.draft_tokens <= 64:
            raise GristmillError(f"--draft-tokens must be from 1 to 64, not {self.draft_tokens}")
        if not 0 <= self.acceptance <= 1:
            raise GristmillError(f"--acceptance must be from 0 to 1, not {self.acceptance}")
        if not 0 <= self.draft_cost < math.inf:
            raise GristmillError(f"--draft-cost must not be below 0, and finite, not {self.draft_cost}")


@dataclass(frozen=True)
class Serving:
    """All that is asked. `concurrency` None is the best one; `ttft_seconds` and `tpot_seconds` are targets for that."""

    traffic: Traffic
    concurrency: int | None = None
    weights: str = "bf16"
    kv: str | None = None  # None: bf16, or fp32 beside such weights
    layout: Layout = field(default_factory=Layout)
    ttft_seconds: float = math.inf
    tpot_seconds: float = math.inf
    speculation: Speculation = field(default_factory=Speculation)
    utilization: float | None = None  # the engine's own: 0.9 of what is free, of a processor's 0.5
    read_bytes_per_s: float = READ_BYTES_PER_S
    efficiency: Efficiency | None = None  # the device's usual one

    def __post_init__(self) -> None:
        for name in ("ttft_seconds", "tpot_seconds", "read_bytes_per_s"):
            if not getattr(self, name) > 0:
                option = name.removesuffix("_seconds").removesuffix("_bytes_per_s").replace("_", "-")
                raise GristmillError(f"--{option} must be above 0, not {getattr(self, name)}")
        if self.read_bytes_per_s == math.inf:
            raise GristmillError("--read must be finite")

    @property
    def kv_type(self) -> str:
        return self.kv or ("fp32" if self.weights == "fp32" else "bf16")

    def server(self, config: ModelConfig, device: Device) -> Server:
        """The model on these devices; GristmillError where it does not fit."""
        return Server(
            config, device, self.layout, self.traffic, weight_bits(self.weights), kv_bits(self.kv_type, config),
            self.efficiency, self.utilization,
        )  # fmt: skip

    def chosen(self, server: Server) -> tuple[ServingEstimate, ServingEstimate | None]:
        """The estimate at the concurrency asked for (or the best one's, or one request's where none keeps the targets),
        and the best one's."""
        best = server.best(self.ttft_seconds, self.tpot_seconds)
        if self.concurrency is not None:
            return server.at(self.concurrency), best
        return best or server.at(1), best


def plan_serve(config: ModelConfig, device: Device, serving: Serving) -> list[Quantity]:
    """Figures of a server, grouped by the first part of their ids: memory, kv, sequences, at, best, prefix_cache,
    chunked_prefill, quantization, speculation, start. GristmillError for what cannot be."""
    server = serving.server(config, device)
    at, best = serving.chosen(server)
    return [
        *_memory(server, serving),
        *_sequences(server, at),
        *_estimate("at", at, f"{at.concurrency} requests at once"),
        *([] if best is None else _estimate("best", best, _best_words(serving))),
        *_prefix_cache(server, serving, at.concurrency),
        *_chunked_prefill(server, at.concurrency),
        *_quantization(server, serving, at.concurrency),
        *_speculation(server, serving.speculation, at),
        *_start(server, serving),
    ]


def _best_words(serving: Serving) -> str:
    if serving.ttft_seconds == serving.tpot_seconds == math.inf:
        return "the fewest requests at once with 95 % of the most tokens/s, out of room at most 1 % of the time"
    return "the most tokens/s that keep the targets, out of room at most 1 % of the time"


def _memory(server: Server, serving: Serving) -> list[Quantity]:
    memory, config, traffic = server.memory, server.config, server.traffic
    bits, length = kv_bits(serving.kv_type, config) / 8, traffic.prompt_tokens + traffic.output_tokens
    width = "L (R + P) b" if config.latent else "L 2 K D b"
    per_token = kv_cache_bytes(config, 1, bits)
    rows = [
        Quantity("memory.weights", memory.weight_bytes, "byte", f"on each device, {serving.weights}: "
                 f"{weight_bits(serving.weights):.4g} bit of the blocks' matrices, the rest 16 at least, / (t p)"),
        Quantity("memory.working", memory.working_bytes, "byte", "a step of most tokens, and the device's context"),
        Quantity("memory.kv_budget", memory.kv_budget_bytes, "byte",
                 f"min({memory.utilization:g} * free, free - step), free = memory - context - weights"),
        Quantity("memory.kv_tokens", memory.kv_tokens * server.layout.data, "token", "budget / bytes of a token"),
        Quantity("kv.per_token", per_token, "byte/token", f"{width}, b = {bits:.4g}, over all devices"),
        Quantity("kv.request", kv_cache_bytes(config, length, bits, drop_beyond_window=False), "byte",
                 f"per token * {length}, at a request's end"),
    ]  # fmt: skip
    if "sliding" in config.layer_kinds:
        rows.append(
            Quantity("kv.request_windowed", kv_cache_bytes(config, length, bits), "byte",
                     "if sliding layers dropped what no query sees; gristmill's engine keeps it")
        )  # fmt: skip
    return rows


def _sequences(server: Server, at: ServingEstimate) -> list[Quantity]:
    mean, variance = server.held
    spread = f"{mean:,.0f} tokens held in the mean, deviation {math.sqrt(variance):,.0f}"
    return [
        Quantity("sequences.average", at.max_sequences, "sequence", f"budget / ({spread})"),
        Quantity("sequences.worst", at.max_sequences_worst, "sequence", f"budget / {server.longest:,} tokens"),
        Quantity("sequences.safe", at.max_sequences_safe, "sequence", "out of room at most 1 % of the time"),
        Quantity("sequences.preemption", at.preemption_probability, "1",
                 f"{at.running:g} at once: Q((tokens - n mean) / sqrt(n variance)), lengths lognormal"),
    ]  # fmt: skip


def _estimate(group: str, estimate: ServingEstimate, words: str) -> list[Quantity]:
    return [
        Quantity(f"{group}.concurrency", estimate.concurrency, "request", words),
        Quantity(f"{group}.ttft", estimate.ttft_seconds, "s", "steps under way + waiting + the prompt's steps"),
        Quantity(f"{group}.tpot", estimate.tpot_seconds, "s",
                 f"a step of {estimate.decoding:.0f} replies / (1 - share of time for prompts)"),
        Quantity(f"{group}.tokens_per_s", estimate.tokens_per_s, "token/s", "written: requests/s * O"),
        Quantity(f"{group}.requests_per_s", estimate.requests_per_s, "request/s", "n / (ttft + (O - 1) tpot)"),
        Quantity(f"{group}.prefill_share", estimate.prefill_share, "1", "of the time, for others' prompts"),
    ]  # fmt: skip


def _prefix_cache(server: Server, serving: Serving, concurrency: int) -> list[Quantity]:
    shares = sorted({0.0, 0.5, 0.9, serving.traffic.cached_prompt_share})
    rows = []
    for share in shares:
        other = server.with_traffic(replace(serving.traffic, cached_prompt_share=share)).at(concurrency)
        name = f"{share * 100:g}"
        rows.append(Quantity(f"prefix_cache.ttft_{name}", other.ttft_seconds, "s", f"{share:.0%} of prompts cached"))
        rows.append(
            Quantity(f"prefix_cache.tokens_per_s_{name}", other.tokens_per_s, "token/s",
                     f"the same; {other.max_sequences:,} sequences fit, the shared part being held once")
        )  # fmt: skip
    return rows


def _chunked_prefill(server: Server, concurrency: int) -> list[Quantity]:
    rows = []
    new = server.traffic.new_prompt_tokens
    for most in sorted({size for size in (512, 2048) if size < new} | {server.traffic.step_tokens}):
        other = server.with_traffic(replace(server.traffic, step_tokens=max(most, 2 * concurrency)))
        gap, estimate = other.longest_gap(concurrency), other.at(concurrency)
        rows += [
            Quantity(
                f"chunked_prefill.gap_{most}", gap, "s", f"between two tokens while a prompt comes, {most} a step"
            ),
            Quantity(f"chunked_prefill.ttft_{most}", estimate.ttft_seconds, "s", "time to first token then"),
        ]
    return rows


def _quantization(server: Server, serving: Serving, concurrency: int) -> list[Quantity]:
    rows = []
    for weights, kv in FORMATS:
        asked = replace(serving, weights=weights, kv=kv)
        try:
            estimate = asked.server(server.config, server.device).at(concurrency)
        except GristmillError:
            continue  # does not fit: that it is not there says so
        name, words = f"{weights}_kv_{kv}", f"weights {weights}, cache {kv}, {concurrency} at once"
        rows += [
            Quantity(f"quantization.tpot_{name}", estimate.tpot_seconds, "s", words),
            Quantity(f"quantization.sequences_{name}", estimate.max_sequences, "sequence", "that fit then"),
        ]
    return rows


def speculation_gain(model: StepModel, speculation: Speculation, sequences: int, context: float) -> float:
    """E / (T(K + 1) / T(1) + K c): how many times faster replies come with guesses, T(k) being a step of `sequences`
    that compute k tokens each. Below 1 a loss."""
    plain = model.seconds(Load.decode(sequences, context))
    checked = model.seconds(Load.decode(sequences, context, speculation.draft_tokens + 1))
    cost = checked / plain + speculation.draft_tokens * speculation.draft_cost
    return expected_tokens(speculation.acceptance, speculation.draft_tokens) / cost


def first_loss(gain: Callable[[int], float], most: int) -> int | None:
    """The fewest sequences at which guessing ahead loses time; None up to `most`."""
    rungs = ladder(most)
    above = next((place for place, rung in enumerate(rungs) if gain(rung) < 1), None)
    if above is None:
        return None
    low, high = (rungs[above - 1] if above else 0), rungs[above]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gain(middle) < 1 else (middle, high)
    return high


def _speculation(server: Server, speculation: Speculation, at: ServingEstimate) -> list[Quantity]:
    context, _ = server.context
    count = max(round(at.running / server.groups), 1)

    def gain(sequences: int) -> float:
        return speculation_gain(server.model, speculation, sequences, context)

    asked = f"K = {speculation.draft_tokens}, a = {speculation.acceptance:g}, c = {speculation.draft_cost:g}"
    rows = [
        Quantity("speculation.tokens_per_step", expected_tokens(speculation.acceptance, speculation.draft_tokens),
                 "token/step", f"E = (1 - a^(K+1)) / (1 - a), {asked} (assumed)"),
        Quantity("speculation.gain_1", gain(1), "x", "E / (T(K + 1) / T(1) + K c), one request"),
        Quantity("speculation.gain", gain(count), "x", f"the same, {at.running:g} at once"),
    ]  # fmt: skip
    loss = first_loss(gain, 4096)
    if loss is not None:
        rows.append(Quantity("speculation.loss_from", loss, "sequence", "the fewest at once where it is below 1"))
    return rows


def _start(server: Server, serving: Serving) -> list[Quantity]:
    weights = served_weight_bytes(server.config, weight_bits(serving.weights))
    read = model_load_seconds(weights, serving.read_bytes_per_s)
    rows = [
        Quantity("start.read", read, "s", f"weights of one replica / {serving.read_bytes_per_s / 1e9:g} GB/s of disk")
    ]
    link = server.device.host_link_bandwidth
    if link:
        rows.append(
            Quantity("start.copy", server.memory.weight_bytes / link, "s",
                     f"to each device over {link / 1e9:.4g} GB/s, if not while reading")
        )  # fmt: skip
    return rows


def serving_plots(config: ModelConfig, device: Device, serving: Serving) -> list[Plot]:
    """Tokens/s, and times, over the requests at once."""
    server = serving.server(config, device)
    rungs = tuple(ladder(max(server.most, 1)))
    estimates = [server.at(rung) for rung in rungs]
    times = (
        Curve("time per token", rungs, tuple(estimate.tpot_seconds for estimate in estimates)),
        Curve("time to first token", rungs, tuple(estimate.ttft_seconds for estimate in estimates)),
    )
    written = Curve("written", rungs, tuple(estimate.tokens_per_s for estimate in estimates))
    return [
        Plot(
            "serving.throughput",
            "Throughput",
            "requests at once",
            "request",
            "tokens",
            "token/s",
            (written,),
            True,
            True,
        ),
        Plot("serving.times", "Times", "requests at once", "request", "time", "s", times, True, True),
    ]


def serving_sentences(config: ModelConfig, device: Device, serving: Serving) -> list[str]:
    """What the figures mean, and what they stand on."""
    server = serving.server(config, device)
    at, best = serving.chosen(server)
    sentences = []
    work = server.model.work(Load.decode(max(round(at.running / server.groups), 1), server.context[0]))
    parts = {"weights": work.weight_bytes + work.head_bytes, "keys and values": work.kv_bytes}
    largest = max(parts, key=lambda name: parts[name])
    sentences.append(
        f"A decoding step of {at.running:g} sequences reads {parts[largest] / sum(parts.values()):.0%} of its bytes as "
        f"{largest}."
    )
    if best is None:
        sentences.append("Not even one request at once keeps the targets.")
    if at.concurrency > server.most:
        sentences.append(f"{at.concurrency} requests do not fit at once: {at.concurrency - at.running:g} wait.")
    if at.preemption_probability > 0.01:
        sentences.append(
            f"With {at.running:g} at once the cache is too small {at.preemption_probability:.0%} of the time, and "
            f"replies are interrupted; {server.most_safe} would be safe."
        )
    sentences.append(
        f"Lengths are taken as lognormal and independent, deviation {serving.traffic.length_spread:g} of the mean; "
        "shares of the ceilings are those measured on an H100, unless `plan calibrate` or a fit says otherwise."
    )
    return sentences
