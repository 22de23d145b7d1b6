"""The planner's questions of price, handed to the public functions of plan/."""

from __future__ import annotations

from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.device import device, devices
from ..plan.gpu_figures import left_out_sentences, ranking_plots, ranking_quantities, ranking_sentences
from ..plan.gpus import Choice, Ranking, Wanted, rank_gpus
from ..plan.hosting import Api, Hosting, compare
from ..plan.hosting_figures import comparison_plots, comparison_quantities, comparison_sentences
from ..plan.serving import Traffic
from ..plan.slices import slice_of
from .planner_fields import fields
from .planner_form import Answer, InputError, Inputs, Question, names, price_range
from .sections import Section, lines, table


def gpus(inputs: Inputs) -> Answer:
    config: ModelConfig = inputs["model"]
    chosen = [device(id) for id in inputs["device"]] if inputs["device"] else list(devices().values())
    ranking = rank_gpus(config, _wanted(inputs, inputs["busy"]), chosen, _prices(inputs["price"]))
    return Answer(
        tuple(ranking_quantities(ranking)),
        tuple(ranking_plots(ranking, config)),
        tuple(ranking_sentences(ranking, config)),
        tuple(_ranking(ranking)),
        folded=True,
    )


def cost(inputs: Inputs) -> Answer:
    hosting = Hosting(
        wanted=_wanted(inputs, 1.0),
        requests_per_day=inputs["requests_per_day"],
        tensor=inputs["tensor"],
        utilization=inputs["utilization"],
        hours_per_day=inputs["hours_per_day"],
        non_gpu_share=inputs["non_gpu_share"],
        marginal_usd_per_mtoken=inputs["marginal_usd"],
        usd_per_hour=price_range(inputs["usd_per_hour"], "usd_per_hour"),
    )
    api = Api(inputs["api_input_usd"], inputs["api_output_usd"], inputs["api_cached_usd"])
    parts = [slice_of(item) for item in inputs["slice"] or ()]
    found = compare(inputs["model"], device(inputs["device"]), hosting, api, parts)
    return Answer(
        tuple(comparison_quantities(found)),
        tuple(comparison_plots(found)),
        tuple(comparison_sentences(found)),
        symbols={"P": inputs["prompt_tokens"], "O": inputs["output_tokens"]},
    )


def _wanted(inputs: Inputs, busy: float) -> Wanted:
    return Wanted(
        traffic=Traffic(
            inputs["prompt_tokens"], inputs["output_tokens"], inputs["cached_prompt_share"], inputs["length_spread"]
        ),
        ttft_seconds=inputs["ttft"],
        tpot_seconds=inputs["tpot"],
        weights=names(inputs["weights"]),
        kv=names(inputs["kv"]),
        max_devices=max(int(inputs.get("max_devices", 8)), inputs.get("tensor") or 1),
        busy=busy,
        utilization=inputs["memory_utilization"],
    )


def _ranking(ranking: Ranking) -> list[Section]:
    columns = [
        ("device", "text"), ("devices", "count"), ("weights", "text"), ("cache", "text"), ("at once", "count"),
        ("TTFT, ms", "number"), ("TPOT, ms", "number"), ("written/s", "count"), ("USD/Mtoken in+out", "text"),
    ]  # fmt: skip
    sections = [table("ranking", "Cheapest first", columns, map(_row, ranking.choices), wide=True)]
    if ranking.left_out:
        sections.append(lines("left-out", "Left out", left_out_sentences(ranking.left_out), sentences=True))
    return sections


def _row(choice: Choice) -> tuple[Any, ...]:
    found, price = choice.estimate, "no price"
    if choice.prices is not None:
        low, high = (f"{prices.blended:.3g}" for prices in choice.prices)
        price = low if low == high else f"{low} to {high}"
    times = round(1000 * found.ttft_seconds, 1), round(1000 * found.tpot_seconds, 2)
    head = choice.device.id, choice.tensor, choice.weights, choice.kv, found.concurrency
    return *head, *times, found.tokens_per_s, price


def _prices(items: tuple[str, ...] | None) -> dict[str, tuple[float, float]]:
    found = {}
    for item in items or ():
        id, equals, pair = item.partition("=")
        if not equals:
            raise InputError("price", f"price {item}: expected ID=LOW,HIGH")
        try:
            known = device(id).id
        except GristmillError as error:
            raise InputError("price", str(error)) from None
        if (prices := price_range(pair, "price")) is not None:
            found[known] = prices
    return found


TRAFFIC = fields("prompt_tokens", "output_tokens", prompt_tokens=1024) + fields("slo_ttft", "slo_tpot")

COST = (
    Question(
        "gpus", "Devices", "Every known device that serves a model at a service level, by the price of a million "
        "tokens; and why the others cannot.",
        (*fields("model"), *TRAFFIC, *fields("formats", "caches", "busy")), gpus,
        more=fields("set", "max_devices", "only_device", "price", "cached_prompt_share", "length_spread",
                    "memory_utilization"),
    ),
    Question(
        "cost", "Cost", "Own devices against an API: cost of a month and of a million tokens, break-even, savings "
        "slice by slice.",
        (*fields("model", "device", "requests_per_day", "api_input_usd", "api_output_usd"), *TRAFFIC,
         *fields("utilization", "slice")),
        cost,
        more=fields("set", "api_cached_usd", "one_format", "one_cache", "cheapest_tensor", "usd_per_hour",
                    "hours_per_day", "non_gpu_share", "marginal_usd", "cached_prompt_share", "length_spread",
                    "memory_utilization"),
    ),
)  # fmt: skip
