"""`gristmill plan fleet`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import GristmillError
from .plan_output import AsJson, Overrides, Target, model_of, print_answer


def fleet(
    target: Target,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option("--device", help="h100-sxm, h200, a100-80gb-sxm, l4, ... or here.")
    ] = "h100-sxm",
    tensor: Annotated[int, typer.Option("--tensor", help="Devices of a replica that share each layer.")] = 1,
    weights: Annotated[str, typer.Option("--weights", help="fp32, bf16, fp8, int8, int4, nf4.")] = "bf16",
    kv: Annotated[str | None, typer.Option("--kv", help="Keys and values: fp32, bf16, fp8, int8 (bf16).")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="A .csv or .jsonl of arrival_seconds, prompt_tokens, output_tokens.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Requests a second, without a trace.")] = 10.0,
    requests: Annotated[int, typer.Option("--requests", help="Requests that are simulated, without a trace.")] = 2000,
    process: Annotated[str, typer.Option("--process", help="poisson, constant, bursts or diurnal.")] = "poisson",
    day_seconds: Annotated[float, typer.Option("--day-seconds", help="Length of a day, of diurnal.")] = 86_400.0,
    prompt_tokens: Annotated[float, typer.Option("--prompt-tokens", help="Tokens of a prompt, mean.")] = 512,
    output_tokens: Annotated[float, typer.Option("--output-tokens", help="Tokens of a reply, mean.")] = 256,
    length_spread: Annotated[
        float, typer.Option("--length-spread", help="Standard deviation of lengths over their mean.")
    ] = 1.0,
    prefix_tokens: Annotated[
        int, typer.Option("--prefix-tokens", help="Tokens of a common beginning, before a prompt.")
    ] = 0,
    prefix_share: Annotated[float, typer.Option("--prefix-share", help="Share of requests that have one.")] = 1.0,
    prefix_groups: Annotated[int, typer.Option("--prefix-groups", help="How many different ones there are.")] = 1,
    ttft: Annotated[float | None, typer.Option("--ttft", help="Objective, seconds to the first token.")] = None,
    tpot: Annotated[float | None, typer.Option("--tpot", help="Objective, seconds a token.")] = None,
    percentile: Annotated[float, typer.Option("--percentile", help="Of the requests that must keep it.")] = 99.0,
    replicas: Annotated[int | None, typer.Option("--replicas", help="As many, instead of the fewest.")] = None,
    router: Annotated[str, typer.Option("--router", help="least-loaded, round-robin or prefix.")] = "least-loaded",
    overhead: Annotated[float, typer.Option("--overhead", help="Seconds before a request reaches a replica.")] = 0.0,
    autoscale: Annotated[
        float | None, typer.Option("--autoscale", help="Also with as many replicas as have so many requests each.")
    ] = None,
    least: Annotated[int, typer.Option("--least", help="Fewest replicas of autoscaling; 0 scales to zero.")] = 1,
    most: Annotated[int, typer.Option("--most", help="Most replicas of autoscaling.")] = 64,
    look: Annotated[float, typer.Option("--look", help="Seconds between two looks of autoscaling.")] = 15.0,
    cooldown: Annotated[float, typer.Option("--cooldown", help="Seconds before a replica is let go.")] = 300.0,
    start: Annotated[
        float | None, typer.Option("--start", help="Seconds a replica takes to start; 5 and reading weights at 5 GB/s.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Requests at once in a replica.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", help="Most tokens of a step.")
    ] = 8192,
    seed: Annotated[int, typer.Option("--seed", help="Of the arrivals.")] = 0,
    plots: Annotated[bool, typer.Option("--plots", help="Draw plots too.")] = False,
    as_json: AsJson = False,
) -> None:
    """How many devices some traffic takes at a service level: the engine's own scheduler on modelled devices.

    Example: gristmill plan fleet llama-3-8b --rate 40 --ttft 0.5 --tpot 0.05 --autoscale 48
    """
    from ..capacity.answer import Fleet, plan_fleet, start_seconds
    from ..capacity.fleet import Autoscaling
    from ..capacity.report import Objective
    from ..capacity.traffic import Lengths, Traffic, drawn, read_trace
    from ..plan.ceilings import known_efficiency
    from ..plan.device import device as known_device
    from ..plan.layouts import Layout

    source, config, _ = model_of(target, overrides)
    on = known_device(device)
    if trace is not None:
        arrivals = read_trace(trace)
    else:
        room = config.max_seq_len - 1
        longest = max(room // 2, 1)
        arrivals = drawn(
            Traffic(
                rate, requests, Lengths(prompt_tokens, length_spread, max(longest - prefix_tokens, 1)),
                Lengths(output_tokens, length_spread, longest), process,  # type: ignore[arg-type]
                day_seconds, prefix_share if prefix_tokens else 0.0, prefix_tokens, prefix_groups,
            ),
            seed,
        )  # fmt: skip
    layout, scaling = Layout(tensor=tensor), None
    if autoscale is not None:
        takes = start_seconds(config, weights, layout) if start is None else start
        scaling = Autoscaling(autoscale, least, most, look, takes, cooldown)
        scaling.check()
    asked = Fleet(
        objective=Objective(math.inf if ttft is None else ttft, math.inf if tpot is None else tpot),
        percent=percentile,
        replicas=replicas,
        router=router,  # type: ignore[arg-type]
        overhead_seconds=overhead,
        autoscaling=scaling,
        weights=weights,
        kv=kv or ("fp32" if weights == "fp32" else "bf16"),
        layout=layout,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        efficiency=known_efficiency(on),
    )
    if replicas is None and ttft is None and tpot is None:
        raise GristmillError("give an objective (--ttft, --tpot), or a number of --replicas to look at")
    answer = plan_fleet(config, on, arrivals, asked)
    settings = asdict(asked) | {
        "device": device, "trace": None if trace is None else str(trace), "requests": len(arrivals), "seed": seed,
        "objective": {"ttft": ttft, "tpot": tpot},
    }  # fmt: skip
    head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
    title = f"{source} on {on.name} ({on.label}), weights {weights}, cache {asked.kv}: {len(arrivals):,} requests"
    meaning = (
        f"objective of {percentile:g} % of the requests: first token {_limit(ttft)}, each further one {_limit(tpot)}"
    )
    drawn_plots = answer.plots if plots or as_json else []
    print_answer(head, title, meaning, answer.quantities, as_json, answer.sentences, drawn_plots)


def _limit(seconds: float | None) -> str:
    return "at any time" if seconds is None else f"within {seconds:g} s"
