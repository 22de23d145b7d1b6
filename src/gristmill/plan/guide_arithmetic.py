"""Rows of the guide's table that are plain arithmetic, and so no business of the planner's own functions: ratios, sums,
orders of magnitude, mixtures of text, number formats."""

from __future__ import annotations

import math

from .guide_inputs import Answer, Formula, Inputs, shown


def _over(top: str, bottom: str, unit: str = "1", zero: bool = False) -> Formula:
    """A quotient of two inputs."""

    def of(inputs: Inputs) -> Answer:
        high, low = inputs.number(top, zero=zero), inputs.number(bottom)
        return Answer(high / low, f"{shown(high)} / {shown(low)}")

    return Formula(unit, of)


def _reading(inputs: Inputs) -> Answer:
    seconds, tokens = inputs.number("seconds_per_word"), inputs.number("tokens_per_word")
    return Answer(tokens / seconds, f"{shown(tokens)} / {shown(seconds)}")


def _rate(inputs: Inputs) -> Answer:
    seconds = inputs.number("seconds_per_token")
    return Answer(1 / seconds, f"1 / {shown(seconds)}")


def _saving(inputs: Inputs) -> Answer:
    before, after = inputs.number("before_bytes"), inputs.number("after_bytes", zero=True)
    return Answer(1 - after / before, f"1 - {shown(after)} / {shown(before)}")


def _orders(inputs: Inputs) -> Answer:
    high, low = inputs.number("high"), inputs.number("low")
    return Answer(math.log10(high) - math.log10(low), f"log10({shown(high)} / {shown(low)})")


def _span(inputs: Inputs) -> Answer:
    """Between the middles of two ranges, on a scale of powers of ten."""
    highs, lows = inputs.numbers("high_range", 2), inputs.numbers("low_range", 2)
    high, low = (sum(math.log10(end) for end in ends) / 2 for ends in (highs, lows))
    ends = [f"sqrt({shown(a)} * {shown(b)})" for a, b in (highs, lows)]
    return Answer(high - low, f"log10({ends[0]} / {ends[1]})")


def _sum_seconds(inputs: Inputs) -> Answer:
    parts = inputs.numbers("parts_s", zero=True)
    return Answer(math.fsum(parts), " + ".join(shown(part) for part in parts))


def _used(inputs: Inputs) -> Answer:
    waste = inputs.share("waste_fraction")
    return Answer(1 - waste, f"1 - {shown(waste)}")


def _compression(inputs: Inputs) -> Answer:
    old, new = inputs.count("from_dims"), inputs.count("to_dims")
    before, after = inputs.number("from_bits", 32), inputs.number("to_bits", inputs.given.get("from_bits", 32))
    formula = f"{old:,} / {new:,}" + (f" * {shown(before)} / {shown(after)}" if before != after else "")
    return Answer(old * before / (new * after), formula)


def _seen(inputs: Inputs) -> Answer:
    weight, total = inputs.share("weight", zero=True), inputs.number("total_tokens")
    return Answer(weight * total, f"{shown(weight)} * {shown(total)}")


def _epochs(inputs: Inputs) -> Answer:
    seen, size = _seen(inputs), inputs.number("source_tokens")
    return Answer(seen.value / size, f"{seen.formula} / {shown(size)}")


def _weights(inputs: Inputs) -> Answer:
    parts = inputs.numbers("weights", zero=True)
    return Answer(math.fsum(parts), " + ".join(shown(part) for part in parts))


def _float_max(inputs: Inputs) -> Answer:
    exponent, mantissa = inputs.count("exp_bits", most=11), inputs.count("man_bits", least=0, most=52)
    bias = 2 ** (exponent - 1) - 1
    if inputs.flag("ieee_inf", True):
        return Answer((2 - 2.0**-mantissa) * 2.0**bias, f"(2 - 2^-{mantissa}) * 2^{bias}")
    # The highest exponent holds numbers too, but for one: all bits set is no number.
    return Answer(math.ldexp(2 - 2.0 ** (1 - mantissa), bias + 1), f"(2 - 2^{1 - mantissa}) * 2^{bias + 1}")


def _digits(inputs: Inputs) -> Answer:
    bits = inputs.count("man_bits", least=0, most=10_000)
    return Answer(bits * math.log10(2), f"{bits} * log10(2)")


def _int_max(inputs: Inputs) -> Answer:
    bits = inputs.count("bits", most=512)
    return Answer(2 ** (bits - 1) - 1, f"2^{bits - 1} - 1")


def _int_min(inputs: Inputs) -> Answer:
    bits = inputs.count("bits", most=512)
    return Answer(-(2 ** (bits - 1)), f"-2^{bits - 1}")


def _perplexity(inputs: Inputs) -> Answer:
    size = inputs.count("vocab_size")
    return Answer(size, f"exp(ln({size:,}))")


def _fleet(inputs: Inputs) -> Answer:
    peak, margin = inputs.number("peak_tok_per_s"), inputs.number("margin", 1)
    each = inputs.number("tok_per_s_at_SLO")
    return Answer(math.ceil(peak * margin / each), f"ceil({shown(peak)} * {shown(margin)} / {shown(each)})")


FORMULAS: dict[str, Formula] = {
    "bandwidth_ratio": _over("numerator_bytes_per_s", "denominator_bytes_per_s"),
    "ratio": _over("numerator", "denominator", zero=True),
    "quant_compression_factor": _over("from_bits", "to_bits"),
    "reading_tokens_per_s": Formula("token/s", _reading),
    "tokens_per_s": Formula("token/s", _rate),
    "memory_saving_fraction": Formula("1", _saving),
    "orders_of_magnitude": Formula("1", _orders),
    "geometric_span_orders": Formula("1", _span),
    "sum_seconds": Formula("s", _sum_seconds),
    "used_memory_fraction": Formula("1", _used),
    "embedding_compression_factor": Formula("1", _compression),
    "mixture_tokens_seen": Formula("token", _seen),
    "mixture_epochs": Formula("epoch", _epochs),
    "mixture_weight_sum": Formula("1", _weights),
    "float_max": Formula("1", _float_max),
    "decimal_digits": Formula("1", _digits),
    "int_max": Formula("1", _int_max),
    "int_min": Formula("1", _int_min),
    "uniform_perplexity": Formula("1", _perplexity),
    "fleet_gpus": Formula("GPU", _fleet),
}
