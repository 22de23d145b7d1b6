"""`gristmill bench`: what this machine reaches, beside the tools that are installed for comparison."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks: what this machine reaches.")


@bench_app.callback()
def bench() -> None:
    """Benchmarks: what this machine reaches, beside the tools that are installed for comparison."""


@bench_app.command()
def data(
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="DIR", help="Where text and pages lie; repeatable.")
    ] = None,
    megabytes: Annotated[float, typer.Option("--megabytes", min=1, help="How much text to measure on.")] = 50,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes of the data stages.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the data stages on real text: rules, deduplication, the whole chain, web pages; memory; other tools.

    Example: gristmill bench data --megabytes 20
    """
    from ..bench.data import bench_data, table

    report = bench_data(text or [], megabytes, workers, say=lambda line: typer.echo(line, err=True))
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report))


@bench_app.command()
def tokenizers(
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="A directory with text, or a JSONL file; repeatable."),
    ] = None,
    megabytes: Annotated[float, typer.Option("--megabytes", min=0.1, help="How much text to measure on.")] = 20,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=256, help="Size of the vocabularies.")] = 32_768,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, beside runs with one.")] = 2,
    encode_megabytes: Annotated[
        float | None, typer.Option("--encode-megabytes", min=0.1, help="How much of it to encode; default all.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="TOOL", help="Another tool to leave out; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time training, encoding and packing on real text beside tokenizers, tiktoken, rustbpe and sentencepiece.

    Example: gristmill bench tokenizers --megabytes 10 --vocab-size 8192
    """
    from ..bench.tokenizers import bench_tokenizers, table

    said = partial(typer.echo, err=True)
    left_out = tuple(without or ())
    report = bench_tokenizers(text or [], megabytes, vocab_size, workers, encode_megabytes, left_out, said)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report))


@bench_app.command()
def model(
    shape: Annotated[str, typer.Argument(help="A model shape by name, see `gristmill plan model`.")] = "smollm2-135m",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences in a pass.")] = 1,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a sequence.")] = 512,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compiled", help="Measure with torch.compile as well.")] = False,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes; the median counts.")] = 10,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Blocks, if fewer than the shape's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time forward and backward passes of the decoder beside transformers and litgpt, where they are installed.

    Example: gristmill bench model smollm2-135m --batch 1 --length 256
    """
    from ..bench.model import bench_model, table

    said = partial(typer.echo, err=True)
    report = bench_model(shape, batch, length, device, dtype, compiled, repeats, layers, said)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report))


@bench_app.command()
def train(
    shape: Annotated[
        str, typer.Option("--shape", help="135m, d12, 1.2b, quickstart, or a preset (`gristmill plan model`).")
    ] = "quickstart",
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="TOOL", help="transformers or litgpt; repeatable.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Sequences in a step; the shape's usual.")] = None,
    length: Annotated[int | None, typer.Option("--length", min=2, help="Tokens of a sequence.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, bf16, fp16 or fp8 (ours alone).")] = "auto",
    weights: Annotated[
        str, typer.Option("--weights", help="fp32, bf16, or auto: bf16 on a GPU whose products are, as peers publish.")
    ] = "auto",
    steps: Annotated[int, typer.Option("--steps", min=10, help="Optimizer steps a round, five of warm-up.")] = 30,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds by turns; the best counts.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    compile: Annotated[str, typer.Option("--compile", help="Ours: auto, off, blocks or model.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the training loop beside transformers and litgpt in plain, good loops: tokens/s, MFU, memory.

    Example: gristmill bench train --shape quickstart --peer transformers --rounds 3
    """
    from ..bench.train import bench_train, table

    said = partial(typer.echo, err=True)
    report = bench_train(shape, peer or [], batch, length, precision, weights, steps, rounds, device, compile, said)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report))


@bench_app.command()
def serve(
    workload: Annotated[
        list[str],
        typer.Option(
            "--workload", help="w1, b1, b8, b32, prefill, prefix, interleave, copy, long, idle or ready; repeatable."
        ),
    ],
    shape: Annotated[
        str | None, typer.Option("--shape", help="A preset, or llama-8b, with random weights and random ids.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", metavar="PATH", help="A model or run instead.")] = None,
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="Requests, if not the workload's.")] = None,
    scale: Annotated[float, typer.Option("--scale", min=0.001, help="Lengths in tokens are multiplied by it.")] = 1.0,
    batching: Annotated[
        list[str] | None, typer.Option("--batching", help="continuous, static or naive; repeatable.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="TOOL", help="vllm, transformers or llama.cpp; repeatable.")
    ] = None,
    peer_python: Annotated[
        str | None, typer.Option("--peer-python", metavar="PYTHON", help="A Python that has peers; else this one.")
    ] = None,
    draft_model: Annotated[
        Path | None, typer.Option("--draft-model", metavar="MODEL", help="A smaller model that guesses, for copy.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; the best counts, the first warms up.")] = 2,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, help="Sequences at the same time, on all sides.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the engine under a workload: tokens/s, latencies, memory; other ways of batching, other engines.

    Example: gristmill bench serve --shape smollm2-135m --workload w1 --requests 16 --scale 0.1 --peer transformers
    """
    from ..bench.serve import bench_serve, table

    report = bench_serve(
        workload,
        shape=shape,
        model=model,
        requests=requests,
        scale=scale,
        rounds=rounds,
        batching=batching or [],
        peers=peer or [],
        device=device,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        peer_python=peer_python,
        draft_model=draft_model,
        say=partial(typer.echo, err=True),
    )
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report))
