"""Rows of the guide's table about money, and about how much a service delivers."""

from __future__ import annotations

from . import cost
from .guide_inputs import Answer, Formula, Inputs, shown


def _monthly(inputs: Inputs) -> Answer:
    price, hours = inputs.number("usd_per_hour", zero=True), inputs.number("hours_per_month", cost.HOURS_PER_MONTH)
    return Answer(cost.monthly_cost_usd(price, hours), f"{shown(price)} * {shown(hours)}")


def _training(inputs: Inputs) -> Answer:
    hours, price = inputs.number("gpu_hours"), inputs.number("usd_per_gpu_hour", zero=True)
    return Answer(cost.training_cost_usd(hours, price), f"{shown(hours)} * {shown(price)}")


def _stack(inputs: Inputs) -> Answer:
    given = inputs.raw("slices")
    if not isinstance(given, list | tuple) or not given or not all(isinstance(part, dict) for part in given):
        raise inputs.refuse("slices", "must be a list of {share, factors}")
    slices, texts = [], []
    for part in given:
        one = Inputs(part)
        share = one.share("share")
        factors = tuple(one.numbers("factors", zero=True)) if part.get("factors") else ()
        slices.append(cost.Slice(share, factors, str(part.get("name", ""))))
        texts.append(" * ".join(shown(number) for number in (share, *factors)))
    return Answer(cost.cost_stack_multiplier(slices), " + ".join(texts))


def _reduction(inputs: Inputs) -> Answer:
    left = _stack(inputs)
    return Answer(1 - left.value, f"1 - ({left.formula})")


def _reduction_factor(inputs: Inputs) -> Answer:
    left = _stack(inputs)
    if not left.value:
        raise inputs.refuse("slices", "leave no cost at all, so that there is no factor")
    return Answer(1 / left.value, f"1 / ({left.formula})")


def _routing(inputs: Inputs) -> Answer:
    share, ratio = inputs.share("cheap_share"), inputs.number("cheap_price_ratio", zero=True)
    value = cost.routing_cost_multiplier(share, ratio)
    return Answer(value, f"1 - {shown(share)} + {shown(share)} * {shown(ratio)}")


def _blended(inputs: Inputs) -> Answer:
    prices = [inputs.number(f"{side}_usd_per_mtoken", zero=True) for side in ("input", "output")]
    parts = [inputs.number(f"{side}_parts", zero=True) for side in ("input", "output")]
    if not sum(parts):
        raise inputs.refuse("input_parts", "and 'output_parts' must not both be 0")
    top = " + ".join(f"{shown(part)} * {shown(price)}" for part, price in zip(parts, prices, strict=True))
    return Answer(cost.blended_usd_per_mtoken(*prices, *parts), f"({top}) / {shown(sum(parts))}")


def _decline(inputs: Inputs) -> Answer:
    start, end, years = (inputs.number(name) for name in ("start_price", "end_price", "years"))
    value = cost.annual_decline_factor(start, end, years)
    return Answer(value, f"({shown(start)} / {shown(end)})^(1 / {shown(years)})")


def _break_even(inputs: Inputs) -> Answer:
    fixed, price = inputs.number("usd_per_month", zero=True), inputs.number("usd_per_mtoken")
    days = inputs.number("days_per_month", cost.DAYS_PER_MONTH)
    value = cost.breakeven_tokens_per_day(fixed, price, days)
    return Answer(value, f"{shown(fixed)} / {shown(days)} / {shown(price)} * 1e6")


def _other_costs(inputs: Inputs) -> Answer:
    gpu, total = inputs.number("gpu_usd_per_month", zero=True), inputs.number("total_usd_per_month")
    if gpu > total:
        raise inputs.refuse("gpu_usd_per_month", f"({gpu:g}) must be at most 'total_usd_per_month' ({total:g})")
    return Answer(1 - gpu / total, f"1 - {shown(gpu)} / {shown(total)}")


def _goodput(inputs: Inputs) -> Answer:
    rate, late = inputs.number("requests_per_s", zero=True), inputs.share("slo_violation_fraction")
    return Answer(cost.goodput_requests_per_s(rate, late), f"{shown(rate)} * (1 - {shown(late)})")


def _scale_to_zero(inputs: Inputs) -> Answer:
    busy, total = inputs.number("busy_hours", zero=True), inputs.number("total_hours")
    if busy > total:
        raise inputs.refuse("busy_hours", f"({busy:g}) must be at most 'total_hours' ({total:g})")
    return Answer(cost.scale_to_zero_saving_fraction(busy, total), f"1 - {shown(busy)} / {shown(total)}")


def _prompt_cache(inputs: Inputs) -> Answer:
    share, read = inputs.share("cached_share"), inputs.number("cache_read_price_ratio", zero=True)
    write = inputs.number("cache_write_price_ratio", 1)
    value = cost.prompt_cache_saving_fraction(share, read, write)
    extra = f"1 - ({shown(share)} * {shown(read)} + (1 - {shown(share)}) * {shown(write)})"
    return Answer(value, f"{shown(share)} * (1 - {shown(read)})" if write == 1 else extra)


FORMULAS: dict[str, Formula] = {
    "monthly_cost_usd": Formula("USD", _monthly),
    "training_cost_usd": Formula("USD", _training),
    "cost_stack_multiplier": Formula("1", _stack),
    "cost_reduction_fraction": Formula("1", _reduction),
    "cost_reduction_factor": Formula("1", _reduction_factor),
    "routing_cost_multiplier": Formula("1", _routing),
    "blended_usd_per_mtoken": Formula("USD/Mtoken", _blended),
    "annual_decline_factor": Formula("1", _decline),
    "breakeven_tokens_per_day": Formula("token/day", _break_even),
    "non_gpu_cost_share": Formula("1", _other_costs),
    "goodput_requests_per_s": Formula("request/s", _goodput),
    "scale_to_zero_saving_fraction": Formula("1", _scale_to_zero),
    "prompt_cache_saving_fraction": Formula("1", _prompt_cache),
}
