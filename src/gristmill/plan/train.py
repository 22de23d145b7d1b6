"""`gristmill plan memory` and `gristmill plan train`: what a training run takes, each figure with its formula."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import GristmillError
from ..hardware import known_accelerators
from ..model.config import ModelConfig
from . import activations, failures, train_rows, training
from .activations import Arithmetic
from .communication import Links
from .device import device
from .flops import flops_per_token_training
from .layouts import Layout
from .memory import TrainingRun, peak_memory, sizes
from .memory_plan import check_length
from .parallel_memory import memory_per_device
from .parameters import total_params
from .quantity import Label, Quantity
from .scaling import Law
from .training_step import Schedule, Work, check_batch, step_time
from .utilization import MEASURED_ON, measured_share, peak_of

# What gristmill's own saves took (benchmarks/RESULTS.md: a whole one, hashed and synced; an asynchronous one, and the
# copy for which training stops), byte/s of one machine.
SAVE_BYTES_PER_S, ASYNC_WRITE_BYTES_PER_S, ASYNC_COPY_BYTES_PER_S = 0.87e9, 0.53e9, 1.5e9


@dataclass(frozen=True)
class Budget:
    """What a run is given: tokens of text, `batch_tokens` of them a step over all processes, `accelerator` (a known
    device) for each process, and the share of its peak that training reaches in all (`utilization`, 0 to 1): where it
    is None, a device's own share is what gristmill measured, and traffic and bubble are reckoned on top."""

    tokens: float
    batch_tokens: int
    accelerator: str = "h100-sxm"
    utilization: float | None = None


@dataclass(frozen=True)
class Spread:
    """How a run's processes share the model, beside the batch; `interleaved` chunks of layers a device."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    interleaved: int = 1
    devices_per_node: int | None = None


@dataclass(frozen=True)
class Outlook:
    """What a run's surroundings are: the corpus, tokens of use in the model's life, prices of a device's hour (low,
    high), how checkpoints are written (byte/s of each node), failures of a device, and a law that was fitted."""

    corpus_tokens: float | None = None
    inference_tokens: float = 0.0
    usd_per_hour: tuple[float, float] | None = None
    save_bytes_per_s: float | None = None
    asynchronous: bool = False
    device_mtbf_hours: float = failures.DEVICE_MTBF_HOURS
    law: Law | None = None


def plan_train(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    budget: Budget,
    spread: Spread = Spread(),
    outlook: Outlook = Outlook(),
) -> list[Quantity]:
    """Arithmetic, time and tokens per second, memory per process, traffic by kind and link, the pipeline's bubble, best
    sizes, checkpoints, cost and energy, data. `run.processes` are all devices; what tensor and pipeline parallelism
    leave of them shares the batch."""
    _check(config, run)
    _check_budget(budget, outlook)
    layout, micro_batches = _layout(config, run, budget, spread)
    card = device(budget.accelerator)
    links = Links.of(card, spread.devices_per_node)
    peak = peak_of(card, arithmetic.precision)
    params, n = total_params(config), run.processes
    run = replace(run, accumulates=micro_batches > 1)
    each = flops_per_token_training(config, run.sequence_length)
    again = 1 + activations.recomputed_share(run.checkpointing)
    work = Work(config, arithmetic, run.sequence_length)
    schedule = Schedule(run.sequence_length, run.micro_batch_size, micro_batches, spread.interleaved, run.checkpointing)
    measured = measured_share(config, arithmetic.precision)
    step = step_time(work, layout, schedule, links, peak, budget.utilization or measured.share)
    known = known_accelerators().get(card.id, {})
    timing: list[Quantity] = []
    if budget.utilization is None:
        rate = budget.batch_tokens / step.seconds
        why = f"gristmill's run {measured.shape} on {MEASURED_ON}, the nearest in width"
        formula = "batch_tokens / step, which is compute + bubble + exposed traffic"
        timing = train_rows.time_rows(step, measured.share, peak, "measured", why)
    else:
        rate = n * peak * budget.utilization / (each * again)
        formula = f"n * {peak:.4g} FLOP/s * {budget.utilization:.0%} / FLOPs per token"
        formula += f" / {again:.3g} for what is computed again" if again > 1 else ""
    seconds, total = budget.batch_tokens / rate, budget.tokens / rate
    hours = n * total / 3600
    rows = [
        Quantity("flops.per_token", each, "FLOP/token", "3 * (2 * matrices + attention), nothing computed again"),
        Quantity("flops.total", each * budget.tokens, "FLOP", f"per token * {budget.tokens:,.0f} tokens"),
        Quantity("flops.six_n_d", training.train_flops(params, budget.tokens), "FLOP", "6 P * tokens, for comparison"),
        Quantity("tokens.per_parameter", budget.tokens / params, "x", "tokens / P; about 20 is compute-optimal"),
        Quantity("tokens.steps", budget.tokens / budget.batch_tokens, "step", "tokens / batch_tokens"),
        *timing,
        Quantity("time.tokens_per_second", rate, "token/s", formula),
        Quantity("time.utilization", rate * each / (n * peak), "1", "MFU: FLOPs per token * rate / (n * peak)"),
        Quantity("time.step", seconds, "s", "batch_tokens / tokens per second"),
        Quantity("time.total", total, "s", "tokens / tokens per second"),
        Quantity("time.device_hours", hours, "h", "n * time / 3600"),
        *_memory_by_stage(config, arithmetic, run, layout, micro_batches),
        *train_rows.communication_rows(step.traffic, links),
        *_data_parallel_traffic(config, arithmetic, layout),
        *train_rows.pipeline_rows(layout.pipeline, schedule),
        *train_rows.size_rows(params, budget.tokens, outlook.inference_tokens, outlook.law),
        *_checkpoints(config, arithmetic, run, outlook, links, seconds, total),
        *train_rows.cost_rows(card, hours, outlook.usd_per_hour, known.get("tdp_watts")),
    ]  # fmt: skip
    return rows + (train_rows.data_rows(budget.tokens, outlook.corpus_tokens) if outlook.corpus_tokens else [])


def _memory_by_stage(
    config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun, layout: Layout, micro_batches: int
) -> list[Quantity]:
    """A process's most, under each stage of ZeRO."""
    rows = []
    for data, stage in training.STAGES.items():
        if layout.tensor == layout.pipeline == layout.expert == 1:
            shared = peak_memory(config, arithmetic, replace(run, data=data))
            rows.append(
                Quantity(f"memory.{data}", shared.total, "byte", f"a process's highest moment: {shared.moment}")
            )
        elif stage < 2 or layout.pipeline == 1:
            shared = memory_per_device(config, arithmetic, run, replace(layout, zero=stage), micro_batches)
            formula = f"the layout's fullest device, at its highest moment: {shared.moment}"
            rows.append(Quantity(f"memory.{data}", shared.total, "byte", formula))
    return rows


def _data_parallel_traffic(config: ModelConfig, arithmetic: Arithmetic, layout: Layout) -> list[Quantity]:
    """What each stage of ZeRO sends where nothing but the batch is shared out."""
    if layout.tensor * layout.pipeline * layout.expert > 1:
        return []
    formulas = {"ddp": "2 g P", "zero1": "3 g P", "zero2": "(4 + e) P", "zero3": "(4 + 2 e) P"}
    return [
        Quantity(f"traffic.{data}", training.communication_bytes(config, arithmetic, data, layout.data), "byte",
                 f"{formulas[data]} (n - 1) / n, a step of one micro-batch")
        for data in training.STAGES
    ]  # fmt: skip


def _checkpoints(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    outlook: Outlook,
    links: Links,
    step: float,
    total: float,
) -> list[Quantity]:
    size = failures.checkpoint_bytes(config, arithmetic, run.optimizer)
    nodes = -(-run.processes // links.devices_per_node)
    label: Label = "computed"
    why = f"{nodes} nodes write their shares" if nodes > 1 else "one node writes"
    own = ASYNC_WRITE_BYTES_PER_S if outlook.asynchronous else SAVE_BYTES_PER_S
    speed = outlook.save_bytes_per_s or own
    if outlook.save_bytes_per_s is None:
        why, label = f"{why}, {speed:.3g} byte/s each, as gristmill's saves were measured", "measured"
    saving = failures.plan_saving(
        size,
        speed * nodes,
        failures.machine_mtbf_seconds(outlook.device_mtbf_hours, run.processes),
        pause_bytes_per_s=ASYNC_COPY_BYTES_PER_S * nodes if outlook.asynchronous else None,
    )
    return train_rows.checkpoint_rows(size, saving, step, total, why, label)


def _layout(config: ModelConfig, run: TrainingRun, budget: Budget, spread: Spread) -> tuple[Layout, int]:
    """The layout and a step's micro-batches; GristmillError that names the rule which they break."""
    inside = spread.tensor * spread.pipeline
    Layout(spread.tensor, spread.pipeline, expert=spread.expert, data=spread.expert).check(config)
    if run.processes % inside:
        raise GristmillError(
            f"{run.processes} processes cannot be cut into replicas of {inside} (tensor {spread.tensor} x pipeline "
            f"{spread.pipeline})"
        )
    data = run.processes // inside
    if data % spread.expert:
        raise GristmillError(f"expert parallelism {spread.expert} does not divide data parallelism {data}")
    stage = training.STAGES[run.data] if data > 1 else 0
    if stage > 1 and spread.pipeline > 1:
        raise GristmillError(f"{run.data} is not combined with a pipeline: use ddp or zero1, or pipeline 1")
    if budget.batch_tokens < data * run.tokens:
        raise GristmillError(
            f"a step of {budget.batch_tokens:,} tokens is less than the {data * run.tokens:,} that "
            f"{data} processes take at once; raise batch_tokens or lower micro_batch_size"
        )
    micro_batches = check_batch(budget.batch_tokens, run.sequence_length, data, run.micro_batch_size)
    layers = -(-config.num_layers // spread.pipeline)
    if spread.interleaved < 1 or layers % spread.interleaved:
        raise GristmillError(f"{spread.interleaved} interleaved chunks do not divide a stage's {layers} layers")
    if spread.interleaved > 1 and (spread.pipeline == 1 or micro_batches % spread.pipeline):
        raise GristmillError(
            f"an interleaved pipeline takes micro-batches by rounds of its stages: {micro_batches} are no multiple of "
            f"{spread.pipeline}"
            if spread.pipeline > 1
            else "chunks are interleaved in a pipeline: --pipeline is 1"
        )
    return Layout(spread.tensor, spread.pipeline, data, spread.expert, stage), micro_batches


def _check_budget(budget: Budget, outlook: Outlook) -> None:
    if budget.utilization is not None and not 0 < budget.utilization <= 1:
        raise GristmillError(f"mfu must be above 0 and at most 1, not {budget.utilization:g}")
    if not 1 <= budget.tokens < math.inf:
        raise GristmillError(f"tokens must be at least 1 and finite, not {budget.tokens:g}")
    for name in ("corpus_tokens", "save_bytes_per_s", "device_mtbf_hours"):
        value = getattr(outlook, name)
        if value is not None and not 0 < value < math.inf:
            raise GristmillError(f"{name} must be above 0 and finite, not {value:g}")
    if not 0 <= outlook.inference_tokens < math.inf:
        raise GristmillError(f"inference_tokens must be 0 or more and finite, not {outlook.inference_tokens:g}")
    low, high = outlook.usd_per_hour or (1.0, 1.0)
    if not 0 < low <= high < math.inf:
        raise GristmillError(f"usd_per_hour must be above 0 and finite, the lower price first, not {low:g}, {high:g}")


def _check(config: ModelConfig, run: TrainingRun) -> None:
    for name, value in sizes(run):
        if value < 1:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    check_length(config, run.sequence_length)
