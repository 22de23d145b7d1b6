"""`gristmill plan gpus` and `gristmill plan cost`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import GristmillError
from .plan_output import AsJson, Overrides, Target, model_of, print_answer, print_sentences

if TYPE_CHECKING:
    from ..plan.gpus import Choice, Ranking, Wanted

Ttft = Annotated[float, typer.Option("--ttft", help="Most seconds to the first token, mean; inf for none.")]
Tpot = Annotated[float, typer.Option("--tpot", help="Most seconds a token after it, mean; inf for none.")]
PromptTokens = Annotated[int, typer.Option("--prompt-tokens", help="Tokens of a prompt, mean.")]
OutputTokens = Annotated[int, typer.Option("--output-tokens", help="Tokens of a reply, mean.")]
Cached = Annotated[float, typer.Option("--cached-prompt-share", help="Share of a prompt that begins like others.")]
Spread = Annotated[float, typer.Option("--length-spread", help="Standard deviation of lengths over their mean.")]
MostDevices = Annotated[int, typer.Option("--max-devices", help="Most devices that share a replica: 1, 2, 4 or 8.")]
CacheShare = Annotated[
    float, typer.Option("--memory-utilization", help="Share of the free memory that the cache takes.")
]
Plots = Annotated[bool, typer.Option("--plots", help="Draw the plot too.")]


def gpus(
    target: Target,
    overrides: Overrides = None,
    ttft: Ttft = 0.5,
    tpot: Tpot = 0.05,
    prompt_tokens: PromptTokens = 1024,
    output_tokens: OutputTokens = 256,
    weights: Annotated[str, typer.Option("--weights", help="Formats to try: bf16,fp8,int8,int4,nf4 ...")] = "bf16",
    kv: Annotated[str, typer.Option("--kv", help="Types of keys and values to try: bf16,fp8,int8.")] = "bf16",
    max_devices: MostDevices = 8,
    device: Annotated[list[str] | None, typer.Option("--device", help="Only this one; repeatable.")] = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", metavar="ID=LOW,HIGH", help="USD an hour of a device; repeatable.")
    ] = None,
    busy: Annotated[float, typer.Option("--busy", help="Share of the hours paid for with this traffic.")] = 1.0,
    cached_prompt_share: Cached = 0.0,
    length_spread: Spread = 1.0,
    memory_utilization: CacheShare = 0.9,
    plots: Plots = False,
    as_json: AsJson = False,
) -> None:
    """Every known device that serves a model at a service level, by the price of a million tokens; and why the others
    cannot.

    Example: gristmill plan gpus llama-3-8b --ttft 0.5 --tpot 0.05 --weights bf16,int4 --kv fp8
    """
    from ..plan.device import device as known_device
    from ..plan.device import devices
    from ..plan.gpu_figures import left_out_sentences, ranking_plots, ranking_quantities, ranking_sentences
    from ..plan.gpus import Wanted, rank_gpus
    from ..plan.serving import Traffic

    source, config, _ = model_of(target, overrides)
    wanted = Wanted(
        traffic=Traffic(prompt_tokens, output_tokens, cached_prompt_share, length_spread),
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        weights=_names(weights),
        kv=_names(kv),
        max_devices=max_devices,
        busy=busy,
        utilization=memory_utilization,
    )
    chosen = [known_device(id) for id in dict.fromkeys(device)] if device else list(devices().values())
    prices = {}
    for item in price or []:
        id, equals, pair = item.partition("=")
        if not equals:
            raise GristmillError(f"--price {item}: expected ID=LOW,HIGH")
        prices[known_device(id.strip()).id] = _pair(pair, f"--price {item}")
    ranking = rank_gpus(config, wanted, chosen, prices)
    sentences = ranking_sentences(ranking, config)
    title = f"{source}: {_traffic_words(prompt_tokens, output_tokens)}, {_target_words(ttft, tpot)}"
    drawn = ranking_plots(ranking, config) if plots or as_json else []
    if as_json:
        head = {
            "model": target, "source": source, "settings": _settings(wanted),
            "ranking": [choice.as_json() for choice in ranking.choices],
            "left_out": [each.as_json() for each in ranking.left_out],
        }  # fmt: skip
        print_answer(head, title, "", ranking_quantities(ranking), True, sentences, drawn)
        return
    _print_ranking(title, ranking)
    if ranking.left_out:
        typer.echo("\nleft out")
        print_sentences(left_out_sentences(ranking.left_out))
    if drawn:
        from .text_plot import print_plot

        for plot in drawn:
            print_plot(plot)
    print_sentences(sentences)


def cost(
    target: Target,
    requests_per_day: Annotated[float, typer.Option("--requests-per-day", help="Requests of a day, mean.")],
    api_input_usd: Annotated[float, typer.Option("--api-input-usd", help="An API's price, a million prompt tokens.")],
    api_output_usd: Annotated[float, typer.Option("--api-output-usd", help="The same, a million tokens of replies.")],
    overrides: Overrides = None,
    device: Annotated[str, typer.Option("--device", help="h100-sxm, h200, l4, rtx-4090, ... or here.")] = "h100-sxm",
    prompt_tokens: PromptTokens = 1024,
    output_tokens: OutputTokens = 256,
    api_cached_usd: Annotated[
        float | None, typer.Option("--api-cached-usd", help="The same, cached prompt tokens (as others).")
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="NAME:SHARE[:SAVING=-50%,...]",
            help="A part of the traffic and the API's discounts that hold for it (-30%, or x0.7); repeatable.",
        ),
    ] = None,
    slices_file: Annotated[
        Path | None, typer.Option("--slices", help="YAML or JSON: a list of {name, share, savings: {batch: -50%}}.")
    ] = None,
    ttft: Ttft = 0.5,
    tpot: Tpot = 0.05,
    weights: Annotated[str, typer.Option("--weights", help="bf16, fp8, int8, int4, nf4, ...")] = "bf16",
    kv: Annotated[str, typer.Option("--kv", help="Keys and values: bf16, fp8, int8.")] = "bf16",
    tensor: Annotated[
        int | None, typer.Option("--tensor", help="Devices that share a replica; the cheapest number.")
    ] = None,
    usd_per_hour: Annotated[
        str | None, typer.Option("--usd-per-hour", metavar="LOW,HIGH", help="Of one device; the known price.")
    ] = None,
    utilization: Annotated[
        float, typer.Option("--utilization", help="Mean load of a replica over its most; the rest is for peaks.")
    ] = 0.5,
    hours_per_day: Annotated[
        float, typer.Option("--hours-per-day", help="Hours that devices run and are paid for (scale to zero).")
    ] = 24.0,
    non_gpu_share: Annotated[
        float, typer.Option("--non-gpu-share", help="Share of the whole own cost that is not devices.")
    ] = 0.0,
    marginal_usd: Annotated[
        float, typer.Option("--marginal-usd", help="What a million own tokens cost beside the hours (power).")
    ] = 0.0,
    cached_prompt_share: Cached = 0.0,
    length_spread: Spread = 1.0,
    memory_utilization: CacheShare = 0.9,
    plots: Plots = False,
    as_json: AsJson = False,
) -> None:
    """Own devices against an API: cost of a month and of a million tokens, break-even, savings slice by slice.

    Example: gristmill plan cost llama-3-8b --requests-per-day 200000 --api-input-usd 0.2 --api-output-usd 0.6
    --slice chat:60%:cache=-30% --slice bulk:40%:batch=-50%
    """
    from dataclasses import replace

    from ..plan.device import device as known_device
    from ..plan.gpus import Wanted
    from ..plan.hosting import Api, Hosting, compare
    from ..plan.hosting_figures import comparison_plots, comparison_quantities, comparison_sentences
    from ..plan.serving import Traffic
    from ..plan.slices import slice_of, slices_of_file

    source, config, _ = model_of(target, overrides)
    wanted = Wanted(
        traffic=Traffic(prompt_tokens, output_tokens, cached_prompt_share, length_spread),
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        weights=(weights,),
        kv=(kv,),
        utilization=memory_utilization,
    )
    hosting = Hosting(
        wanted=replace(wanted, max_devices=max(tensor or 8, 8)),
        requests_per_day=requests_per_day,
        tensor=tensor,
        utilization=utilization,
        hours_per_day=hours_per_day,
        non_gpu_share=non_gpu_share,
        marginal_usd_per_mtoken=marginal_usd,
        usd_per_hour=None if usd_per_hour is None else _pair(usd_per_hour, f"--usd-per-hour {usd_per_hour}"),
    )
    parts = [slice_of(item) for item in slices or []] + ([] if slices_file is None else slices_of_file(slices_file))
    found = compare(config, known_device(device), hosting, Api(api_input_usd, api_output_usd, api_cached_usd), parts)
    choice = found.choice
    title = (
        f"{source} on {found.devices} x {choice.device.name}, weights {weights}, cache {kv}: {requests_per_day:,.10g} "
        f"requests a day, {_traffic_words(prompt_tokens, output_tokens)}, {_target_words(ttft, tpot)}"
    )
    settings = _settings(wanted) | {
        "device": device, "tensor": tensor, "requests_per_day": requests_per_day, "utilization": utilization,
        "hours_per_day": hours_per_day, "non_gpu_share": non_gpu_share, "marginal_usd": marginal_usd,
    }  # fmt: skip
    head: dict[str, Any] = {"model": target, "source": source, "settings": settings, "choice": choice.as_json()}
    print_answer(
        head, title, "P tokens of a prompt, O of a reply; a month is 365 / 12 days",
        comparison_quantities(found), as_json, comparison_sentences(found),
        comparison_plots(found) if plots or as_json else [],
    )  # fmt: skip


def _print_ranking(title: str, ranking: Ranking) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(title, soft_wrap=True)
    if not ranking.choices:
        return
    formats = len(ranking.wanted.weights) * len(ranking.wanted.kv) > 1
    table = Table(box=None, pad_edge=False)
    # Tokens are those written; a price is for prompts and replies together.
    last = ("at once", "TTFT", "TPOT", "written/s", "USD/Mtoken in+out")
    for name in ("device", "n", *(["format"] if formats else []), *last):
        table.add_column(name, justify="left" if name in ("device", "format") else "right", no_wrap=True)
    for choice in ranking.choices:
        found = choice.estimate
        row = [choice.device.id, str(choice.tensor), f"{choice.weights}/{choice.kv}"]
        row += [f"{found.concurrency:,}", f"{found.ttft_seconds * 1e3:,.0f} ms", f"{found.tpot_seconds * 1e3:,.1f} ms"]
        row += [f"{found.tokens_per_s:,.0f}", _price_words(choice)]
        table.add_row(*(cell for place, cell in enumerate(row) if formats or place != 2))
    console.print(table)


def _price_words(choice: Choice) -> str:
    if choice.prices is None:
        return "no price"
    low, high = (f"{price.blended:.3g}" for price in choice.prices)
    return low if low == high else f"{low} to {high}"


def _traffic_words(prompt_tokens: int, output_tokens: int) -> str:
    return f"{prompt_tokens:,} tokens in, {output_tokens:,} out"


def _target_words(ttft: float, tpot: float) -> str:
    words = [f"TTFT {ttft:g} s"] if math.isfinite(ttft) else []
    words += [f"TPOT {tpot:g} s"] if math.isfinite(tpot) else []
    return ", ".join(words) or "no targets"


def _settings(wanted: Wanted) -> dict[str, Any]:
    """As JSON has them: a target that there is not is null."""
    from dataclasses import asdict

    targets = ("ttft_seconds", "tpot_seconds")
    return asdict(wanted) | {name: None for name in targets if math.isinf(getattr(wanted, name))}


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _pair(text: str, what: str) -> tuple[float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise GristmillError(f"{what}: expected LOW,HIGH in numbers") from None
    if len(numbers) not in (1, 2):
        raise GristmillError(f"{what}: expected LOW,HIGH")
    return numbers[0], numbers[-1]
