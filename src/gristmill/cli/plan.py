"""`gristmill plan`: what a model costs, before it is built."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .plan_settings import recipe_base, training_settings
from .shapes import override, shape_of, source_of

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.activations import Arithmetic
    from ..plan.memory import TrainingRun
    from ..plan.quantity import Quantity
    from ..train.config import PretrainConfig

plan_app = typer.Typer(no_args_is_help=True, help="Planner: what a model costs, from its shape alone.")


@plan_app.callback()
def plan() -> None:
    """Planner: what a model costs, from its shape alone, each figure with its formula."""


Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A preset's name, a model or run directory, a recipe (.yaml) or a config.json."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the shape; repeatable.")
]
SequenceLength = Annotated[
    int | None, typer.Option("--seq-len", help="Tokens in a sequence; the model's max_seq_len by default.")
]
TrainedLength = Annotated[
    int | None, typer.Option("--seq-len", help="Tokens in a sequence; the recipe's, or the model's max_seq_len.")
]
# Settings of training: where a flag is not given a recipe's section base says, and without a recipe the default.
MicroBatch = Annotated[
    int | None, typer.Option("--micro-batch-size", help="Sequences per forward pass and process (1).")
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="Type of the products: fp32, bf16, fp16 or fp8 (bf16).")
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Type of weights, gradients and optimizer state: fp32, bf16 (fp32).")
]
OptimizerName = Annotated[str | None, typer.Option("--optimizer", help="adamw, muon, adam8bit or adafactor (adamw).")]
Checkpointed = Annotated[
    str | None,
    typer.Option("--activation-checkpointing", help="What backward computes again: none, sqrt, block, selective."),
]
Offloaded = Annotated[
    str | None, typer.Option("--offload", help="Where optimizer state lies: none, cpu or disk (none).")
]
DataParallelism = Annotated[str | None, typer.Option("--parallel", help="ddp, zero1, zero2 or zero3 (ddp).")]
ProcessCount = Annotated[int | None, typer.Option("--processes", help="Processes, one on each device (1).")]
DeviceKind = Annotated[str | None, typer.Option("--device", help="cuda or cpu (cuda).")]
Compiled = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Whether the model is compiled, as it is on cuda.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    config = override(shape_of(source), overrides or [])
    length = config.max_seq_len if seq_len is None else seq_len
    quantities = plan_model(config, length, dtype)
    if as_json:
        head = {
            "model": target,
            "source": source,
            "seq_len": length,
            "dtype": dtype,
            "config": config.model_dump(mode="json"),
        }
        typer.echo(json.dumps(head | {"quantities": [quantity.as_json() for quantity in quantities]}, indent=2))
    else:
        meaning = " ".join(f"{symbol}={value}" for symbol, value in symbols(config).items())
        _print_figures(f"{source}: {length:,} tokens, {dtype}", meaning, quantities)


@plan_app.command()
def memory(
    target: Target,
    overrides: Overrides = None,
    seq_len: TrainedLength = None,
    micro_batch_size: MicroBatch = None,
    accumulate: Annotated[
        bool | None, typer.Option("--accumulate", help="A step sums the gradients of several forward passes.")
    ] = None,
    precision: Precision = None,
    weights: Weights = None,
    optimizer: OptimizerName = None,
    activation_checkpointing: Checkpointed = None,
    offload: Offloaded = None,
    parallel: DataParallelism = None,
    processes: ProcessCount = None,
    device: DeviceKind = None,
    compile: Compiled = None,
    as_json: AsJson = False,
) -> None:
    """The most memory that training a model takes at once, by parts and moments, and what other settings would take.

    Of a recipe it is that of its stage base, with its settings where no flag says otherwise.

    Example: gristmill plan memory gristmill-135m --seq-len 2048 --micro-batch-size 32
    """
    from ..plan.train import plan_memory

    source, config, base = _model(target, overrides)
    flags = {
        "micro_batch_size": micro_batch_size, "accumulate": accumulate, "precision": precision, "weights": weights,
        "optimizer": optimizer, "activation_checkpointing": activation_checkpointing, "offload": offload,
        "parallel": parallel, "processes": processes, "device": device, "compile": compile,
    }  # fmt: skip
    arithmetic, run = training_settings(config, base, seq_len, flags)
    _print(target, source, config, arithmetic, run, plan_memory(config, arithmetic, run), {}, as_json)


@plan_app.command()
def train(
    target: Target,
    overrides: Overrides = None,
    tokens: Annotated[
        float | None,
        typer.Option("--tokens", help="Tokens to train on; the recipe's, or 20 per parameter by default."),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", help="Tokens of a step, over all processes; the recipe's, or one pass."),
    ] = None,
    accelerator: Annotated[
        str, typer.Option("--accelerator", help="The device of each process: h100-sxm, a100-80gb-sxm, l4, ...")
    ] = "h100-sxm",
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the device's peak that training reaches.")] = 0.4,
    seq_len: TrainedLength = None,
    micro_batch_size: MicroBatch = None,
    precision: Precision = None,
    weights: Weights = None,
    optimizer: OptimizerName = None,
    activation_checkpointing: Checkpointed = None,
    offload: Offloaded = None,
    parallel: DataParallelism = None,
    processes: ProcessCount = None,
    compile: Compiled = None,
    as_json: AsJson = False,
) -> None:
    """Arithmetic, time and tokens per second of a training run, memory per process and traffic between processes.

    Of a recipe it is its stage base, with its settings where no flag says otherwise.

    Example: gristmill plan train llama-3-8b --processes 8 --tokens 160e9 --mfu 0.4 --parallel zero3
    """
    from ..plan.parameters import total_params
    from ..plan.train import Budget, plan_train

    source, config, base = _model(target, overrides)
    flags = {
        "micro_batch_size": micro_batch_size, "precision": precision, "weights": weights, "optimizer": optimizer,
        "activation_checkpointing": activation_checkpointing, "offload": offload, "parallel": parallel,
        "processes": processes, "device": "cuda", "compile": compile,
    }  # fmt: skip
    arithmetic, run = training_settings(config, base, seq_len, flags)
    step, whole = run.tokens * run.processes, 20 * total_params(config)
    if base is not None:
        step = base.training.batch_size * run.sequence_length
        whole = base.training.steps * step
    budget = Budget(
        tokens=whole if tokens is None else tokens,
        batch_tokens=step if batch_tokens is None else batch_tokens,
        accelerator=accelerator,
        utilization=mfu,
    )
    _print(
        target, source, config, arithmetic, run, plan_train(config, arithmetic, run, budget), asdict(budget), as_json
    )


def _model(target: str, overrides: list[str] | None) -> tuple[str, ModelConfig, PretrainConfig | None]:
    source = source_of(target)
    return source, override(shape_of(source), overrides or []), recipe_base(source)


def _print(
    target: str,
    source: str,
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    quantities: list[Quantity],
    more: dict[str, Any],
    as_json: bool,
) -> None:
    if as_json:
        head = {
            "model": target,
            "source": source,
            "settings": asdict(arithmetic) | asdict(run) | more,
            "config": config.model_dump(mode="json"),
        }
        typer.echo(json.dumps(head | {"quantities": [quantity.as_json() for quantity in quantities]}, indent=2))
        return
    from ..plan.parameters import symbols, total_params

    known = symbols(config) | {"P": total_params(config), "N": run.tokens, "n": run.processes}
    known |= {"g": arithmetic.weight, "e": arithmetic.operand}
    sharing = f", {run.processes} processes, {run.data}" if run.processes > 1 else ""
    title = f"{source}: {run.micro_batch_size} x {run.sequence_length:,} tokens, {arithmetic.precision}{sharing}"
    _print_figures(title, " ".join(f"{symbol}={value}" for symbol, value in known.items()), quantities)


def _print_figures(title: str, meaning: str, quantities: list[Quantity]) -> None:
    """A line for each figure, grouped by the first part of the ids; a formula that does not fit behind its figure
    stands on lines of its own, whole words together."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def put(line: str, formula: str = "") -> None:
        console.print(Text.assemble(line, (formula, "dim")), soft_wrap=True)

    def wrapped(text: str, indent: str) -> list[str]:
        width = max(console.width, 30)
        return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)

    put(title)
    for line in wrapped(meaning, ""):
        put(line)
    rows = [(*quantity.id.partition(".")[::2], quantity.shown(), quantity.formula) for quantity in quantities]
    names, figures = max(len(name) for _, name, _, _ in rows), max(len(shown) for _, _, shown, _ in rows)
    group = ""
    for first, name, shown, formula in rows:
        if first != group:
            put(f"{chr(10) if group else ''}{first}")
            group = first
        line = f"  {name:<{names}}  {shown:>{figures}}"
        if len(line) + 2 + len(formula) <= console.width:
            put(f"{line}  ", formula)
            continue
        put(line)
        for part in wrapped(formula, " " * 6):
            put("", part)
