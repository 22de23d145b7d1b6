"""`gristmill plan memory` and `gristmill plan train`: what a training run takes, each figure with its formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import GristmillError
from ..hardware import known_accelerators
from ..model.config import ModelConfig
from . import activations, training
from .activations import Arithmetic, block_bytes
from .flops import flops_per_token_training
from .memory import Memory, TrainingRun, moments, peak_memory
from .parameters import total_params
from .quantity import Quantity

MEANING = {
    "weights": "P g (zero2, zero3: / n)",
    "gradients": "P g (zero2, zero3: / n); one block's alone where they are not all there at the highest moment",
    "optimizer": "states (but ddp: / n)",
    "activations": "N tokens * bytes per token, and copies of weights in the products' type",
    "loss": "logits of a chunk, and the gradients of head and hidden states",
    "communication": "weights that are gathered, gradients on their way",
    "working": "what backward computes again and is working on; the optimizer's temporaries; libraries",
}
ZERO = {
    "ddp": "16 P", "zero1": "4 P + 12 P / n", "zero2": "2 P + 14 P / n", "zero3": "16 P / n",
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a run is given: tokens of text, `batch_tokens` of them a step over all processes, `accelerator` (a name of
    hardware.toml) for each process, and the share of its peak that training reaches (`utilization`, 0 to 1)."""

    tokens: float
    batch_tokens: int
    accelerator: str = "h100-sxm"
    utilization: float = 0.4


def plan_memory(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun) -> list[Quantity]:
    """Peak memory of a process by parts, each moment's total, activations by checkpointing mode, states under ZeRO."""
    _check(config, run)
    peak = peak_memory(config, arithmetic, run)
    rows = [Quantity(f"memory.{name}", size, "byte", MEANING[name]) for name, size in peak.parts().items()]
    rows.append(Quantity("memory.total", peak.total, "byte", f"sum, at its highest moment: {peak.moment}"))
    for moment in moments(config, arithmetic, run):
        rows.append(Quantity(f"moments.{moment.moment.replace(' ', '_')}", moment.total, "byte", _largest(moment)))
    table = _zero(config, run) if run.processes > 1 else []
    return [*rows, *_activations(config, arithmetic), *table]


def plan_train(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun, budget: Budget) -> list[Quantity]:
    """Arithmetic, time and tokens per second, memory per process and traffic, for each way of sharing the work."""
    _check(config, run)
    if not 0 < budget.utilization <= 1:
        raise GristmillError(f"mfu must be above 0 and at most 1, not {budget.utilization:g}")
    if budget.tokens < 1:
        raise GristmillError(f"tokens must be at least 1, not {budget.tokens:g}")
    if budget.batch_tokens < run.processes * run.tokens:
        raise GristmillError(
            f"a step of {budget.batch_tokens:,} tokens is less than the {run.processes * run.tokens:,} that "
            f"{run.processes} processes take at once; raise batch_tokens or lower micro_batch_size"
        )
    peak = _peak_flops(budget.accelerator, arithmetic.precision)
    params, n = total_params(config), run.processes
    run = replace(run, accumulates=budget.batch_tokens > n * run.tokens)
    each = flops_per_token_training(config, run.sequence_length)
    again = 1 + activations.recomputed_share(run.checkpointing)
    rate = n * peak * budget.utilization / (each * again)
    rows = [
        Quantity("flops.per_token", each, "FLOP/token", "3 * (2 * matrices + attention), nothing computed again"),
        Quantity("flops.total", each * budget.tokens, "FLOP", f"per token * {budget.tokens:,.0f} tokens"),
        Quantity("flops.six_n_d", training.train_flops(params, budget.tokens), "FLOP", "6 P * tokens, for comparison"),
        Quantity("tokens.per_parameter", budget.tokens / params, "x", "tokens / P; about 20 is compute-optimal"),
        Quantity("tokens.steps", budget.tokens / budget.batch_tokens, "step", "tokens / batch_tokens"),
        Quantity("time.tokens_per_second", rate, "token/s",
                 f"n * {peak:.4g} FLOP/s * {budget.utilization:.0%} / FLOPs per token"
                 + (f" / {again:.3g} for what is computed again" if again > 1 else "")),
        Quantity("time.step", budget.batch_tokens / rate, "s", "batch_tokens / tokens per second"),
        Quantity("time.total", budget.tokens / rate, "s", "tokens / tokens per second"),
        Quantity("time.device_hours", n * budget.tokens / rate / 3600, "h", "n * time / 3600"),
    ]  # fmt: skip
    for data in training.STAGES:
        shared = peak_memory(config, arithmetic, replace(run, data=data))
        rows.append(Quantity(f"memory.{data}", shared.total, "byte", f"a process's highest moment: {shared.moment}"))
    formulas: dict[training.DataParallel, str] = {
        "ddp": "2 g P",
        "zero1": "3 g P",
        "zero2": "(4 + e) P",
        "zero3": "(4 + 2 e) P",
    }
    for data in training.STAGES:
        sent = training.communication_bytes(config, arithmetic, data, n)
        rows.append(
            Quantity(f"traffic.{data}", sent, "byte", f"{formulas[data]} (n - 1) / n, a step of one micro-batch")
        )
    return rows


def _activations(config: ModelConfig, arithmetic: Arithmetic) -> list[Quantity]:
    block = block_bytes(config, config.num_layers - 1, arithmetic)
    unit = "byte/token"
    rows = [
        Quantity("activations.norms", block.norms, unit, "last block: norms' inputs, statistics and outputs"),
        Quantity("activations.attention", block.attention, unit, "last block: queries, keys, values, output, log-sums"),
        Quantity("activations.feed_forward", block.feed_forward, unit, "last block: between its matrices"),
    ]
    meaning = {
        "none": "all blocks, everything",
        "sqrt": "inputs of sqrt(L) groups",
        "block": "inputs of blocks",
        "selective": "inputs of blocks, products and attention",
    }
    for mode, formula in meaning.items():
        kept = activations.kept_bytes(config, arithmetic, mode)  # type: ignore[arg-type]
        rows.append(Quantity(f"activations.{mode}", kept, unit, formula))
    return rows


def _zero(config: ModelConfig, run: TrainingRun) -> list[Quantity]:
    """The table of Rajbhandari et al. 2020, with its 2 + 2 + 12 bytes a parameter."""
    params = total_params(config)
    return [
        Quantity(f"zero.{data}", training.zero_bytes_per_process(params, run.processes, stage), "byte",
                 f"{ZERO[data]}, n = {run.processes}: states alone, as the ZeRO paper counts them")
        for data, stage in training.STAGES.items()
    ]  # fmt: skip


def _largest(moment: Memory) -> str:
    name, size = max(moment.parts().items(), key=lambda part: part[1])
    return f"most of it {name} ({size / moment.total:.0%})"


def _peak_flops(accelerator: str, precision: str) -> float:
    """Of dense products; fp8 stands beside the 16-bit peak, as train/throughput.py has it, and fp32 beside tf32."""
    known = known_accelerators()
    if accelerator not in known:
        raise GristmillError(f"accelerator {accelerator!r} is not known; known are {', '.join(known)}")
    kind = "tf32" if precision == "fp32" else "bf16"
    peak: float | None = known[accelerator]["peak_flops"].get(kind)
    if peak is None:
        raise GristmillError(f"no datasheet says what {accelerator} does in {kind}; choose another precision")
    return peak


def _check(config: ModelConfig, run: TrainingRun) -> None:
    for name in ("micro_batch_size", "sequence_length", "processes"):
        if getattr(run, name) < 1:
            raise GristmillError(f"{name} must be at least 1, not {getattr(run, name)}")
    if config.positions == "learned" and run.sequence_length > config.max_seq_len:
        raise GristmillError(
            f"seq_len ({run.sequence_length}) is more than the model's {config.max_seq_len} learned positions"
        )
    if run.sequence_length > config.max_seq_len:
        raise GristmillError(
            f"seq_len ({run.sequence_length}) is more than the model's max_seq_len ({config.max_seq_len}): give fewer "
            f"tokens, or a model that is made for them (--set max_seq_len={run.sequence_length})"
        )
