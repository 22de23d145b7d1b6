"""`gristmill plan fleet`: how many devices some traffic takes at a service level, by simulation.

Each replica is the engine's own scheduler on a device that takes the time plan/step_time.py says. The fewest replicas
that keep the objective are found by doubling, then by halving the gap; autoscaling is run beside that fixed fleet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..engine.config import EngineConfig
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.device import Device
from ..plan.layouts import Layout
from ..plan.plot import Curve, Plot
from ..plan.quantity import Quantity
from ..plan.serve import READ_BYTES_PER_S
from ..plan.serve_memory import (
    BLOCK_TOKENS,
    SLOTS,
    STEP_TOKENS,
    ServingMemory,
    kv_bits,
    served_weight_bytes,
    serving_memory,
    weight_bits,
)
from ..plan.step_time import Efficiency, StepModel
from .fleet import Autoscaling, FleetSettings, Result, Router, simulate
from .replica import Seconds
from .report import PERCENTILES, Objective, Summary, percentile, summary
from .traffic import Arrival, mean_rate

MOST_REPLICAS = 4096
ALONE = 200  # requests that are tried on idle replicas, to tell an objective that no fleet keeps
HOUR, MILLION = 3600.0, 1e6
PROCESS_SECONDS = 5.0  # of a process before it reads (assumed)


@dataclass(frozen=True)
class Fleet:
    """What is asked. `percentile` of the requests must reach their first token, and their mean time per token, within
    the objective; `replicas` None looks for the fewest. Each replica is `layout.tensor * layout.pipeline` devices."""

    objective: Objective = field(default_factory=Objective)
    percent: float = 99.0
    replicas: int | None = None
    router: Router = "least-loaded"
    overhead_seconds: float = 0.0
    autoscaling: Autoscaling | None = None
    weights: str = "bf16"
    kv: str = "bf16"
    layout: Layout = field(default_factory=Layout)
    max_num_seqs: int = SLOTS
    max_num_batched_tokens: int = STEP_TOKENS
    max_model_len: int | None = None  # what the longest request needs, unless given
    utilization: float | None = None  # the engine's own
    prefix_caching: bool = True
    efficiency: Efficiency | None = None  # the device's usual one, unless given

    def check(self) -> None:
        """GristmillError for what cannot be."""
        for name, value in (("ttft", self.objective.ttft_seconds), ("tpot", self.objective.tpot_seconds)):
            if not value > 0:
                raise GristmillError(f"{name} must be a number of seconds above 0, not {value:g}")
        if not 0 < self.percent <= 100:
            raise GristmillError(f"percentile must be above 0 and at most 100, not {self.percent:g}")
        if self.replicas is not None and not 1 <= self.replicas <= MOST_REPLICAS:
            raise GristmillError(f"replicas must be from 1 to {MOST_REPLICAS}, not {self.replicas}")
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs:
            raise GristmillError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), and that at least 1"
            )


@dataclass(frozen=True)
class FleetAnswer:
    quantities: list[Quantity]
    plots: list[Plot]
    sentences: list[str]
    result: Result
    scaled: Result | None = None


def plan_fleet(config: ModelConfig, device: Device, arrivals: Sequence[Arrival], fleet: Fleet = Fleet()) -> FleetAnswer:
    """The answer for these arrivals (capacity/traffic.py). GristmillError where the model does not fit the devices, or
    where even idle replicas miss the objective."""
    fleet.check()
    if not arrivals:
        raise GristmillError("there is no request to serve")
    bits, cache_bits = weight_bits(fleet.weights), kv_bits(fleet.kv, config)
    memory = serving_memory(config, device, fleet.layout, bits, cache_bits, fleet.utilization)
    engine = engine_config(config, device, memory, arrivals, fleet)
    model = StepModel(config, device, fleet.layout, bits, cache_bits, fleet.efficiency)
    seconds, read_seconds = model.seconds, model.efficiency.read_seconds
    fixed = FleetSettings(fleet.replicas or 1, fleet.router, fleet.overhead_seconds, read_seconds)
    if fleet.replicas is None:
        result, count, tried = fewest(arrivals, engine, seconds, fixed, fleet)
    else:
        count, tried = fleet.replicas, 1
        result = simulate(arrivals, engine, seconds, fixed)
    found = summary(result, fleet.objective)
    each = fleet.layout.tensor * fleet.layout.pipeline
    quantities = _fleet(found, result, count, each, fleet, arrivals, tried) + _costs("cost", result, each, device)
    sentences = [_sentence(found, count, each, device, fleet, arrivals)]
    scaled = None
    if (scaling := fleet.autoscaling) is not None:
        scaled = simulate(arrivals, engine, seconds, replace(fixed, replicas=scaling.least, autoscaling=scaling))
        quantities += _scaled(scaled, result, fleet, each) + _costs("autoscaled_cost", scaled, each, device)
        sentences.append(_scaled_sentence(scaled, result, fleet))
    return FleetAnswer(quantities, _plots(result, scaled, fleet), sentences, result, scaled)


def start_seconds(config: ModelConfig, weights: str, layout: Layout) -> float:
    """What a new replica takes until it serves: a process that starts, and its weights read from fast disks, each
    device its own part."""
    read = served_weight_bytes(config, weight_bits(weights)) / (layout.tensor * layout.pipeline)
    return PROCESS_SECONDS + read / READ_BYTES_PER_S


def engine_config(
    config: ModelConfig, device: Device, memory: ServingMemory, arrivals: Sequence[Arrival], fleet: Fleet
) -> EngineConfig:
    """The limits that each replica's engine gets: blocks as its memory holds, a context for the longest request."""
    longest = max(arrival.prompt_tokens + arrival.output_tokens for arrival in arrivals)
    length = fleet.max_model_len or longest
    if length > config.max_seq_len:
        raise GristmillError(f"a request of {length} tokens is longer than the {config.max_seq_len} this model takes")
    useful = fleet.max_num_seqs * -(-length // BLOCK_TOKENS)
    blocks = min(int(memory.kv_tokens // BLOCK_TOKENS), useful)
    if blocks * BLOCK_TOKENS < length:
        devices = fleet.layout.tensor * fleet.layout.pipeline
        raise GristmillError(
            f"{devices} x {device.name} hold {max(blocks, 0) * BLOCK_TOKENS:,} tokens of cache beside the weights; the "
            f"longest request has {length:,}: share the model over more devices (--tensor), or store it in fewer bits "
            "(--weights, --kv)"
        )
    return EngineConfig(
        max_num_seqs=fleet.max_num_seqs,
        max_model_len=length,
        max_num_batched_tokens=fleet.max_num_batched_tokens,
        block_size=BLOCK_TOKENS,
        num_blocks=blocks,
        prefix_caching=fleet.prefix_caching,
        run_ahead=1,
    )


def fewest(
    arrivals: Sequence[Arrival], engine: EngineConfig, seconds: Seconds, settings: FleetSettings, fleet: Fleet
) -> tuple[Result, int, int]:
    """The run with the fewest replicas that keeps the objective, their number, and how many were tried."""
    few = list(arrivals[:ALONE])
    idle = simulate(few, engine, seconds, replace(settings, replicas=len(few), router="round-robin"))
    if not _keeps(idle, fleet):
        ttft, tpot = _at_percent(idle, fleet.percent)
        raise GristmillError(
            f"even on idle replicas {fleet.percent:g} % of the requests take up to {ttft:.3g} s to the first token and "
            f"{tpot:.3g} s a token: allow more, share each layer over more devices (--tensor), or take a faster one"
        )
    tried, low, count = 1, 0, 1
    while True:
        tried += 1
        result = simulate(arrivals, engine, seconds, replace(settings, replicas=count))
        if _keeps(result, fleet):
            break
        if count == MOST_REPLICAS:
            raise GristmillError(f"{MOST_REPLICAS} replicas do not keep the objective: split the traffic")
        low, count = count, min(_more(result, arrivals, count), MOST_REPLICAS)
    while count - low > 1:
        tried += 1
        middle = (low + count) // 2
        other = simulate(arrivals, engine, seconds, replace(settings, replicas=middle))
        if _keeps(other, fleet):
            result, count = other, middle
        else:
            low = middle
    return result, count, tried


def _more(result: Result, arrivals: Sequence[Arrival], count: int) -> int:
    """The next number to try: what would have kept pace with the arrivals, if that is more than a few more."""
    span = arrivals[-1].seconds - arrivals[0].seconds
    behind = result.seconds / span if span > 0 else 2.0
    return max(count + max(count // 4, 1), math.ceil(count * min(behind, 8.0)))


def _keeps(result: Result, fleet: Fleet) -> bool:
    ttft, tpot = _at_percent(result, fleet.percent)
    return ttft <= fleet.objective.ttft_seconds and tpot <= fleet.objective.tpot_seconds


def _at_percent(result: Result, percent: float) -> tuple[float, float]:
    """TTFT and TPOT that `percent` of the requests have at most; 0 for the latter where replies are one token long."""
    tpots = [tpot for served in result.served if (tpot := served.tpot) is not None]
    return percentile([served.ttft for served in result.served], percent), percentile(tpots, percent) if tpots else 0.0


# The answer's parts.


def _fleet(
    found: Summary, result: Result, count: int, each: int, fleet: Fleet, arrivals: Sequence[Arrival], tried: int
) -> list[Quantity]:
    how = f"a simulation of {len(arrivals):,} requests"
    searched = f"the fewest of {tried} numbers tried that keep the objective" if fleet.replicas is None else "as given"
    rows = [
        Quantity("fleet.replicas", count, "replica", searched),
        Quantity("fleet.devices", count * each, "device", f"replicas * {each}"),
        Quantity("fleet.arrivals", _rate(arrivals), "request/s", "requests / time between first and last"),
        Quantity("fleet.requests_per_s", found.requests_per_s, "request/s", f"served, {how}"),
        Quantity("fleet.tokens_per_s", found.output_tokens_per_s, "token/s", "written, of all replicas"),
        Quantity("fleet.kept", found.kept_share, "1", "requests that keep the objective / all"),
        Quantity("fleet.goodput", found.goodput_requests_per_s, "request/s", "kept * served"),
        Quantity("fleet.utilization", found.device_utilization, "1", "time in steps / time paid for"),
        Quantity("fleet.cache_hits", found.cache_hit_share, "1", "prompt tokens found in the cache / all"),
        Quantity("fleet.peak_cache", found.peak_cache_usage, "1", "of a replica's blocks, at most"),
        Quantity("fleet.preemptions", found.preemptions, "preemption", "replies whose blocks were taken for others"),
    ]  # fmt: skip
    meaning = {
        "ttft": "seconds to the first token",
        "tpot": "(last - first token) / further tokens",
        "end_to_end": "seconds to the last token",
        "queue": "seconds until a request is part of a step",
    }
    for name, text in meaning.items():
        values: dict[int, float] = getattr(found, name)
        rows += [
            Quantity(f"{name}.p{percent}", values[percent], "s", text)
            for percent in PERCENTILES
            if not math.isnan(values[percent])
        ]
    return rows


def _rate(arrivals: Sequence[Arrival]) -> float:
    """0 where there is none to speak of: one request, or all at once."""
    rate = mean_rate(arrivals)
    return rate if math.isfinite(rate) else 0.0


def _costs(group: str, result: Result, each: int, device: Device) -> list[Quantity]:
    if device.usd_per_hour is None:
        return []
    tokens = sum(served.arrival.output_tokens for served in result.served)
    hours = result.replica_seconds * each / HOUR
    dated = f"; price of {device.price_date}" if device.price_date else ""
    rows = []
    for name, price in zip(("low", "high"), device.usd_per_hour, strict=True):
        hourly, each_mtoken = price * hours / (result.seconds / HOUR), price * hours / tokens * MILLION
        how = f"device hours * {price:g}"
        rows.append(Quantity(f"{group}.hour_{name}", hourly, "USD/h", f"{how} / hours{dated}", "cited"))
        rows.append(
            Quantity(f"{group}.written_mtoken_{name}", each_mtoken, "USD/Mtoken", f"{how} / tokens written", "cited")
        )
    return rows


def _scaled(scaled: Result, fixed: Result, fleet: Fleet, each: int) -> list[Quantity]:
    found = summary(scaled, fleet.objective)
    assert fleet.autoscaling is not None
    mean = scaled.replica_seconds / scaled.seconds
    most = max(count for _, count in scaled.replicas_over_time)
    saving = 1 - scaled.replica_seconds / fixed.replica_seconds
    rows = [
        Quantity("autoscaled.replicas_mean", mean, "replica", "paid seconds / seconds"),
        Quantity("autoscaled.replicas_most", most, "replica", "at any time"),
        Quantity("autoscaled.device_hours", scaled.replica_seconds * each / HOUR, "h", f"paid seconds * {each} / 3600"),
        Quantity("autoscaled.saving", saving, "1", "1 - paid / paid by the fixed fleet"),
        Quantity("autoscaled.kept", found.kept_share, "1", "requests that keep the objective / all"),
    ]  # fmt: skip
    for name in ("ttft", "tpot"):
        values: dict[int, float] = getattr(found, name)
        rows += [
            Quantity(f"autoscaled.{name}_p{percent}", values[percent], "s", f"{name} with autoscaling")
            for percent in PERCENTILES
            if not math.isnan(values[percent])
        ]
    return rows


def _sentence(found: Summary, count: int, each: int, device: Device, fleet: Fleet, arrivals: Sequence[Arrival]) -> str:
    text = f"{count} replica{'s' * (count > 1)} of {each} x {device.name} serve {len(arrivals):,} requests"
    if rate := _rate(arrivals):
        text += f" at {rate:.3g} a second"
    text += (
        f"; {found.kept_share:.1%} keep the objective, and some step runs {found.device_utilization:.0%} of the time."
    )
    if found.preemptions:
        text += f" The cache ran out {found.preemptions:,} times: more memory a replica would help."
    return text


def _scaled_sentence(scaled: Result, fixed: Result, fleet: Fleet) -> str:
    found = summary(scaled, fleet.objective)
    saved = 1 - scaled.replica_seconds / fixed.replica_seconds
    what = f"saves {saved:.0%} of the device hours" if saved >= 0 else f"takes {-saved:.0%} more device hours"
    return (
        f"Autoscaling {what} against the fixed fleet, and {found.kept_share:.1%} of the requests keep the objective: "
        f"p99 of the first token {found.ttft[99]:.3g} s."
    )


def _plots(result: Result, scaled: Result | None, fleet: Fleet) -> list[Plot]:
    runs = [("fixed fleet", result)] + ([("autoscaled", scaled)] if scaled is not None else [])
    curves = tuple(Curve(name, *_distribution([served.ttft for served in run.served])) for name, run in runs)
    plots = [
        Plot("ttft", "Time to the first token", "time", "s", "requests that have it by then", "1", curves, log_x=True)
    ]
    if scaled is not None:
        times, counts = _stairs(scaled)
        counted = Curve("replicas", times, counts)
        plots.append(
            Plot("replicas", "Replicas over time", "time", "s", "replicas that are paid for", "replica", (counted,))
        )
    return plots


def _distribution(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    shares = (*range(0, 90, 5), *range(90, 101))
    return tuple(max(percentile(values, share), 1e-6) for share in shares), tuple(share / 100 for share in shares)


def _stairs(result: Result) -> tuple[tuple[float, ...], tuple[float, ...]]:
    times: list[float] = []
    counts: list[float] = []
    for when, count in result.replicas_over_time:
        if counts:
            times.append(when)
            counts.append(counts[-1])
        times.append(when)
        counts.append(count)
    return tuple(times), tuple(counts)
