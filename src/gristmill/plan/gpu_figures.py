"""The ranking of devices (plan/gpus.py) as figures, sentences and a plot of price against speed."""

from __future__ import annotations

import math

from ..model.config import ModelConfig
from .gpus import Choice, LeftOut, Ranking, Wanted, choice_on, server_of
from .layouts import Layout
from .plot import Curve, Plot
from .quantity import Quantity
from .serve_memory import kv_bits, weight_bits
from .serving import Server, ladder

DRAWN = 5  # devices of a plot
LESS = (("int4", "bf16"), ("int4", "fp8"))  # formats that are tried where no device was found


def ranking_quantities(ranking: Ranking) -> list[Quantity]:
    """Figures of each choice in the order of the ranking; their group is `device:weights:cache`."""
    return [quantity for choice in ranking.choices for quantity in _of_choice(choice, ranking.wanted)]


def _of_choice(choice: Choice, wanted: Wanted) -> list[Quantity]:
    found, name, traffic = choice.estimate, choice.name, wanted.traffic
    rows = [
        Quantity(f"{name}.devices", choice.tensor, "device",
                 f"tensor-parallel, the most tokens/s for each of them; {choice.least_tensor} would do"),
        Quantity(f"{name}.concurrency", found.concurrency, "request", "the most at once that keep the targets"),
        Quantity(f"{name}.ttft", found.ttft_seconds, "s", "mean, half a step + waiting + the prompt's steps"),
        Quantity(f"{name}.tpot", found.tpot_seconds, "s", "mean, a step / (1 - share of time for prompts)"),
        Quantity(f"{name}.tokens_per_s", found.tokens_per_s, "token/s", "written, of all these devices"),
    ]  # fmt: skip
    if choice.prices is None or choice.usd_per_hour is None:
        return rows
    dated = "" if choice.device.price_date is None else f", prices of {choice.device.price_date}"
    given = choice.usd_per_hour != choice.device.usd_per_hour
    for bound, hour, prices in zip(("low", "high"), choice.usd_per_hour, choice.prices, strict=True):
        source = "as given" if given else choice.device.price_source or "hardware.toml"
        busy = "" if wanted.busy == 1 else f" / {wanted.busy:g}"
        rows += [
            Quantity(f"{name}.usd_per_hour_{bound}", choice.tensor * hour, "USD/h",
                     f"{choice.tensor} * {hour:g}, {source}{'' if given else dated}", "cited"),
            Quantity(f"{name}.usd_per_mtoken_{bound}", prices.blended, "USD/Mtoken",
                     f"1e6 * price of an hour / (3600 * requests/s * {traffic.prompt_tokens + traffic.output_tokens})"
                     f"{busy}, prompts and replies"),
            Quantity(f"{name}.usd_per_input_mtoken_{bound}", prices.input, "USD/Mtoken",
                     "prompts bear the share of the time in which they are read"),
            Quantity(f"{name}.usd_per_output_mtoken_{bound}", prices.output, "USD/Mtoken", "replies bear the rest"),
        ]  # fmt: skip
    return rows


def ranking_sentences(ranking: Ranking, config: ModelConfig) -> list[str]:
    """What the ranking says, what it stands on, and what would help where nothing was found."""
    choices, wanted = ranking.choices, ranking.wanted
    sentences = []
    if not choices:
        sentences.append("No device keeps the targets." + _less(ranking, config))
    if choices and choices[0].prices is not None:
        best = choices[0]
        sentences.append(
            f"Cheapest: {best.tensor} x {best.device.name}, weights {best.weights}, cache {best.kv}, "
            f"{best.estimate.concurrency} requests at once."
        )
    if any(choice.prices is None for choice in choices):
        unpriced = dict.fromkeys(choice.device.id for choice in choices if choice.prices is None)
        sentences.append(f"No price is known of {', '.join(unpriced)} (--price ID=LOW,HIGH gives one).")
    unlinked = [choice.device.id for choice in choices if choice.tensor > 1 and choice.device.link_bandwidth is None]
    if unlinked:
        sentences.append(
            f"Several of {', '.join(dict.fromkeys(unlinked))} exchange over PCIe at its full rate, which servers "
            "without direct transfers between cards do not reach."
        )
    sentences.append(
        f"Prices are at the targets' limit, busy {wanted.busy:.0%} of the hours paid for; traffic with a mean at half "
        "of its peak pays about twice as much (--busy 0.5)."
    )
    sentences.append(
        "Times are means in a steady state; `plan fleet` gives percentiles under a trace. Devices of datasheets are "
        "taken to reach the shares of their ceilings that an H100 was measured to reach; weights of fewer bits are "
        "multiplied in 16."
    )
    return sentences


def _less(ranking: Ranking, config: ModelConfig) -> str:
    """Which formats of fewer bits would find a device, the first that does."""
    wanted = ranking.wanted
    devices = {each.device.id: each.device for each in ranking.left_out}.values()
    for weights, kv in LESS:
        if weights in wanted.weights and kv in wanted.kv:
            continue
        found = [choice_on(config, device, wanted, weights, kv) for device in devices]
        kept = [choice for choice in found if isinstance(choice, Choice)]
        if kept:
            names = ", ".join(f"{choice.tensor} x {choice.device.id}" for choice in kept[:4])
            return f" With --weights {weights} --kv {kv} these would: {names}."
    return ""


def ranking_plots(ranking: Ranking, config: ModelConfig) -> list[Plot]:
    """Price of a million tokens over the time of a token, as requests at once grow, of the first few choices with a
    price (the middle of its range); and the target."""
    wanted, curves = ranking.wanted, []
    for choice in [choice for choice in ranking.choices if choice.usd_per_hour is not None][:DRAWN]:
        bits = weight_bits(choice.weights), kv_bits(choice.kv, config)
        layout = Layout(tensor=choice.tensor)
        server = server_of(config, choice.device, layout, wanted, *bits)
        curves.append(_price_curve(server, choice, wanted))
    if not curves:
        return []
    if math.isfinite(wanted.tpot_seconds):
        prices = [price for curve in curves for price in curve.y]
        curves.append(Curve("target", (wanted.tpot_seconds,) * 2, (min(prices), max(prices))))
    return [
        Plot("gpus.price_of_speed", "Price of speed", "time per token", "s", "price", "USD/Mtoken", tuple(curves),
             True, True)
    ]  # fmt: skip


def _price_curve(server: Server, choice: Choice, wanted: Wanted) -> Curve:
    assert choice.usd_per_hour is not None
    tokens = wanted.traffic.prompt_tokens + wanted.traffic.output_tokens
    per_s = choice.tensor * sum(choice.usd_per_hour) / 2 / 3600 / wanted.busy
    estimates = [server.at(rung) for rung in ladder(max(server.most_safe, 1))]
    points = sorted((each.tpot_seconds, 1e6 * per_s / (each.requests_per_s * tokens)) for each in estimates)
    name = choice.device.id if choice.weights == choice.kv == "bf16" else choice.name
    return Curve(f"{choice.tensor} x {name}", tuple(time for time, _ in points), tuple(price for _, price in points))


def left_out_sentences(left_out: tuple[LeftOut, ...]) -> list[str]:
    """A line for each device that cannot; devices in one format and another with the same reason together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in left_out:
        reasons.setdefault((each.device.id, each.reason), []).append(f"{each.weights}/{each.kv}")
    return [f"{id} ({', '.join(formats)}): {reason}" for (id, reason), formats in reasons.items()]
