"""`gristmill plan`: what a model costs, before it is built."""

from __future__ import annotations

from typing import Annotated

import typer

from .plan_calibrate import calibrate
from .plan_cost import cost, gpus
from .plan_fleet import fleet
from .plan_guide import guide
from .plan_layout import layout
from .plan_memory import memory
from .plan_options import SequenceLength
from .plan_output import AsJson, Overrides, Target, print_answer
from .plan_serving import roofline, serve
from .plan_train import train
from .shapes import any_shape_of, override, source_of

plan_app = typer.Typer(no_args_is_help=True, help="Planner: what a model costs, from its shape alone.")


@plan_app.callback()
def plan() -> None:
    """Planner: what a model costs, from its shape alone, each figure with its formula."""


@plan_app.command()
def model(
    target: Target,
    overrides: Overrides = None,
    seq_len: SequenceLength = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Type of weights and cache: fp32, bf16, fp8, int4, ...")] = (
        "bf16"
    ),
    as_json: AsJson = False,
) -> None:
    """Parameters by part, bytes, FLOPs per token and cache of a model.

    Presets: gristmill-5m ... gristmill-70b, gpt2-124m, llama-3-8b, deepseek-v3 and others; an unknown name lists them.

    Example: gristmill plan model llama-3-8b --seq-len 32768 --set num_kv_heads=4
    """
    from ..plan.model import plan_model
    from ..plan.parameters import symbols

    source = source_of(target)
    config = override(any_shape_of(source), overrides or [])
    length = config.max_seq_len if seq_len is None else seq_len
    quantities = plan_model(config, length, dtype)
    head = {
        "model": target,
        "source": source,
        "seq_len": length,
        "dtype": dtype,
        "config": config.model_dump(mode="json"),
    }
    meaning = " ".join(f"{symbol}={value}" for symbol, value in symbols(config).items())
    print_answer(head, f"{source}: {length:,} tokens, {dtype}", meaning, quantities, as_json)


plan_app.command()(memory)
plan_app.command()(train)
plan_app.command()(layout)
plan_app.command()(roofline)
plan_app.command()(serve)
plan_app.command()(fleet)
plan_app.command()(calibrate)
plan_app.command()(cost)
plan_app.command()(gpus)
plan_app.command()(guide)
