"""Which devices can serve a model at a service level, and what a million tokens costs on each.

For every device, format of weights and of the cache, and number of tensor-parallel devices of a node: the most requests
at once whose mean time to the first token and mean time per token keep the targets (plan/serving.py), and from the
tokens/s at that point the price of tokens. Of the numbers of devices the one with the most tokens/s for each device is
taken, since a device's price is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from .ceilings import known_efficiency
from .cost import TokenPrices, own_token_prices
from .device import Device
from .layouts import Layout
from .quantity import in_bytes
from .serve_memory import UTILIZATION, context_bytes, kv_bits, serving_memory, weight_bits
from .serving import Server, ServingEstimate, Traffic
from .step_time import Efficiency, Load, StepModel

DEGREES = (1, 2, 4, 8)
LEAST_SHARE = 1e-4  # of time in which devices are busy
LEAST_USD, MOST_USD = 1e-9, 1e9  # that a price may be


@dataclass(frozen=True)
class Wanted:
    """What is asked of a server. Targets are of means; math.inf is none. Weights and cache may be in any of the formats
    named. `busy` is the share of the hours paid for in which devices do this traffic; `utilization` the share of the
    free memory that the cache takes."""

    traffic: Traffic
    ttft_seconds: float = 0.5
    tpot_seconds: float = 0.05
    weights: tuple[str, ...] = ("bf16",)
    kv: tuple[str, ...] = ("bf16",)
    max_devices: int = 8
    busy: float = 1.0
    utilization: float = UTILIZATION
    efficiency: Efficiency | None = None  # as fitted on this machine, else the usual one of each device

    def __post_init__(self) -> None:
        for name in ("ttft_seconds", "tpot_seconds"):
            if not getattr(self, name) > 0:
                raise GristmillError(f"--{name.removesuffix('_seconds')} must be above 0, not {getattr(self, name)}")
        if not self.max_devices >= 1:
            raise GristmillError(f"--max-devices must be at least 1, not {self.max_devices}")
        if not LEAST_SHARE <= self.busy <= 1:
            raise GristmillError(f"--busy must be from {LEAST_SHARE:g} to 1, not {self.busy}")
        if not (self.weights and self.kv):
            raise GristmillError("--weights and --kv need at least one format each")


@dataclass(frozen=True)
class Choice:
    """A device that keeps the targets: `tensor` of them share the model, `least_tensor` would do as well, at a higher
    price for each token or the same."""

    device: Device
    weights: str
    kv: str
    tensor: int
    least_tensor: int
    estimate: ServingEstimate
    prices: tuple[TokenPrices, TokenPrices] | None  # low and high; None where no price of the device is known
    usd_per_hour: tuple[float, float] | None = None  # of one device

    @property
    def name(self) -> str:
        return f"{self.device.id}:{self.weights}:{self.kv}"

    @property
    def tokens_per_s_per_device(self) -> float:
        return self.estimate.tokens_per_s / self.tensor

    def as_json(self) -> dict[str, Any]:
        found = self.estimate
        prices = None if self.prices is None else [price.blended for price in self.prices]
        return {
            "device": self.device.id, "devices": self.tensor, "least_devices": self.least_tensor,
            "weights": self.weights, "kv": self.kv, "concurrency": found.concurrency,
            "ttft_seconds": found.ttft_seconds, "tpot_seconds": found.tpot_seconds, "tokens_per_s": found.tokens_per_s,
            "usd_per_mtoken": prices,
        }  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A device that cannot, and why."""

    device: Device
    weights: str
    kv: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"device": self.device.id, "weights": self.weights, "kv": self.kv, "reason": self.reason}


@dataclass(frozen=True)
class Ranking:
    """Cheapest first (by the middle of the price range); those without a known price last, fastest first."""

    wanted: Wanted
    choices: tuple[Choice, ...]
    left_out: tuple[LeftOut, ...]


def rank_gpus(
    config: ModelConfig,
    wanted: Wanted,
    devices: Iterable[Device],
    usd_per_hour: Mapping[str, tuple[float, float]] | None = None,
) -> Ranking:
    """Every device as a choice or as left out, in each format. `usd_per_hour` (by a device's id, low and high) goes
    before the known prices. GristmillError for what no device could do, and for formats that are not known."""
    _check(config, wanted)
    prices = {id: checked_price(pair, f"--price of {id}") for id, pair in (usd_per_hour or {}).items()}
    found = [
        choice_on(config, device, wanted, weights, kv, prices.get(device.id))
        for device in devices
        for weights in wanted.weights
        for kv in wanted.kv
    ]
    choices = sorted((each for each in found if isinstance(each, Choice)), key=_order)
    return Ranking(wanted, tuple(choices), tuple(each for each in found if isinstance(each, LeftOut)))


def choice_on(
    config: ModelConfig,
    device: Device,
    wanted: Wanted,
    weights: str,
    kv: str,
    usd_per_hour: tuple[float, float] | None = None,
    degrees: Sequence[int] = DEGREES,
) -> Choice | LeftOut:
    """The best number of this device in these formats, or why there is none. The price is `usd_per_hour`, else the
    device's own."""
    if "fp8" in (weights, kv) and "fp8" not in device.peak_flops:
        return LeftOut(device, weights, kv, "it has no fp8")
    bits = weight_bits(weights), kv_bits(kv, config)
    kept: dict[int, ServingEstimate] = {}
    reasons: dict[str, str] = {}
    for tensor in degrees:
        if tensor > min(wanted.max_devices, device.devices_per_node):
            continue
        try:
            kind, found = _at_degree(config, device, wanted, tensor, *bits)
        except GristmillError as error:
            reasons["layout"] = str(error)
            continue
        if isinstance(found, str):
            reasons[kind] = found
            continue
        fewer = [each.tokens_per_s / number for number, each in kept.items()]
        kept[tensor] = found
        # What devices send each other grows with their number: once more of them write fewer tokens each, it stays so.
        if fewer and found.tokens_per_s / tensor < max(fewer):
            break
    if not (kept or reasons):
        reasons["layout"] = f"{degrees[0]} devices are more than --max-devices, or than a node holds"
    if not kept:
        reason = reasons.get("slow") or reasons.get("memory") or ""
        return LeftOut(device, weights, kv, "; ".join(part for part in (reason, reasons.get("layout", "")) if part))
    tensor = max(kept, key=lambda degree: kept[degree].tokens_per_s / degree)
    price = usd_per_hour or device.usd_per_hour
    estimate = kept[tensor]
    prices = None if price is None else _prices(estimate, wanted, price, tensor)
    return Choice(device, weights, kv, tensor, min(kept), estimate, prices, price)


def _at_degree(
    config: ModelConfig, device: Device, wanted: Wanted, tensor: int, weight_bits: float, kv_bits: float
) -> tuple[str, ServingEstimate | str]:
    """("kept", the estimate), or ("memory" or "slow", in words what is missing). GristmillError for a layout that
    cannot be."""
    layout = Layout(tensor=tensor)
    layout.check(config, device.devices_per_node)
    on = device.id if tensor == 1 else f"each of {tensor}"
    short = memory_short_bytes(config, device, layout, wanted, weight_bits, kv_bits)
    if short > 0:
        return "memory", f"memory is short by {in_bytes(short)} on {on}"
    server = server_of(config, device, layout, wanted, weight_bits, kv_bits)
    found = highest_concurrency(server, wanted.ttft_seconds, wanted.tpot_seconds)
    if found is not None:
        return "kept", found
    alone = server.at(1)
    if alone.tpot_seconds > wanted.tpot_seconds:
        ideal = StepModel(config, device, layout, weight_bits, kv_bits, Efficiency.ideal)
        floor = ideal.seconds(Load.decode(1, wanted.traffic.prompt_tokens))
        return "slow", (
            f"a request alone takes {alone.tpot_seconds * 1e3:,.3g} ms a token on {on} (floor of its memory "
            f"{floor * 1e3:,.3g} ms), over {wanted.tpot_seconds * 1e3:,.3g} ms"
        )
    return "slow", (
        f"a request alone waits {alone.ttft_seconds:,.3g} s for its first token on {on}, over "
        f"{wanted.ttft_seconds:,.3g} s"
    )


def server_of(
    config: ModelConfig, device: Device, layout: Layout, wanted: Wanted, weight_bits: float, kv_bits: float
) -> Server:
    """The model on these devices as `wanted` has it."""
    efficiency = wanted.efficiency or known_efficiency(device)
    return Server(config, device, layout, wanted.traffic, weight_bits, kv_bits, efficiency, wanted.utilization)


def memory_short_bytes(
    config: ModelConfig, device: Device, layout: Layout, wanted: Wanted, weight_bits: float, kv_bits: float
) -> float:
    """How many bytes each device would need more to hold its part of the weights, a step's results and the keys and
    values of one request; 0 where it holds them."""
    traffic = wanted.traffic
    memory = serving_memory(config, device, layout, weight_bits, kv_bits, wanted.utilization)
    needed = (traffic.prompt_tokens + traffic.output_tokens) * memory.kv_bytes_per_token
    if memory.kv_budget_bytes >= needed:
        return 0.0
    # The cache is given a share of what is free, and no more than a step leaves of it: both have to be enough.
    context = context_bytes(device)
    free = device.memory_bytes - context - memory.weight_bytes
    step = memory.working_bytes - context
    return max(needed / wanted.utilization, needed + step) - free


def highest_concurrency(server: Server, ttft_seconds: float, tpot_seconds: float) -> ServingEstimate | None:
    """The estimate at the most requests at once that keeps both targets and outgrows the cache at most 1 % of the time
    (or at one, where not even that is so sure); None where one request alone is slower. Times grow with requests, so a
    root is looked for, in turns by the straight line between the ends and by halves."""

    def over(estimate: ServingEstimate) -> float:
        return max(estimate.ttft_seconds / ttft_seconds, estimate.tpot_seconds / tpot_seconds) - 1

    found, high = server.at(1), max(server.most_safe, 1)
    if over(found) > 0:
        return None
    last = server.at(high)
    if over(last) <= 0:
        return last
    below, above, low, halve = over(found), over(last), 1, False
    while high - low > 1:
        share = 0.5 if halve else below / (below - above)
        middle = min(max(low + round((high - low) * share), low + 1), high - 1)
        estimate, halve = server.at(middle), not halve
        if over(estimate) <= 0:
            low, below, found = middle, over(estimate), estimate
        else:
            high, above = middle, over(estimate)
    return found


def prompt_time_share(estimate: ServingEstimate, traffic: Traffic) -> float:
    """Which share of a server's time reading prompts takes. `prefill_share` is that of other requests' prompts,
    (n - 1)/n of it; a request alone is behind its prompt's time."""
    if traffic.output_tokens == 1:
        return 1.0
    if estimate.running > 1:
        return min(estimate.prefill_share * estimate.running / (estimate.running - 1), 1.0)
    return min(estimate.prefill_seconds * estimate.requests_per_s, 1.0)


def checked_price(pair: Sequence[float], name: str) -> tuple[float, float]:
    """Low and high of a price an hour; GristmillError unless both are above 0, no fortune, and in order."""
    low, high = pair[0], pair[-1]
    if not LEAST_USD <= low <= high <= MOST_USD:
        raise GristmillError(
            f"{name}: LOW,HIGH must be from {LEAST_USD:g} to {MOST_USD:g} and in order, not {low:g},{high:g}"
        )
    return low, high


def _prices(
    estimate: ServingEstimate, wanted: Wanted, usd_per_hour: tuple[float, float], devices: int
) -> tuple[TokenPrices, TokenPrices]:
    traffic, share = wanted.traffic, prompt_time_share(estimate, wanted.traffic)
    low, high = (
        own_token_prices(
            devices * price, estimate.requests_per_s, traffic.prompt_tokens, traffic.output_tokens, share, wanted.busy
        )
        for price in usd_per_hour
    )
    return low, high


def _order(choice: Choice) -> tuple[bool, float, str]:
    if choice.prices is None:
        return True, -choice.tokens_per_s_per_device, choice.name
    return False, sum(price.blended for price in choice.prices), choice.name


def _check(config: ModelConfig, wanted: Wanted) -> None:
    for name in wanted.weights:
        weight_bits(name)
    for name in wanted.kv:
        kv_bits(name, config)
    if not config.causal:
        raise GristmillError("this model reads in both directions (causal: false): it writes no text to serve")
    length = wanted.traffic.prompt_tokens + wanted.traffic.output_tokens
    if length > config.max_seq_len:
        raise GristmillError(
            f"--prompt-tokens and --output-tokens are {length} together; this model takes {config.max_seq_len}"
        )
