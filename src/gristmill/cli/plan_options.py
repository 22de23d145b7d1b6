"""Options that the planner's commands about training share, and how their answers are printed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .plan_output import print_answer

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.activations import Arithmetic
    from ..plan.memory import TrainingRun
    from ..plan.quantity import Quantity

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
Compiled = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Whether the model is compiled, as it is on cuda.")
]


def print_training(
    target: str,
    source: str,
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    quantities: list[Quantity],
    more: dict[str, Any],
    as_json: bool,
) -> None:
    head = {
        "model": target,
        "source": source,
        "settings": asdict(arithmetic) | asdict(run) | more,
        "config": config.model_dump(mode="json"),
    }
    from ..plan.parameters import symbols, total_params

    known = symbols(config) | {"P": total_params(config), "N": run.tokens, "n": run.processes}
    known |= {"g": arithmetic.weight, "e": arithmetic.operand}
    sharing = f", {run.processes} processes, {run.data}" if run.processes > 1 else ""
    title = f"{source}: {run.micro_batch_size} x {run.sequence_length:,} tokens, {arithmetic.precision}{sharing}"
    print_answer(head, title, " ".join(f"{symbol}={value}" for symbol, value in known.items()), quantities, as_json)
