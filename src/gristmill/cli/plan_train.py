"""`gristmill plan train`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import GristmillError
from .plan_options import (
    Checkpointed,
    Compiled,
    DataParallelism,
    MicroBatch,
    Offloaded,
    OptimizerName,
    Precision,
    ProcessCount,
    TrainedLength,
    Weights,
    print_training,
)
from .plan_output import AsJson, Overrides, Target, model_of
from .plan_settings import training_settings

if TYPE_CHECKING:
    from ..plan.scaling import Law


def train(
    target: Target,
    overrides: Overrides = None,
    tokens: Annotated[
        float | None,
        typer.Option("--tokens", help="Tokens to train on; the recipe's, or 20 per parameter by default."),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            help="Tokens of a step, over all processes; the recipe's, or one pass (four a stage of a pipeline).",
        ),
    ] = None,
    accelerator: Annotated[
        str,
        typer.Option(
            "--accelerator", "--device", help="The device of each process: h100-sxm, a100-80gb-sxm, l4, ... or here."
        ),
    ] = "h100-sxm",
    mfu: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            help="Share of the devices' peak that training reaches in all; else what gristmill measured on one device, "
            "less bubble and traffic.",
        ),
    ] = None,
    seq_len: TrainedLength = None,
    micro_batch_size: MicroBatch = None,
    precision: Precision = None,
    weights: Weights = None,
    optimizer: OptimizerName = None,
    activation_checkpointing: Checkpointed = None,
    offload: Offloaded = None,
    parallel: DataParallelism = None,
    processes: ProcessCount = None,
    tensor: Annotated[int, typer.Option("--tensor", help="Processes that share each layer's matrices.")] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline", help="Stages of layers.")] = 1,
    expert: Annotated[int, typer.Option("--expert", help="Data-parallel processes that share a layer's experts.")] = 1,
    interleaved: Annotated[int, typer.Option("--interleaved", help="Chunks of layers in each stage.")] = 1,
    devices_per_node: Annotated[
        int | None, typer.Option("--devices-per-node", help="The device's usual number.")
    ] = None,
    corpus_tokens: Annotated[
        float | None, typer.Option("--corpus-tokens", help="Tokens there are to train on.")
    ] = None,
    inference_tokens: Annotated[
        float, typer.Option("--inference-tokens", help="Tokens the model will read and write in its life.")
    ] = 0,
    law: Annotated[
        Path | None,
        typer.Option("--law", help="report.json of `gristmill scaling`: its law beside the published ones."),
    ] = None,
    usd_per_hour: Annotated[
        str | None,
        typer.Option("--usd-per-hour", metavar="LOW[,HIGH]", help="Price of a device; else the known range."),
    ] = None,
    save_rate: Annotated[
        float | None, typer.Option("--save-rate", help="Bytes per second that a node writes of a checkpoint.")
    ] = None,
    async_saves: Annotated[
        bool, typer.Option("--async-saves", help="Checkpoints are written beside training.")
    ] = False,
    device_mtbf_hours: Annotated[
        float | None, typer.Option("--device-mtbf-hours", help="Hours between two failures of one device.")
    ] = None,
    compile: Compiled = None,
    as_json: AsJson = False,
) -> None:
    """Time of a training run, memory, traffic by layout and link, best sizes, checkpoints against failures, cost, data.

    Of a recipe it is its stage base, with its settings where no flag says otherwise.

    Example: gristmill plan train llama-3-70b --processes 64 --tensor 8 --pipeline 4 --tokens 1.4e12
    """
    from ..plan.failures import DEVICE_MTBF_HOURS
    from ..plan.parameters import total_params
    from ..plan.train import Budget, Outlook, Spread, plan_train

    source, config, base = model_of(target, overrides)
    flags = {
        "micro_batch_size": micro_batch_size, "precision": precision, "weights": weights, "optimizer": optimizer,
        "activation_checkpointing": activation_checkpointing, "offload": offload, "parallel": parallel,
        "processes": processes, "device": "cuda", "compile": compile,
    }  # fmt: skip
    arithmetic, run = training_settings(config, base, seq_len, flags)
    replicas = max(run.processes // max(tensor * pipeline, 1), 1)
    step = run.tokens * replicas * (4 * pipeline if pipeline > 1 else 1)
    whole = 20 * total_params(config)
    if base is not None:
        step = base.training.batch_size * run.sequence_length
        whole = base.training.steps * step
    budget = Budget(
        tokens=whole if tokens is None else tokens,
        batch_tokens=step if batch_tokens is None else batch_tokens,
        accelerator=accelerator,
        utilization=mfu,
    )
    spread = Spread(tensor, pipeline, expert, interleaved, devices_per_node)
    outlook = Outlook(
        corpus_tokens=corpus_tokens,
        inference_tokens=inference_tokens,
        usd_per_hour=None if usd_per_hour is None else _prices(usd_per_hour),
        save_bytes_per_s=save_rate,
        asynchronous=async_saves,
        device_mtbf_hours=DEVICE_MTBF_HOURS if device_mtbf_hours is None else device_mtbf_hours,
        law=None if law is None else _law(law),
    )
    quantities = plan_train(config, arithmetic, run, budget, spread, outlook)
    settings = asdict(budget) | asdict(spread) | asdict(outlook)
    print_training(target, source, config, arithmetic, run, quantities, settings, as_json)


def _prices(text: str) -> tuple[float, float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 2):
        raise GristmillError(f"--usd-per-hour takes a price, or two with a comma between them, not {text!r}")
    return found[0], found[-1]


def _law(path: Path) -> Law:
    from ..plan.scaling import Law

    try:
        return Law(**{name: float(value) for name, value in json.loads(path.read_text())["law"].items()})
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GristmillError(f"{path} holds no law: give the report.json of `gristmill scaling`") from None
