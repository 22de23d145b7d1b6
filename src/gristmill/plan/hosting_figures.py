"""Own devices against an API (plan/hosting.py) as figures, sentences and a plot of cost over traffic."""

from __future__ import annotations

import math

from .cost import DAYS_PER_MONTH, MILLION, scale_to_zero_saving_fraction
from .hosting import Bound, Comparison
from .plot import Curve, Plot
from .quantity import Quantity

UTILIZATIONS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the table of sensitivity
POINTS = 97  # of a curve of the plot
REACH = 30.0  # how many times less and more traffic than asked or at the break-even the plot shows


def comparison_quantities(found: Comparison) -> list[Quantity]:
    """Figures grouped by the first part of their ids: own, api, break_even, savings, sensitivity. A break-even that
    there is not is left out."""
    return [*_own(found), *_api(found), *_break_even(found), *_savings(found), *_sensitivity(found)]


def _own(found: Comparison) -> list[Quantity]:
    hosting, estimate, tensor = found.hosting, found.choice.estimate, found.choice.tensor
    hours = hosting.hours_per_day
    rows = [
        Quantity("own.requests_per_s", estimate.requests_per_s, "request/s",
                 f"a replica of {tensor} at its targets' limit, {estimate.concurrency} at once"),
        Quantity("own.replicas", found.replicas, "replica",
                 f"max(ceil({hosting.requests_per_day:g} / (requests/s * {hours:g} h * {hosting.utilization:g})), 1)"),
        Quantity("own.devices", found.devices, "device", f"replicas * {tensor}"),
        Quantity("own.busy", found.busy, "1", f"requests / (replicas * requests/s * {hours:g} h)"),
    ]  # fmt: skip
    if hours < 24:
        saving = scale_to_zero_saving_fraction(hours, 24)
        rows.append(Quantity("own.scale_to_zero_saving", saving, "1", f"1 - {hours:g} h / 24 h, of an idle replica"))
    rest = "" if hosting.non_gpu_share == 0 else f" / (1 - {hosting.non_gpu_share:g})"
    power = "" if hosting.marginal_usd_per_mtoken == 0 else f" + tokens * {hosting.marginal_usd_per_mtoken:g} / 1e6"
    for name, bound in _bounds(found):
        rows += [
            Quantity(f"own.usd_per_hour_{name}", bound.usd_per_hour, "USD/h", _price_source(found), "cited"),
            Quantity(f"own.usd_per_month_{name}", bound.usd_per_month, "USD/month",
                     f"devices ({found.devices}) * price * {hours * DAYS_PER_MONTH:.4g} h{rest}{power}"),
            Quantity(f"own.usd_per_mtoken_{name}", bound.prices.blended, "USD/Mtoken",
                     f"a month / tokens of a month, {found.busy:.0%} busy"),
            Quantity(f"own.usd_per_input_mtoken_{name}", bound.prices.input, "USD/Mtoken",
                     "prompts bear the share of the time in which they are read"),
            Quantity(f"own.usd_per_output_mtoken_{name}", bound.prices.output, "USD/Mtoken", "replies bear the rest"),
        ]  # fmt: skip
    return rows


def _api(found: Comparison) -> list[Quantity]:
    api, traffic = found.api, found.hosting.wanted.traffic
    cached = traffic.cached_prompt_share
    rows = [
        Quantity("api.usd_per_input_mtoken", api.input_usd_per_mtoken, "USD/Mtoken", "as given", "cited"),
        Quantity("api.usd_per_output_mtoken", api.output_usd_per_mtoken, "USD/Mtoken", "as given", "cited"),
    ]
    if cached:
        rows.append(
            Quantity("api.usd_per_prompt_mtoken", api.prompt_usd_per_mtoken(cached), "USD/Mtoken",
                     f"(1 - {cached:g}) * input + {cached:g} * cached")
        )  # fmt: skip
    return [
        *rows,
        Quantity("api.usd_per_mtoken", found.api_usd_per_mtoken, "USD/Mtoken",
                 f"(P input + O output) / (P + O), P = {traffic.prompt_tokens}, O = {traffic.output_tokens}"),
        Quantity("api.tokens_per_day", found.tokens_per_day, "token/day", "requests * (P + O)"),
        Quantity("api.usd_per_month", found.api_usd_per_month, "USD/month", "price * tokens * 365 / 12 days"),
    ]  # fmt: skip


def _break_even(found: Comparison) -> list[Quantity]:
    marginal = found.hosting.marginal_usd_per_mtoken
    rows = [
        Quantity("break_even.replica_tokens_per_day", found.replica_tokens_per_day, "token/day",
                 f"what a replica does at {found.hosting.utilization:.0%} of its limit"),
    ]  # fmt: skip
    for name, bound in _bounds(found):
        figures = (
            (f"tokens_per_day_{name}", bound.breakeven_tokens_per_day,
             f"a replica's month / days / (API's price - {marginal:g}) * 1e6"),
            (f"lasting_tokens_per_day_{name}", bound.lasting_breakeven_tokens_per_day,
             "from which on another replica never makes the API the cheaper one"),
        )  # fmt: skip
        rows += [
            Quantity(f"break_even.{id}", value, "token/day", text)
            for id, value, text in figures
            if math.isfinite(value)
        ]
    return rows


def _savings(found: Comparison) -> list[Quantity]:
    if not found.slices:
        return []
    rows = [
        Quantity(f"savings.{part.name or number}", part.left, "1",
                 f"share {part.share:g}" + "".join(f" * {factor:g}" for factor in part.factors)
                 + (f" ({', '.join(part.savings)})" if part.savings else ""))
        for number, part in enumerate(found.slices, 1)
    ]  # fmt: skip
    rows += [
        Quantity("savings.left", found.multiplier, "1", "sum of the slices: of the API's price before savings"),
        Quantity("savings.product", _product(found), "1",
                 "what multiplying all discounts, each once, would claim: wrong unless all slices have them all"),
        Quantity("savings.usd_per_month", found.api_usd_per_month * found.multiplier, "USD/month", "API after savings"),
    ]  # fmt: skip
    for name, bound in _bounds(found):
        if math.isfinite(bound.breakeven_after_savings):
            rows.append(
                Quantity(f"savings.break_even_{name}", bound.breakeven_after_savings, "token/day", "against that price")
            )
    return rows


def _product(found: Comparison) -> float:
    """The discounts of all slices multiplied with each other, one of the same name once."""
    named: dict[object, float] = {}
    for place, part in enumerate(found.slices):
        for number, factor in enumerate(part.factors):
            name = part.savings[number] if number < len(part.savings) and part.savings[number] else (place, number)
            named[name] = factor
    return math.prod(named.values())


def _sensitivity(found: Comparison) -> list[Quantity]:
    low, high = found.low.usd_per_hour, found.high.usd_per_hour
    prices = {"low": low, "middle": (low + high) / 2, "high": high} if low < high else {"price": low}
    return [
        Quantity(f"sensitivity.{name}_at_{share * 100:g}", found.sensitivity(price, share), "USD/Mtoken",
                 f"${price:.4g} an hour, {share:.0%} busy")
        for name, price in prices.items()
        for share in UTILIZATIONS
    ]  # fmt: skip


def comparison_sentences(found: Comparison) -> list[str]:
    """Which side is cheaper at this traffic, where that turns, and what is not in the figures."""
    api = found.api_usd_per_month * found.multiplier
    low, high = found.low.usd_per_month, found.high.usd_per_month
    if high <= api:
        verdict = "own devices cost less at either end of the price range"
    elif low > api:
        verdict = "the API costs less at either end of the price range"
    else:
        verdict = "own devices cost less at the low end of the price range, the API at its high end"
    sentences = [
        f"At {found.tokens_per_day:,.0f} tokens a day {verdict}: ${low:,.0f} to ${high:,.0f} a month against "
        f"${api:,.0f}" + (" after savings." if found.slices else ".")
    ]
    for name, bound in _bounds(found):
        if math.isinf(bound.breakeven_tokens_per_day):
            sentences.append(
                f"At ${bound.usd_per_hour:g} an hour ({name}) own devices never cost less than the API before savings: "
                f"a replica {found.hosting.utilization:.0%} busy makes a million tokens for "
                f"${bound.full_prices.blended:.3g}."
            )
    if found.hosting.non_gpu_share == 0:
        sentences.append(
            "Own costs are the devices' alone; people, storage and network come on top (--non-gpu-share, of the whole)."
        )
    return sentences


def comparison_plots(found: Comparison) -> list[Plot]:
    """A month's cost over tokens a day, on both sides, with today's traffic and the break-even marked."""
    marks = [found.tokens_per_day, found.replica_tokens_per_day]
    marks += [
        bound.breakeven_tokens_per_day for _, bound in _bounds(found) if math.isfinite(bound.breakeven_tokens_per_day)
    ]
    least, most = min(marks) / REACH, max(marks) * REACH
    traffic = tuple(least * (most / least) ** (point / (POINTS - 1)) for point in range(POINTS))
    per_token = found.api_usd_per_mtoken * DAYS_PER_MONTH / MILLION
    curves = [Curve("API", traffic, tuple(tokens * per_token for tokens in traffic))]
    if found.slices:
        curves.append(
            Curve("API after savings", traffic, tuple(tokens * per_token * found.multiplier for tokens in traffic))
        )
    for name, bound in _bounds(found):
        costs = tuple(found.own_usd_per_month(bound, tokens) for tokens in traffic)
        curves.append(Curve(f"own devices, {name} price", traffic, costs))
    even = tuple(bound.breakeven_tokens_per_day for _, bound in _bounds(found))
    even = tuple(dict.fromkeys(tokens for tokens in even if math.isfinite(tokens)))
    if even:
        curves.append(Curve("break-even", even, tuple(tokens * per_token for tokens in even), "points"))
    curves.append(Curve("this traffic", (found.tokens_per_day,), (found.api_usd_per_month,), "points"))
    return [
        Plot("cost.traffic", "Cost of a month", "tokens a day", "token/day", "cost", "USD/month", tuple(curves),
             True, True)
    ]  # fmt: skip


def _bounds(found: Comparison) -> list[tuple[str, Bound]]:
    return [("low", found.low), ("high", found.high)]


def _price_source(found: Comparison) -> str:
    device, price = found.choice.device, found.choice.usd_per_hour
    if price != device.usd_per_hour:
        return "of one device, as given"
    dated = "" if device.price_date is None else f", {device.price_date}"
    return f"of one device: {device.price_source or 'hardware.toml'}{dated}"
