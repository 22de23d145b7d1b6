"""Rows of the guide's table about rates: the roofline, decoding, arithmetic of training, guessing ahead."""

from __future__ import annotations

from . import flops, roofline, scaling, speculation, training
from .guide_inputs import Answer, Formula, Inputs, shown
from .guide_memory import has_cache, kv_bytes_per_sequence, kv_bytes_per_token, weights
from .guide_model import shape
from .parameters import matrix_params

SCORES = ("n_layers", "n_heads", "head_dim")


def _ceilings(inputs: Inputs) -> tuple[float, float]:
    return inputs.number("peak_flops"), inputs.number("bandwidth_bytes_per_s")


def _ridge(inputs: Inputs) -> Answer:
    peak, bandwidth = _ceilings(inputs)
    return Answer(roofline.ridge_flop_per_byte(peak, bandwidth), f"{shown(peak)} / {shown(bandwidth)}")


def _gap(inputs: Inputs) -> Answer:
    peak, bandwidth = _ceilings(inputs)
    intensity = inputs.number("flop_per_byte")
    return Answer(
        roofline.roofline_gap_factor(intensity, peak, bandwidth),
        f"{shown(peak)} / min({shown(peak)}, {shown(intensity)} * {shown(bandwidth)})",
    )


def _idle(inputs: Inputs) -> Answer:
    peak, bandwidth = _ceilings(inputs)
    intensity = inputs.number("flop_per_byte")
    return Answer(
        roofline.compute_idle_fraction(intensity, peak, bandwidth),
        f"1 - min({shown(peak)}, {shown(intensity)} * {shown(bandwidth)}) / {shown(peak)}",
    )


def _compute_bound(inputs: Inputs) -> Answer:
    peak, bandwidth = _ceilings(inputs)
    each = inputs.number("weight_bytes_per_param")
    tokens = roofline.min_compute_bound_tokens(peak, bandwidth, each)
    return Answer(tokens, f"{shown(peak)} / {shown(bandwidth)} * {shown(each)} / 2")


def _decode_intensity(inputs: Inputs) -> Answer:
    batch = inputs.number("batch", 1)
    each = inputs.number("weight_bytes_per_param")
    params = inputs.number("params")
    size = f"{shown(params)} * {shown(each)}"
    if not has_cache(inputs):
        value = roofline.decode_flop_per_byte(params, params * each, batch)
        return Answer(value, f"{shown(batch)} * 2 * {shown(params)} / ({size})")
    cache = kv_bytes_per_sequence(inputs)
    config, length = shape(inputs, SCORES), inputs.count("seq_len")
    attention = flops.flops_per_token_decode(config, length) - 2 * matrix_params(config)
    value = roofline.decode_flop_per_byte(params, params * each, batch, cache.value, attention)
    scores = f"4 * {config.num_layers} * {config.num_heads} * {config.head_dim} * {length:,}"
    if config.latent is not None:
        scores = shown(attention)
    many = f"{shown(batch)} * "
    return Answer(value, f"{many}(2 * {shown(params)} + {scores}) / ({size} + {many}{cache.formula})")


def _step(inputs: Inputs) -> tuple[float, float, float, float, str]:
    """weights, keys and values of a sequence, batch, bandwidth, and the step's floor in words."""
    whole, batch = weights(inputs), inputs.number("batch", 1)
    cache, bandwidth = 0.0, inputs.number("bandwidth_bytes_per_s")
    text = whole.formula
    if has_cache(inputs):
        one = kv_bytes_per_sequence(inputs)
        cache = one.value
        text = f"({whole.formula} + {shown(batch)} * {one.formula})"
    return whole.value, cache, batch, bandwidth, f"{text} / {shown(bandwidth)}"


def _ceiling(inputs: Inputs) -> Answer:
    whole, cache, batch, bandwidth, floor = _step(inputs)
    rate = roofline.decode_ceiling_tokens_per_s(whole, cache, batch, bandwidth)
    return Answer(rate, f"{shown(batch)} / ({floor})")


def _step_floor(inputs: Inputs) -> Answer:
    whole, cache, batch, bandwidth, floor = _step(inputs)
    return Answer(roofline.step_floor_seconds(whole, batch * cache, bandwidth), floor)


def _peak(inputs: Inputs) -> Answer:
    units, each, clock = inputs.count("n_sm"), inputs.number("flop_per_clock_per_sm"), inputs.number("clock_hz")
    return Answer(
        roofline.peak_flops_from_units(units, each, clock), f"{units} * {shown(each)} * {shown(clock)}"
    )  # fmt: skip


def _on_chip(inputs: Inputs) -> Answer:
    units, each, clock = inputs.count("n_sm"), inputs.number("bytes_per_clock_per_sm"), inputs.number("clock_hz")
    rate = roofline.onchip_bandwidth_bytes_per_s(units, each, clock)
    return Answer(rate, f"{units} * {shown(each)} * {shown(clock)}")


def _utilization(inputs: Inputs) -> Answer:
    achieved, peak = inputs.number("achieved_flops"), inputs.number("peak_flops")
    return Answer(roofline.compute_utilization(achieved, peak), f"{shown(achieved)} / {shown(peak)}")


def _train_flops(inputs: Inputs) -> Answer:
    params, tokens = inputs.number("params"), inputs.number("tokens")
    return Answer(training.train_flops(params, tokens), f"6 * {shown(params)} * {shown(tokens)}")


def _chinchilla(inputs: Inputs) -> Answer:
    params, each = inputs.number("params"), inputs.number("tokens_per_param", 20)
    return Answer(scaling.chinchilla_tokens(params, each), f"{shown(each)} * {shown(params)}")


def _tokens_per_param(inputs: Inputs) -> Answer:
    params, tokens = inputs.number("params"), inputs.number("tokens")
    return Answer(tokens / params, f"{shown(tokens)} / {shown(params)}")


def _multiple(inputs: Inputs) -> Answer:
    params, tokens, each = inputs.number("params"), inputs.number("tokens"), inputs.number("tokens_per_param", 20)
    return Answer(
        scaling.chinchilla_multiple(params, tokens, each), f"{shown(tokens)} / {shown(params)} / {shown(each)}"
    )  # fmt: skip


def _lengths(inputs: Inputs) -> tuple[int, int]:
    return inputs.count("seq_len_from"), inputs.count("seq_len_to")


def _attention_ratio(inputs: Inputs) -> Answer:
    old, new = _lengths(inputs)
    return Answer(new**2 / old**2, f"{new:,}^2 / {old:,}^2")


def _forward(inputs: Inputs, length: int) -> Answer:
    params, layers, width = inputs.number("params"), inputs.count("n_layers", most=100_000), inputs.count("d_model")
    # The causal half of the scores and weighted sums of all pairs: as wide as the model, whatever its heads.
    attention = flops.attention_flops_per_token(
        shape(Inputs({"n_layers": layers, "n_heads": 1, "n_kv_heads": 1, "head_dim": width}), SCORES),
        length,
        causal_half=False,
    )
    formula = f"{length:,} * (2 * {shown(params)} + 2 * {layers} * {width:,} * {length:,})"
    return Answer(length * (2 * params + attention / 2), formula)


def _prefill_ratio(inputs: Inputs) -> Answer:
    before, after = (_forward(inputs, length) for length in _lengths(inputs))
    return Answer(after.value / before.value, f"{after.formula} / ({before.formula})")


def _guessing(inputs: Inputs) -> tuple[float, int]:
    return inputs.share("acceptance"), inputs.count("draft_tokens", least=0, most=100_000)


def _expected(inputs: Inputs) -> Answer:
    accepted, guessed = _guessing(inputs)
    return Answer(speculation.expected_tokens(accepted, guessed), _expected_text(accepted, guessed))


def _expected_text(accepted: float, guessed: int) -> str:
    if accepted == 1:
        return f"{guessed} + 1"
    return f"(1 - {shown(accepted)}^{guessed + 1}) / (1 - {shown(accepted)})"


def _speedup(inputs: Inputs) -> Answer:
    (accepted, guessed), cost = _guessing(inputs), inputs.number("draft_cost_ratio", zero=True)
    value = speculation.speedup(accepted, guessed, cost)
    return Answer(value, f"{_expected_text(accepted, guessed)} / (1 + {guessed} * {shown(cost)})")


def _slowdown(inputs: Inputs) -> Answer:
    (accepted, guessed), cost = _guessing(inputs), inputs.number("draft_cost_ratio", zero=True)
    value = speculation.slowdown_compute_bound(accepted, guessed, cost)
    whole = f"({guessed} + 1 + {guessed} * {shown(cost)})"
    return Answer(value, f"{whole} / ({_expected_text(accepted, guessed)})")


def _forward_flops(inputs: Inputs) -> Answer:
    return _forward(inputs, inputs.count("seq_len"))


def _intensity_limit(inputs: Inputs) -> Answer:
    params, one = inputs.number("params"), kv_bytes_per_token(inputs)
    config, length = shape(inputs, SCORES), inputs.count("seq_len")
    attention = flops.flops_per_token_decode(config, length) - 2 * matrix_params(config)
    limit = roofline.decode_flop_per_byte_limit(params, one.value * length, attention)
    return Answer(limit, f"(2 * {shown(params)} + {shown(attention)}) / ({one.formula} * {length:,})")


FORMULAS: dict[str, Formula] = {
    "ridge_flop_per_byte": Formula("FLOP/byte", _ridge),
    "roofline_gap_factor": Formula("1", _gap),
    "compute_idle_fraction": Formula("1", _idle),
    "min_compute_bound_tokens": Formula("token", _compute_bound),
    "decode_flop_per_byte": Formula("FLOP/byte", _decode_intensity),
    "decode_flop_per_byte_limit": Formula("FLOP/byte", _intensity_limit),
    "decode_ceiling_tokens_per_s": Formula("token/s", _ceiling),
    "step_floor_seconds": Formula("s", _step_floor),
    "peak_flops": Formula("FLOP/s", _peak),
    "onchip_bandwidth_bytes_per_s": Formula("byte/s", _on_chip),
    "compute_utilization": Formula("1", _utilization),
    "train_flops": Formula("FLOP", _train_flops),
    "forward_flops": Formula("FLOP", _forward_flops),
    "chinchilla_tokens": Formula("token", _chinchilla),
    "tokens_per_param": Formula("token/param", _tokens_per_param),
    "chinchilla_multiple": Formula("1", _multiple),
    "attention_flops_ratio": Formula("1", _attention_ratio),
    "prefill_flops_ratio": Formula("1", _prefill_ratio),
    "speculative_expected_tokens": Formula("token", _expected),
    "speculative_speedup": Formula("1", _speedup),
    "speculative_slowdown_compute_bound": Formula("1", _slowdown),
}
