"""What serving and training cost: pure formulas in US dollars, hours, tokens (Mtoken: a million of them).

Savings are reckoned slice by slice: a discount holds for the part of the traffic that it applies to, so that discounts
on different parts are never multiplied with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GristmillError

HOURS_PER_MONTH = 730.0  # 365 / 12 days of 24 hours
DAYS_PER_MONTH = 365 / 12
SECONDS_PER_HOUR = 3600.0
MILLION = 1e6


@dataclass(frozen=True)
class Slice:
    """A part of the traffic: its `share` of the undiscounted cost, and the price factors that hold for all of it (0.5
    for half the price); `savings` are what the factors are called."""

    share: float
    factors: tuple[float, ...] = ()
    name: str = ""
    savings: tuple[str, ...] = ()

    @property
    def left(self) -> float:
        """share * product of the factors: what is left of the whole cost."""
        return self.share * math.prod(self.factors)


@dataclass(frozen=True)
class TokenPrices:
    """US dollars for a million tokens: of prompts, of replies, of both in the traffic's mixture."""

    input: float
    output: float
    blended: float


def monthly_cost_usd(usd_per_hour: float, hours_per_month: float = HOURS_PER_MONTH) -> float:
    """price of an hour * hours."""
    return usd_per_hour * hours_per_month


def training_cost_usd(device_hours: float, usd_per_device_hour: float) -> float:
    """device hours * price of one."""
    return device_hours * usd_per_device_hour


def usd_per_mtoken(usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0) -> float:
    """1e6 * price of an hour / (3,600 * tokens/s * utilization): of own devices that are busy that share of the time,
    and paid for all of it."""
    return MILLION * usd_per_hour / (SECONDS_PER_HOUR * tokens_per_s * utilization)


def blended_usd_per_mtoken(
    input_usd_per_mtoken: float, output_usd_per_mtoken: float, input_parts: float, output_parts: float
) -> float:
    """(i * input + o * output) / (i + o): the price of a token where traffic is i parts of prompt to o of output."""
    whole = input_parts * input_usd_per_mtoken + output_parts * output_usd_per_mtoken
    return whole / (input_parts + output_parts)


def own_token_prices(
    usd_per_hour: float,
    requests_per_s: float,
    prompt_tokens: float,
    output_tokens: float,
    prompt_share: float,
    utilization: float = 1.0,
) -> TokenPrices:
    """What tokens cost on own devices: those of prompts bear the share of the devices' time that reading prompts takes,
    those of replies the rest, so that together they come to what is paid."""
    reading = usd_per_mtoken(usd_per_hour, requests_per_s * prompt_tokens, utilization)
    writing = usd_per_mtoken(usd_per_hour, requests_per_s * output_tokens, utilization)
    whole = usd_per_mtoken(usd_per_hour, requests_per_s * (prompt_tokens + output_tokens), utilization)
    return TokenPrices(reading * prompt_share, writing * (1 - prompt_share), whole)


def breakeven_tokens_per_day(
    usd_per_month: float, usd_per_mtoken: float, days_per_month: float = DAYS_PER_MONTH, own_usd_per_mtoken: float = 0.0
) -> float:
    """usd_per_month / days / (price - own marginal cost) * 1e6: the traffic from which a fixed monthly cost is less
    than what an API takes for it; infinite where each own token costs as much as a bought one."""
    saved = usd_per_mtoken - own_usd_per_mtoken
    return usd_per_month / days_per_month / saved * MILLION if saved > 0 else math.inf


def lasting_breakeven_tokens_per_day(
    replica_usd_per_day: float, replica_tokens_per_day: float, saved_usd_per_mtoken: float
) -> float:
    """(m + 1) F / s: the traffic from which own replicas, each F a day for up to c tokens, stay cheaper than an API
    that takes s more for each token, however far traffic grows. A replica more is F at once, so that behind the first
    break-even, F / s, the API may be cheaper again; m = ceil(F / (c s - F)) - 1 is the last full number of replicas at
    which one more makes it so. Infinite where a full replica costs as much as the API, c s <= F."""
    saved = saved_usd_per_mtoken / MILLION
    gain = replica_tokens_per_day * saved - replica_usd_per_day
    if gain <= 1e-9 * replica_usd_per_day:
        return math.inf
    full = max(math.ceil(replica_usd_per_day / gain - 1e-9) - 1, 0)
    return (full + 1) * replica_usd_per_day / saved


def cost_stack_multiplier(slices: Sequence[Slice]) -> float:
    """sum over slices of share * product of its factors: the cost that is left. GristmillError unless the shares come
    to 1, each of at least 0, and no factor is negative."""
    total = sum(part.share for part in slices)
    if not math.isclose(total, 1, rel_tol=1e-6):
        raise GristmillError(f"the shares of the slices come to {total:g}, not to 1")
    for part in slices:
        if not part.share >= 0 or not all(factor >= 0 for factor in part.factors):
            raise GristmillError(f"slice {part.name or part}: a share or a price factor is negative or no number")
    return sum(part.left for part in slices)


def routing_cost_multiplier(cheap_share: float, cheap_price_ratio: float) -> float:
    """1 - p + p r: cost with a share p of the traffic going to a model at r of the price."""
    return cost_stack_multiplier([Slice(1 - cheap_share), Slice(cheap_share, (cheap_price_ratio,))])


def prompt_cache_saving_fraction(
    cached_share: float, cache_read_price_ratio: float, cache_write_price_ratio: float = 1.0
) -> float:
    """Share of the price of prompts that is saved: 1 - (h r + (1 - h) w), where a share h of their tokens is read from
    a cache at r of the price, and the others are written at w of it (1 where writing costs nothing extra)."""
    return 1 - (cached_share * cache_read_price_ratio + (1 - cached_share) * cache_write_price_ratio)


def scale_to_zero_saving_fraction(busy_hours: float, total_hours: float) -> float:
    """1 - busy / total."""
    return 1 - busy_hours / total_hours


def goodput_fraction(slo_violation_fraction: float) -> float:
    """1 - violations: the share of requests that keep the service level objective."""
    return 1 - slo_violation_fraction


def goodput_requests_per_s(requests_per_s: float, slo_violation_fraction: float) -> float:
    """rate * (1 - violations): requests that keep the service level objective."""
    return requests_per_s * goodput_fraction(slo_violation_fraction)


def annual_decline_factor(start_price: float, end_price: float, years: float) -> float:
    """(start / end)^(1 / years): by what factor the price fell each year."""
    return (start_price / end_price) ** (1 / years)
