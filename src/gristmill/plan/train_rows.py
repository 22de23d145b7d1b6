"""Figures of `gristmill plan train`, by their kind: each function gives rows that stand under one heading."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..errors import GristmillError
from . import cost, failures, sizing
from .communication import Links, Traffic
from .device import Device
from .failures import Saving
from .quantity import Label, Quantity
from .scaling import Law
from .schedule_bubble import bubble_share, in_flight_micro_batches
from .training_step import Schedule, StepTime

SENT = {
    "tensor": "layers * 4 * 2 (t - 1)/t * N C e a micro-batch: all-reduces, or reduce-scatters and all-gathers",
    "expert": "expert layers * 4 (E - 1)/E * k N C e / t a micro-batch: all-to-all",
    "pipeline": "2 v N C e / t a micro-batch: activations and their gradients between stages",
    "data": "gradients, and weights of zero1 to zero3, (d - 1)/d of what a device holds",
}
WAITS = {
    "tensor": "nothing: each layer waits for it",
    "expert": "nothing: each layer waits for it",
    "pipeline": "all but what fills and drains the pipeline, behind other micro-batches",
    "data": "no more than the compute it can run beside: backward, for zero3 forward too",
}


def time_rows(step: StepTime, share: float, peak: float, label: Label, why: str) -> list[Quantity]:
    """Parts of a step, where they were reckoned from a device's own share of its peak."""
    return [
        Quantity("time.device_share", share, "1", f"of {peak:.4g} FLOP/s while a device computes: {why}", label),
        Quantity("time.step_compute", step.compute_seconds, "s", "m * work of the slowest stage / (t * peak * share)"),
        Quantity("time.step_bubble", step.bubble_seconds, "s", "(p - 1)/v * time of a micro-batch"),
        Quantity("time.step_exposed", step.exposed_seconds, "s", "traffic that no compute can hide"),
    ]


def communication_rows(traffic: Sequence[Traffic], links: Links) -> list[Quantity]:
    """For each kind there is: what a device sends in a step, over which link, how long, and what of it can hide."""
    rows = []
    for part in traffic:
        if not part.sent_bytes:
            continue
        link = "between nodes" if part.crosses_nodes else "inside a node"
        speed = f"{links.between:.4g}" if part.crosses_nodes else f"{links.inside:.4g}"
        rows += [
            Quantity(f"communication.{part.kind}", part.sent_bytes, "byte", f"{SENT[part.kind]}; {link}"),
            Quantity(f"communication.{part.kind}_seconds", part.seconds, "s",
                     f"{links.reached:.0%} of {speed} byte/s a device {link}, and latency"),
            Quantity(f"communication.{part.kind}_hidden", part.hidden_seconds, "s", WAITS[part.kind]),
        ]  # fmt: skip
    return rows


def pipeline_rows(stages: int, schedule: Schedule) -> list[Quantity]:
    """Share of a step that devices wait, plain and interleaved; micro-batches in flight."""
    if stages == 1:
        return []
    m, v = schedule.micro_batches, schedule.interleaved
    other = v if v > 1 else 2
    return [
        Quantity("pipeline.bubble", bubble_share(stages, m), "1", f"(p - 1)/(m + p - 1), p = {stages}, m = {m}"),
        Quantity("pipeline.bubble_interleaved", bubble_share(stages, m, other), "1",
                 f"(p - 1)/(v m + p - 1), v = {other} chunks of layers a device"
                 + ("" if v > 1 else ", were it interleaved")),
        Quantity("pipeline.in_flight", in_flight_micro_batches(stages, m, v), "x",
                 "micro-batches whose activations the first stage keeps: min(p, m)"
                 + (", p (1 + (p - 1)/(p v)) interleaved" if v > 1 else "")),
    ]  # fmt: skip


def size_rows(params: float, tokens: float, inference_tokens: float, law: Law | None) -> list[Quantity]:
    """What this run's arithmetic is best spent on, by published laws and by an own one."""
    flops = 6 * params * tokens
    thumb = sizing.rule_of_thumb(flops)
    rows = [
        Quantity("sizes.rule_params", thumb.params, "param", "sqrt(C / 120): 20 tokens a parameter, C = 6 P tokens"),
        Quantity("sizes.rule_tokens", thumb.tokens, "token", "20 * parameters"),
    ]
    laws = {"optimal": (sizing.BESIROGLU, "Besiroglu et al. 2024")}
    if law is not None:
        laws["fitted"] = (law, "the law that was fitted to your ladder")
    for name, (one, source) in laws.items():
        with suppress(GristmillError):  # a budget too far from a law's models has no best size
            best = sizing.compute_optimal(flops, one)
            formula = f"least E + A/N^alpha + B/D^beta for C, by {source}"
            rows += [
                Quantity(f"sizes.{name}_params", best.params, "param", formula),
                Quantity(f"sizes.{name}_tokens", best.tokens, "token", "C / (6 N)"),
            ]
    return rows + (_lifetime(params, tokens, inference_tokens, law) if inference_tokens else [])


def _lifetime(params: float, tokens: float, inference_tokens: float, law: Law | None) -> list[Quantity]:
    own = law or sizing.HOFFMANN
    source = "the law that was fitted to your ladder" if law else "the constants of Sardana et al. 2024"
    planned = sizing.Size(params, tokens, inference_tokens)
    best = sizing.inference_aware(own.loss(params, tokens), inference_tokens, own)
    formula = f"argmin 6 N D + 2 N * {inference_tokens:.4g} at the loss that P on these tokens reaches, by {source}"
    return [
        Quantity("lifetime.params", best.params, "param", formula),
        Quantity("lifetime.tokens", best.tokens, "token", "D of N at this loss: (B / (L - E - A/N^alpha))^(1/beta)"),
        Quantity("lifetime.flops", best.flops, "FLOP", "6 N D + 2 N D_inference"),
        Quantity("lifetime.flops_as_planned", planned.flops, "FLOP", "6 P tokens + 2 P D_inference"),
        Quantity("lifetime.saved", 1 - best.flops / planned.flops, "1", "1 - best / as planned"),
    ]  # fmt: skip


def checkpoint_rows(size_bytes: float, saving: Saving, step_seconds: float, total_seconds: float,
                    why: str, label: Label) -> list[Quantity]:  # fmt: skip
    """How large, how often, and what failures take of the time."""
    expected = total_seconds / saving.mtbf_seconds
    return [
        Quantity("checkpoint.size", size_bytes, "byte", "weights + optimizer's state"),
        Quantity("checkpoint.write", saving.write_seconds, "s", f"size / speed: {why}", label),
        Quantity("checkpoint.pause", saving.pause_seconds, "s", "for which training stops at each save", label),
        Quantity("checkpoint.mtbf", saving.mtbf_seconds, "s",
                 f"hours between failures of one device / n; by default {failures.DEVICE_MTBF_HOURS:,.0f}: 419 in 54 "
                 "days of 16,384 H100 (Llama 3, section 3.3.4)", "cited"),
        Quantity("checkpoint.interval", saving.interval_seconds, "s",
                 "sqrt(2 * pause * mtbf) (Young 1974), but not less than a save takes"),
        Quantity("checkpoint.interval_steps", max(saving.interval_seconds / step_seconds, 1), "step",
                 "interval / step"),
        Quantity("checkpoint.failures", expected, "x", "time / mtbf: to be expected in this run"),
        Quantity("checkpoint.lost_share", saving.lost_share, "1",
                 f"pause / interval + (interval / 2 + what is not yet written + {saving.restart_seconds:.0f} s) "
                 "/ mtbf"),
        Quantity("checkpoint.lost", saving.lost_share * total_seconds, "s", "lost share * time"),
    ]  # fmt: skip


def cost_rows(
    device: Device, hours: float, usd_per_hour: tuple[float, float] | None, tdp_watts: float | None
) -> list[Quantity]:
    """Price range and the most energy; nothing where no figure is known."""
    rows = []
    given = usd_per_hour is not None
    price = usd_per_hour or device.usd_per_hour
    if price is not None:
        source = "as given" if given else f"{device.price_source}, {device.price_date}"
        for name, each in zip(("low", "high"), price, strict=True):
            formula = f"device hours * {each:g} USD ({source})"
            total = cost.training_cost_usd(hours, each)
            rows.append(Quantity(f"cost.{name}", total, "USD", formula, "computed" if given else "cited"))
    if tdp_watts:
        formula = f"device hours * {tdp_watts:g} W, the board's most; without hosts, network and cooling"
        rows.append(Quantity("energy.devices", hours * tdp_watts, "Wh", formula))
    return rows


def data_rows(tokens: float, corpus_tokens: float) -> list[Quantity]:
    """How often the corpus is read, and what that is worth."""
    return [
        Quantity("data.epochs", sizing.epochs(tokens, corpus_tokens), "x", f"tokens / {corpus_tokens:,.0f} there are"),
        Quantity("data.worth", sizing.worth_of_repeats(tokens, corpus_tokens), "token",
                 "fresh tokens worth as much: U + U R* (1 - exp(-(epochs - 1)/R*)), R* = 15.39 (Muennighoff et al. "
                 "2023)"),
    ]  # fmt: skip
