"""What a simulated or a measured run comes to: percentiles, goodput, use of the devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .fleet import Result
from .replica import Served


@dataclass(frozen=True)
class Objective:
    """A service level objective: seconds to the first token, seconds for each further one; a request that misses either
    has failed it."""

    ttft_seconds: float = math.inf
    tpot_seconds: float = math.inf

    def kept(self, ttft: float, tpot: float | None) -> bool:
        return ttft <= self.ttft_seconds and (tpot is None or tpot <= self.tpot_seconds)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all are at most, between two neighbours by straight lines; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Summary:
    """Times in seconds, by percentile (50, 90, 99); rates over the whole run."""

    ttft: dict[int, float]
    tpot: dict[int, float]
    end_to_end: dict[int, float]
    queue: dict[int, float]  # until a request is part of a step
    requests_per_s: float
    output_tokens_per_s: float
    goodput_requests_per_s: float
    kept_share: float  # requests that kept the objective
    device_utilization: float  # busy over paid
    cache_hit_share: float  # of the prompts' tokens
    peak_cache_usage: float
    preemptions: int


PERCENTILES = (50, 90, 99)


def summary(result: Result, objective: Objective = Objective()) -> Summary:
    served = result.served
    kept = sum(objective.kept(one.ttft, one.tpot) for one in served)
    span = max(result.seconds - served[0].arrival.seconds, 1e-12)
    return Summary(
        ttft=_percentiles([one.ttft for one in served]),
        tpot=_percentiles([tpot for one in served if (tpot := one.tpot) is not None]),
        end_to_end=_percentiles([one.last - one.arrival.seconds for one in served]),
        queue=_percentiles([_waited(one) for one in served]),
        requests_per_s=len(served) / span,
        output_tokens_per_s=sum(one.arrival.output_tokens for one in served) / span,
        goodput_requests_per_s=kept / span,
        kept_share=kept / len(served),
        device_utilization=result.busy_seconds / result.replica_seconds if result.replica_seconds else 0.0,
        cache_hit_share=result.hit_tokens / result.query_tokens if result.query_tokens else 0.0,
        peak_cache_usage=result.peak_cache_usage,
        preemptions=result.preemptions,
    )


def _percentiles(values: Sequence[float]) -> dict[int, float]:
    return {percent: percentile(values, percent) for percent in PERCENTILES}


def _waited(served: Served) -> float:
    return served.started - served.arrival.seconds
