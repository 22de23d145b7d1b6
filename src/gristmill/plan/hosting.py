"""Own devices against an API: what a month costs on either side, and from which traffic own ones cost less.

Own devices are paid for by the hour, whether busy or not, in whole replicas; an API takes a price for each token.
Savings on the API's side are reckoned by slices of the traffic (plan/cost.py); those on one's own side are not factors
but other inputs of the same model: formats of weights and cache, the cached share of prompts, the hours that devices
run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig
from .cost import (
    DAYS_PER_MONTH,
    MILLION,
    SECONDS_PER_HOUR,
    Slice,
    TokenPrices,
    blended_usd_per_mtoken,
    breakeven_tokens_per_day,
    cost_stack_multiplier,
    lasting_breakeven_tokens_per_day,
    monthly_cost_usd,
    own_token_prices,
    usd_per_mtoken,
)
from .device import Device
from .gpus import (
    DEGREES,
    LEAST_SHARE,
    LEAST_USD,
    MOST_USD,
    Choice,
    LeftOut,
    Wanted,
    checked_price,
    choice_on,
    prompt_time_share,
)


@dataclass(frozen=True)
class Api:
    """An API's prices for a million tokens; those of cached parts of prompts are the others' where it has none."""

    input_usd_per_mtoken: float
    output_usd_per_mtoken: float
    cached_usd_per_mtoken: float | None = None

    def __post_init__(self) -> None:
        for option, price in (
            ("--api-input-usd", self.input_usd_per_mtoken),
            ("--api-output-usd", self.output_usd_per_mtoken),
            ("--api-cached-usd", self.cached_usd_per_mtoken),
        ):
            if price is not None and not 0 <= price <= MOST_USD:
                raise GristmillError(f"{option} must be from 0 to {MOST_USD:g}, not {price}")
        if self.input_usd_per_mtoken + self.output_usd_per_mtoken < LEAST_USD:
            raise GristmillError("--api-input-usd and --api-output-usd are both 0: nothing costs less than that")

    def prompt_usd_per_mtoken(self, cached_share: float) -> float:
        """(1 - h) input + h cached: of a prompt whose share h is cached."""
        cached = self.input_usd_per_mtoken if self.cached_usd_per_mtoken is None else self.cached_usd_per_mtoken
        return (1 - cached_share) * self.input_usd_per_mtoken + cached_share * cached


@dataclass(frozen=True)
class Hosting:
    """How one's own devices are run. `wanted` says traffic, targets and formats (one of each). `utilization` is the
    share of what a replica can do that it does in the mean, the rest being for peaks; `hours_per_day` those that
    devices are paid for, and all traffic comes in; `non_gpu_share` the part of the whole cost that is not devices;
    `marginal_usd_per_mtoken` what each token costs beside the hours (power, where it is not in them)."""

    wanted: Wanted
    requests_per_day: float
    tensor: int | None = None  # devices that share a replica; None: those with the cheapest tokens
    utilization: float = 0.5
    hours_per_day: float = 24.0
    non_gpu_share: float = 0.0
    marginal_usd_per_mtoken: float = 0.0
    usd_per_hour: tuple[float, float] | None = None  # of one device; None: the known price

    def __post_init__(self) -> None:
        bounds = (
            ("requests_per_day", 0.001, 1e15), ("utilization", LEAST_SHARE, 1), ("hours_per_day", 0.001, 24),
            ("non_gpu_share", 0, 0.999), ("marginal_usd_per_mtoken", 0, MOST_USD),
        )  # fmt: skip
        for name, least, most in bounds:
            value, option = getattr(self, name), "--" + name.removesuffix("_per_mtoken").replace("_", "-")
            if not least <= value <= most:
                raise GristmillError(f"{option} must be from {least:g} to {most:g}, not {value:g}")
        if self.tensor is not None and self.tensor < 1:
            raise GristmillError(f"--tensor must be at least 1, not {self.tensor}")


@dataclass(frozen=True)
class Bound:
    """One end of the price range: what own devices cost there."""

    usd_per_hour: float  # of one device
    usd_per_month: float
    prices: TokenPrices  # at this traffic
    full_prices: TokenPrices  # with replicas as busy as `utilization` lets them be
    breakeven_tokens_per_day: float  # math.inf: never
    lasting_breakeven_tokens_per_day: float
    breakeven_after_savings: float


@dataclass(frozen=True)
class Comparison:
    """Both sides at one traffic. Tokens are those of prompts and replies together."""

    hosting: Hosting
    api: Api
    slices: tuple[Slice, ...]
    choice: Choice
    replicas: int
    busy: float  # share of what the replicas can do that the traffic takes
    tokens_per_day: float
    replica_tokens_per_day: float  # at `utilization`, in the hours that it runs
    multiplier: float  # what the slices leave of the API's price
    api_usd_per_mtoken: float  # of the mixture, before savings
    low: Bound
    high: Bound

    @property
    def devices(self) -> int:
        return self.replicas * self.choice.tensor

    @property
    def tokens_per_month(self) -> float:
        return self.tokens_per_day * DAYS_PER_MONTH

    @property
    def api_usd_per_month(self) -> float:
        return self.api_usd_per_mtoken * self.tokens_per_month / MILLION

    def own_usd_per_month(self, bound: Bound, tokens_per_day: float) -> float:
        """whole replicas * their hours / (1 - other share) + tokens * marginal price."""
        replicas = max(math.ceil(tokens_per_day / self.replica_tokens_per_day), 1)
        marginal = tokens_per_day * DAYS_PER_MONTH / MILLION * self.hosting.marginal_usd_per_mtoken
        return replicas * replica_usd_per_month(self.hosting, self.choice.tensor, bound.usd_per_hour) + marginal

    def sensitivity(self, usd_per_hour: float, utilization: float) -> float:
        """US dollars for a million tokens with devices of this price, this busy."""
        hosting, rate = self.hosting, self.choice.estimate.requests_per_s * _request_tokens(self.hosting)
        hours = usd_per_mtoken(self.choice.tensor * usd_per_hour, rate, utilization) / (1 - hosting.non_gpu_share)
        return hours + hosting.marginal_usd_per_mtoken


def compare(
    config: ModelConfig, device: Device, hosting: Hosting, api: Api, slices: Sequence[Slice] = ()
) -> Comparison:
    """Own devices of this kind against the API, which `slices` of the traffic use at a discount. GristmillError where
    the device cannot keep the targets (with the reason), has no known price, or slices are no whole."""
    choice = _chosen(config, device, hosting)
    assert choice.usd_per_hour is not None
    traffic, estimate = hosting.wanted.traffic, choice.estimate
    tokens = _request_tokens(hosting)
    seconds = hosting.hours_per_day * SECONDS_PER_HOUR
    replica_requests = estimate.requests_per_s * hosting.utilization * seconds
    replicas = max(math.ceil(hosting.requests_per_day / replica_requests), 1)
    multiplier = cost_stack_multiplier(slices) if slices else 1.0
    api_price = blended_usd_per_mtoken(
        api.prompt_usd_per_mtoken(traffic.cached_prompt_share),
        api.output_usd_per_mtoken,
        traffic.prompt_tokens,
        traffic.output_tokens,
    )
    busy = hosting.requests_per_day / (replicas * estimate.requests_per_s * seconds)
    low, high = (
        _bound(hosting, choice, price, replicas, busy, replica_requests * tokens, api_price, multiplier)
        for price in choice.usd_per_hour
    )
    return Comparison(
        hosting, api, tuple(slices), choice, replicas, busy, hosting.requests_per_day * tokens,
        replica_requests * tokens, multiplier, api_price, low, high,
    )  # fmt: skip


def replica_usd_per_month(hosting: Hosting, tensor: int, usd_per_hour: float) -> float:
    """devices * price of an hour * hours / (1 - other share)."""
    return monthly_cost_usd(tensor * usd_per_hour, hosting.hours_per_day * DAYS_PER_MONTH) / (1 - hosting.non_gpu_share)


def _bound(
    hosting: Hosting,
    choice: Choice,
    usd_per_hour: float,
    replicas: int,
    busy: float,
    replica_tokens: float,
    api_price: float,
    multiplier: float,
) -> Bound:
    replica_month = replica_usd_per_month(hosting, choice.tensor, usd_per_hour)
    marginal = hosting.marginal_usd_per_mtoken

    def breakeven(price: float) -> float:
        found = breakeven_tokens_per_day(replica_month, price, own_usd_per_mtoken=marginal)
        return found if found <= replica_tokens else math.inf

    month = replicas * replica_month
    month += hosting.requests_per_day * _request_tokens(hosting) * DAYS_PER_MONTH / MILLION * marginal
    return Bound(
        usd_per_hour=usd_per_hour,
        usd_per_month=month,
        prices=_token_prices(hosting, choice, usd_per_hour, busy),
        full_prices=_token_prices(hosting, choice, usd_per_hour, hosting.utilization),
        breakeven_tokens_per_day=breakeven(api_price),
        lasting_breakeven_tokens_per_day=lasting_breakeven_tokens_per_day(
            replica_month / DAYS_PER_MONTH, replica_tokens, api_price - marginal
        ),
        breakeven_after_savings=breakeven(api_price * multiplier),
    )


def _token_prices(hosting: Hosting, choice: Choice, usd_per_hour: float, busy: float) -> TokenPrices:
    traffic, estimate = hosting.wanted.traffic, choice.estimate
    hours = choice.tensor * usd_per_hour / (1 - hosting.non_gpu_share)
    share = prompt_time_share(estimate, traffic)
    prices = own_token_prices(hours, estimate.requests_per_s, traffic.prompt_tokens, traffic.output_tokens, share, busy)
    marginal = hosting.marginal_usd_per_mtoken
    return TokenPrices(prices.input + marginal, prices.output + marginal, prices.blended + marginal)


def _request_tokens(hosting: Hosting) -> int:
    return hosting.wanted.traffic.prompt_tokens + hosting.wanted.traffic.output_tokens


def _chosen(config: ModelConfig, device: Device, hosting: Hosting) -> Choice:
    wanted = hosting.wanted
    price = hosting.usd_per_hour
    if price is not None:
        price = checked_price(price, "--usd-per-hour")
    degrees = DEGREES if hosting.tensor is None else (hosting.tensor,)
    found = choice_on(config, device, wanted, wanted.weights[0], wanted.kv[0], price, degrees)
    if isinstance(found, LeftOut):
        raise GristmillError(
            f"{device.name} does not serve this (weights {found.weights}, cache {found.kv}): {found.reason}; `plan "
            "gpus` lists what would"
        )
    if found.usd_per_hour is None:
        raise GristmillError(f"no price is known of {device.id}: give --usd-per-hour LOW,HIGH")
    return found
