"""`gristmill plan roofline` and `gristmill plan serve`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import typer

from .plan_output import AsJson, Overrides, Target, model_of, print_answer

Plots = Annotated[bool, typer.Option("--plots", help="Draw the other plots too.")]
DeviceName = Annotated[str, typer.Option("--device", help="h100-sxm, h200, l4, ...; here: this machine, calibrated.")]


def roofline(
    target: Target,
    overrides: Overrides = None,
    device: DeviceName = "h100-sxm",
    dtype: Annotated[str, typer.Option("--dtype", help="Weights: fp32, bf16, fp8, int8, int4, nf4.")] = "bf16",
    kv: Annotated[str | None, typer.Option("--kv", help="Keys and values: fp32, bf16, fp8, int8.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Sequences that decode at once.")] = 32,
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", help="Tokens of a prompt, or behind a decoding sequence (2,048).")
    ] = None,
    plots: Plots = False,
    as_json: AsJson = False,
) -> None:
    """Ridge, arithmetic intensity and least times of a model's prefill and decoding on a device.

    Example: gristmill plan roofline llama-3-8b --device h200 --batch 64 --seq-len 8192
    """
    from ..plan.device import device as known_device
    from ..plan.roofline_model import ModelRoofline, plan_roofline, roofline_plots, roofline_sentences
    from ..plan.serve_memory import kv_bits, weight_bits

    source, config, _ = model_of(target, overrides)
    on = known_device(device)
    length = min(2048, config.max_seq_len) if seq_len is None else seq_len
    stored = kv or ("fp32" if dtype == "fp32" else "bf16")
    model = ModelRoofline(config, on, weight_bits(dtype), kv_bits(stored, config))
    quantities = plan_roofline(model, batch, length)
    settings = {"device": device, "dtype": dtype, "kv": stored, "batch": batch, "seq_len": length}
    head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
    weights, cache = model.weight_bytes(batch), model.kv_bytes(length)
    meaning = (
        f"B={batch} s={length} N={model.matrices} (in matrices) W={weights:.0f} B read KV={cache:.0f} B a sequence"
    )
    title = f"{source} on {on.id} ({on.label}): weights {dtype}, cache {stored}"
    drawn = roofline_plots(model, batch, length)
    if not (plots or as_json):
        drawn = drawn[:1]
    print_answer(head, title, meaning, quantities, as_json, roofline_sentences(model, length), drawn)


def serve(
    target: Target,
    overrides: Overrides = None,
    device: DeviceName = "h100-sxm",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Tokens of a prompt, mean.")] = 512,
    output_tokens: Annotated[int, typer.Option("--output-tokens", help="Tokens of a reply, mean.")] = 256,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Requests at once; the best one.")] = None,
    weights: Annotated[str, typer.Option("--weights", help="fp32, bf16, fp8, int8, int4, nf4.")] = "bf16",
    kv: Annotated[str | None, typer.Option("--kv", help="Keys and values: fp32, bf16, fp8, int8 (bf16).")] = None,
    tensor: Annotated[int, typer.Option("--tensor", help="Devices that share each layer.")] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline", help="Stages of layers.")] = 1,
    data: Annotated[int, typer.Option("--data", help="Replicas.")] = 1,
    expert: Annotated[int, typer.Option("--expert", help="Devices that share a layer's experts.")] = 1,
    cached_prompt_share: Annotated[
        float, typer.Option("--cached-prompt-share", help="Share of a prompt that begins like others.")
    ] = 0.0,
    length_spread: Annotated[
        float, typer.Option("--length-spread", help="Standard deviation of lengths over their mean.")
    ] = 1.0,
    step_tokens: Annotated[
        int | None, typer.Option("--step-tokens", help="Most tokens of a step (8,192; on a CPU 2,048).")
    ] = None,
    ttft: Annotated[float | None, typer.Option("--ttft", help="Target, seconds to the first token.")] = None,
    tpot: Annotated[float | None, typer.Option("--tpot", help="Target, seconds a token.")] = None,
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", help="Tokens guessed ahead a step.")] = 4,
    acceptance: Annotated[float, typer.Option("--acceptance", help="Share of guesses that are right.")] = 0.7,
    draft_cost: Annotated[float, typer.Option("--draft-cost", help="Of a guess, in steps of the model.")] = 0.0,
    memory_utilization: Annotated[
        float | None, typer.Option("--memory-utilization", help="Share of the free memory that the cache takes (0.9).")
    ] = None,
    read: Annotated[float, typer.Option("--read", help="Bytes/s at which weights are read from disk.")] = 5e9,
    plots: Plots = False,
    as_json: AsJson = False,
) -> None:
    """Memory, sequences at once, time to first token, time per token and throughput of a server, and what would change
    them: prefix caching, chunked prefill, quantization, guessing ahead.

    Example: gristmill plan serve llama-3-8b --device h100-sxm --weights int4 --kv fp8 --concurrency 64
    """
    from ..plan.ceilings import known_efficiency
    from ..plan.device import device as known_device
    from ..plan.layouts import Layout
    from ..plan.serve import Serving, Speculation, Traffic, plan_serve, serving_plots, serving_sentences
    from ..plan.serve_memory import CPU_STEP_TOKENS, STEP_TOKENS
    from ..plan.step_time import is_processor

    source, config, _ = model_of(target, overrides)
    on = known_device(device)
    processor = is_processor(on)
    most = (CPU_STEP_TOKENS if processor else STEP_TOKENS) if step_tokens is None else step_tokens
    serving = Serving(
        traffic=Traffic(prompt_tokens, output_tokens, cached_prompt_share, length_spread, most, int(not processor)),
        concurrency=concurrency,
        weights=weights,
        kv=kv,
        layout=Layout(tensor, pipeline, data, expert),
        ttft_seconds=math.inf if ttft is None else ttft,
        tpot_seconds=math.inf if tpot is None else tpot,
        speculation=Speculation(draft_tokens, acceptance, draft_cost),
        utilization=memory_utilization,
        read_bytes_per_s=read,
        efficiency=known_efficiency(on),
    )
    quantities = plan_serve(config, on, serving)
    settings = asdict(serving) | {"device": device, "ttft_seconds": ttft, "tpot_seconds": tpot, "kv": serving.kv_type}
    head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
    layout = serving.layout
    meaning = f"n requests at once, O={output_tokens} tokens of a reply, t={tensor} p={pipeline}: devices that share"
    title = (
        f"{source} on {layout.devices} x {on.id} ({on.label}): weights {weights}, cache {serving.kv_type}, "
        f"{prompt_tokens:,} in, {output_tokens:,} out"
    )
    sentences = serving_sentences(config, on, serving)
    drawn = serving_plots(config, on, serving) if plots or as_json else []
    print_answer(head, title, meaning, quantities, as_json, sentences, drawn)
