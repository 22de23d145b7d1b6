"""`gristmill plan layout`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .plan_options import OptimizerName, Precision, TrainedLength, Weights
from .plan_output import AsJson, Overrides, Target, model_of, print_sentences
from .plan_settings import training_settings

if TYPE_CHECKING:
    from ..plan.layout_choice import LayoutAnswer


def layout(
    target: Target,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option("--device", help="h100-sxm, h200, a100-80gb-sxm, l4, ... or here.")
    ] = "h100-sxm",
    devices: Annotated[int, typer.Option("--devices", help="How many there are; all are used.")] = 8,
    seq_len: TrainedLength = None,
    global_batch_tokens: Annotated[
        int | None,
        typer.Option("--global-batch-tokens", help="Tokens of a step over all devices; the recipe's, or 4 Mi."),
    ] = None,
    devices_per_node: Annotated[
        int | None, typer.Option("--devices-per-node", help="The device's usual number.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of its peak that a device reaches while it computes; measured.")
    ] = None,
    precision: Precision = None,
    weights: Weights = None,
    optimizer: OptimizerName = None,
    tensor: Annotated[int | None, typer.Option("--tensor", help="Only layouts with this tensor parallelism.")] = None,
    pipeline: Annotated[int | None, typer.Option("--pipeline", help="Only with this many stages.")] = None,
    data: Annotated[int | None, typer.Option("--data", help="Only with this many replicas.")] = None,
    expert: Annotated[int | None, typer.Option("--expert", help="Only with experts shared by so many.")] = None,
    zero: Annotated[int | None, typer.Option("--zero", help="Only with this stage of ZeRO, 0 to 3.")] = None,
    as_json: AsJson = False,
) -> None:
    """How to spread training over devices: layouts by the time of a step, why the first wins, what rules out others.

    Example: gristmill plan layout llama-3-70b --device h100-sxm --devices 64 --seq-len 8192
    """
    from ..plan.layout_choice import choose_layout

    source, config, base = model_of(target, overrides)
    flags = {"precision": precision, "weights": weights, "optimizer": optimizer, "device": "cuda"}
    arithmetic, run = training_settings(config, base, seq_len, flags | {"compile": None})
    if global_batch_tokens is None and base is not None:
        global_batch_tokens = base.training.batch_size * run.sequence_length
    sizes = {"tensor": tensor, "pipeline": pipeline, "data": data, "expert": expert, "zero": zero}
    answer = choose_layout(
        config,
        device,
        devices,
        sequence_length=run.sequence_length,
        batch_tokens=global_batch_tokens,
        arithmetic=arithmetic,
        optimizer=run.optimizer,
        utilization=mfu,
        devices_per_node=devices_per_node,
        fixed={name: size for name, size in sizes.items() if size is not None},
    )
    if as_json:
        settings = {"device": device, "devices": devices, "sequence_length": run.sequence_length}
        settings |= {"batch_tokens": answer.batch_tokens, "optimizer": run.optimizer}
        head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
        typer.echo(json.dumps(head | answer.as_json(), indent=2))
        return
    length = run.sequence_length
    typer.echo(f"{source} on {devices} x {device}: steps of {answer.batch_tokens:,} tokens, sequences of {length:,}")
    _print_choices(answer)
    print_sentences([*answer.reasons, *(rule.sentence() for rule in answer.excluded)])


def _print_choices(answer: LayoutAnswer) -> None:
    """Two lines each: the figures of its step, and how it is run."""
    from rich.console import Console
    from rich.text import Text

    from ..plan.quantity import in_bytes

    console = Console(highlight=False)
    width = max(len(choice.name()) for choice in answer.choices)
    console.print(
        f"   {'layout':<{width}}  {'step':>9}  {'MFU':>6}  {'bubble':>6}  {'exposed traffic':>15}", soft_wrap=True
    )
    for number, choice in enumerate(answer.choices, 1):
        step = choice.step
        shares = f"{step.bubble_seconds / step.seconds:>6.1%}  {step.exposed_seconds / step.seconds:>15.1%}"
        line = f"{number}  {choice.name():<{width}}  {step.seconds:>7.4g} s  {step.utilization:>6.1%}  {shares}"
        console.print(line, soft_wrap=True)
        more = f"   {in_bytes(choice.memory_bytes)} a device; {choice.settings()}"
        console.print(Text(more, "dim"), soft_wrap=True)
