"""`gristmill plan memory`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

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
)
from .plan_output import AsJson, Overrides, Target, model_of, print_answer
from .plan_settings import DEVICE, training_settings

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.device import Device
    from ..plan.memory_plan import MemoryQuestion

STAGE_NAMES = ("ddp", "zero1", "zero2", "zero3")


def memory(
    target: Target,
    overrides: Overrides = None,
    seq_len: TrainedLength = None,
    micro_batch_size: MicroBatch = None,
    micro_batches: Annotated[
        int | None, typer.Option("--micro-batches", help="Micro-batches of a step; a pipeline keeps several (1).")
    ] = None,
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
    device: Annotated[
        str | None,
        typer.Option("--device", help="cuda, cpu, or a device to fit: h100-sxm, l4, rtx-4090, here, ... (cuda)."),
    ] = None,
    compile: Compiled = None,
    tensor: Annotated[int, typer.Option("--tensor", help="Devices that share each layer.")] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline", help="Stages of layers.")] = 1,
    data: Annotated[int | None, typer.Option("--data", help="Replicas; as --processes.")] = None,
    expert: Annotated[int, typer.Option("--expert", help="Devices that share a layer's experts.")] = 1,
    zero: Annotated[int | None, typer.Option("--zero", help="Stage of ZeRO, 0 to 3; as --parallel.")] = None,
    sequence_parallel: Annotated[
        bool,
        typer.Option(
            "--sequence-parallel/--no-sequence-parallel",
            help="Whether tensor-parallel devices share out the tokens of what lies between layers.",
        ),
    ] = True,
    lora_rank: Annotated[
        int | None, typer.Option("--lora-rank", help="Train adapters of this rank beside a frozen model.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option("--targets", help="Matrices with adapters: q,v or all of q,k,v,output,gate,up,down.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="What the frozen model is kept as: fp32, bf16, int8 or nf4 (bf16).")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Models held at once: full (one), dpo, grpo or ppo (full).")
    ] = None,
    rollouts: Annotated[
        int | None, typer.Option("--rollouts", help="Sequences that a replica writes at once; a micro-batch.")
    ] = None,
    inference: Annotated[bool, typer.Option("--inference", help="Serving: weights, cache, working space.")] = False,
    sequences: Annotated[int | None, typer.Option("--sequences", help="Served at once, all of --seq-len (1).")] = None,
    kv: Annotated[
        str | None, typer.Option("--kv", help="Served keys and values: fp32, bf16, fp8, int8 (bf16).")
    ] = None,
    disk_bandwidth: Annotated[
        float | None, typer.Option("--disk-bandwidth", help="Bytes/s of the drive with --offload disk (7e9).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The most memory that training a model takes on a device at once, by parts and moments, and what other settings
    would take; of adapters, of alignment's several models, of serving; whether it fits a device, and what would.

    Of a recipe it is that of its stage base, with its settings where no flag says otherwise.

    Example: gristmill plan memory llama-3-70b --tensor 8 --pipeline 4 --micro-batches 16 --zero 1 --device h100-sxm
    """
    source, config, recipe = model_of(target, overrides)
    kind, card = _device(device)
    sizes = {"tensor": tensor, "pipeline": pipeline, "expert": expert}
    if inference:
        refused = {
            "--micro-batch-size": micro_batch_size, "--micro-batches": micro_batches, "--accumulate": accumulate,
            "--precision": precision, "--optimizer": optimizer, "--activation-checkpointing": activation_checkpointing,
            "--offload": offload, "--parallel": parallel, "--zero": zero, "--compile": compile, "--targets": targets,
            "--lora-rank": lora_rank, "--base": base, "--method": method, "--rollouts": rollouts,
            "--disk-bandwidth": disk_bandwidth,
        }  # fmt: skip
        _refuse(refused, "is not for --inference")
        replicas = _same("--processes", processes, "--data", data)
        one = {"data": 1 if replicas is None else replicas}
        length = config.max_seq_len if seq_len is None else seq_len
        count = 1 if sequences is None else sequences
        _inference(target, source, config, card, sizes | one, count, length, weights or "bf16", kv or "bf16", as_json)
        return
    _refuse({"--sequences": sequences, "--kv": kv}, "needs --inference")
    if lora_rank is None:
        _refuse({"--targets": targets, "--base": base}, "needs --lora-rank")
    flags = {
        "micro_batch_size": micro_batch_size, "accumulate": accumulate, "precision": precision, "weights": weights,
        "optimizer": optimizer, "activation_checkpointing": activation_checkpointing, "offload": offload,
        "parallel": _stage(parallel, zero), "processes": _same("--processes", processes, "--data", data),
        "device": kind, "compile": compile,
    }  # fmt: skip
    arithmetic, run = training_settings(config, recipe, seq_len, flags)
    from ..plan.finetune_memory import Adapters, default_targets
    from ..plan.layouts import Layout
    from ..plan.memory_plan import MemoryQuestion
    from ..plan.training import STAGES

    layout = None
    if any(size != 1 for size in sizes.values()):
        layout = Layout(data=run.processes, zero=STAGES[run.data], **sizes)
    adapters = None
    if lora_rank is not None:
        named = tuple(name.strip() for name in targets.split(",")) if targets else default_targets(config)
        adapters = Adapters(lora_rank, named, base or "bf16")
    question = MemoryQuestion(
        config, arithmetic, run, layout, 1 if micro_batches is None else micro_batches, sequence_parallel, adapters,
        method or "full", rollouts or 0,
    )  # fmt: skip
    if rollouts is not None and rollouts < 1:
        raise GristmillError(f"--rollouts must be at least 1, not {rollouts}")
    if question.method not in ("grpo", "ppo"):
        _refuse({"--rollouts": rollouts}, "is for --method grpo and ppo, which write answers")
    if run.offload != "disk":
        _refuse({"--disk-bandwidth": disk_bandwidth}, "needs --offload disk")
    _print_training(target, source, question, card, disk_bandwidth, as_json)


def _print_training(
    target: str, source: str, question: MemoryQuestion, card: Device | None, disk_bandwidth: float | None, as_json: bool
) -> None:
    from ..plan.memory_hints import verdict
    from ..plan.memory_plan import NVME_BANDWIDTH, answer
    from ..plan.parameters import symbols, total_params

    drive = NVME_BANDWIDTH if disk_bandwidth is None else disk_bandwidth
    if not 0 < drive < math.inf:
        raise GristmillError(f"--disk-bandwidth must be above 0 and finite, not {drive:g}")
    quantities = answer(question, card, drive)
    config, arithmetic, run, layout = question.config, question.arithmetic, question.run, question.spread
    settings: dict[str, Any] = asdict(arithmetic) | asdict(run)
    if question.layout is not None or question.micro_batches > 1:
        settings |= {"layout": asdict(layout), "micro_batches": question.micro_batches}
        settings |= {"sequence_parallel": question.sequence_parallel}
    if question.adapters is not None:
        settings["adapters"] = asdict(question.adapters)
    if question.method != "full":
        settings |= {"method": question.method, "rollouts": question.rollouts or run.micro_batch_size}
    if card is not None:
        settings["fits"] = card.id
    head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
    known = symbols(config) | {"P": total_params(config), "N": run.tokens, "n": layout.data}
    known |= {"g": arithmetic.weight, "e": arithmetic.operand}
    shared = [
        f"{name} {getattr(layout, name)}" for name in ("tensor", "pipeline", "expert") if getattr(layout, name) > 1
    ]
    if layout.data > 1:
        shared.append(f"{layout.data} processes, {STAGE_NAMES[layout.zero]}")
    title = f"{source}: {run.micro_batch_size} x {run.sequence_length:,} tokens, {arithmetic.precision}"
    sentences = verdict(question, card) if card is not None else ()
    meaning = " ".join(f"{symbol}={value}" for symbol, value in known.items())
    print_answer(head, ", ".join([title, *shared]), meaning, quantities, as_json, sentences)


def _inference(
    target: str,
    source: str,
    config: ModelConfig,
    card: Device | None,
    sizes: dict[str, int],
    sequences: int,
    length: int,
    weights: str,
    kv: str,
    as_json: bool,
) -> None:
    from ..plan.layouts import Layout
    from ..plan.memory_hints import serving_verdict
    from ..plan.memory_plan import inference_answer
    from ..plan.parameters import symbols
    from ..plan.serve_memory import kv_bits, weight_bits

    layout = Layout(**sizes)
    asked = (config, layout, sequences, length, weight_bits(weights), kv_bits(kv, config))
    quantities = inference_answer(*asked, card)
    settings = asdict(layout) | {"sequences": sequences, "sequence_length": length, "weights": weights, "kv": kv}
    head = {"model": target, "source": source, "settings": settings, "config": config.model_dump(mode="json")}
    meaning = " ".join(f"{symbol}={value}" for symbol, value in symbols(config).items())
    title = f"{source}: serving {sequences} x {length:,} tokens, weights {weights}, cache {kv}"
    sentences = serving_verdict(*asked, card) if card is not None else ()
    print_answer(head, title, meaning, quantities, as_json, sentences)


def _device(name: str | None) -> tuple[str | None, Device | None]:
    """Whether a GPU or a CPU computes, and the device that it is to fit, where one was named."""
    if name is None or name in (DEVICE, "cpu"):
        return name, None
    from ..plan.device import device

    return DEVICE, device(name)


def _stage(parallel: str | None, zero: int | None) -> str | None:
    if zero is None:
        return parallel
    if zero not in range(4):
        raise GristmillError(f"--zero must be a stage, 0 to 3, not {zero}")
    if parallel is not None and parallel != STAGE_NAMES[zero]:
        raise GristmillError(f"--parallel {parallel} and --zero {zero} say different things: give one of them")
    return STAGE_NAMES[zero]


def _same(name: str, value: int | None, other_name: str, other: int | None) -> int | None:
    if value is not None and other is not None and value != other:
        raise GristmillError(f"{name} {value} and {other_name} {other} say different things: give one of them")
    return other if value is None else value


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise GristmillError(f"{name} {why}")
