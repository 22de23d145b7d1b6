"""The planner's question of memory, handed to the public functions of plan/."""

from __future__ import annotations

from ..model.config import ModelConfig
from ..plan.activations import Arithmetic
from ..plan.device import device
from ..plan.finetune_memory import Adapters, default_targets
from ..plan.layouts import Layout
from ..plan.memory import TrainingRun
from ..plan.memory_hints import verdict
from ..plan.memory_plan import NVME_BANDWIDTH, MemoryQuestion, answer
from ..plan.parameters import symbols, total_params
from ..plan.training import STAGES
from .planner_fields import fields
from .planner_form import Answer, InputError, Inputs, Question, Sweep, names

BATCHES = tuple(2**power for power in range(9))
PROCESSES = tuple(4**power for power in range(7))


def memory(inputs: Inputs) -> Answer:
    config, run, rank = inputs["model"], training_run(inputs), inputs["lora_rank"]
    sizes = {name: inputs[name] for name in ("tensor", "pipeline", "expert")}
    layout = None
    if any(size != 1 for size in sizes.values()):
        layout = Layout(data=run.processes, zero=STAGES[run.data], **sizes)
    adapters = None
    if rank is not None:
        adapters = Adapters(rank, names(inputs["targets"]) or default_targets(config), inputs["base"] or "bf16")
    question = MemoryQuestion(
        config,
        arithmetic(inputs),
        run,
        layout,
        inputs["micro_batches"],
        inputs["sequence_parallel"],
        adapters,
        inputs["method"],
        inputs["rollouts"] or 0,
    )
    card = device(inputs["device"]) if inputs["device"] else None
    return Answer(
        tuple(answer(question, card, inputs["disk_bandwidth"] or NVME_BANDWIDTH)),
        sentences=tuple(verdict(question, card)) if card is not None else (),
        symbols=letters(inputs, run),
    )


def training_run(inputs: Inputs) -> TrainingRun:
    """The settings of a training run that a form holds."""
    return TrainingRun(
        micro_batch_size=inputs["micro_batch_size"],
        sequence_length=inputs["seq_len"] or inputs["model"].max_seq_len,
        accumulates=inputs.get("accumulate", False),
        optimizer=inputs["optimizer"],
        checkpointing=inputs["activation_checkpointing"],
        offload=inputs["offload"],
        data=inputs["parallel"],
        processes=inputs["processes"],
    )


def arithmetic(inputs: Inputs) -> Arithmetic:
    """How a run of such a form computes. InputError for types that cannot be multiplied."""
    if inputs["weights"] == "bf16" and inputs["precision"] in ("fp32", "fp16"):
        raise InputError("weights", f"weights in bf16 cannot be multiplied in {inputs['precision']}; choose bf16")
    return Arithmetic(inputs["precision"], inputs["weights"])


def letters(inputs: Inputs, run: TrainingRun) -> dict[str, int]:
    """What the letters of a training run's formulas stand for."""
    config: ModelConfig = inputs["model"]
    kept = arithmetic(inputs)
    known = {"P": total_params(config), "N": run.tokens, "n": run.processes}
    return symbols(config) | known | {"g": kept.weight, "e": kept.operand}


MEMORY = (
    Question(
        "memory", "Memory", "The most memory that training takes on a device at once, whether it fits, and what would.",
        fields("model", "fitted", "seq_len", "micro_batch_size", "activation_checkpointing", "optimizer", "parallel",
               "processes", "lora_rank", fitted="h100-sxm"), memory,
        more=fields("set", "precision", "weights", "offload", "disk_bandwidth", "accumulate", "tensor", "pipeline",
                    "micro_batches", "expert", "sequence_parallel", "targets", "base", "method", "rollouts"),
        sweeps=(
            Sweep("Memory and batch", "micro_batch_size", BATCHES,
                  {"memory.total": "all", "memory.activations": "activations", "memory.optimizer": "optimizer",
                   "memory.weights": "weights"}, "memory of a device", others=(("device", None),)),
            Sweep("Memory and processes", "processes", PROCESSES,
                  {"memory.total": "all", "memory.optimizer": "optimizer", "memory.weights": "weights"},
                  "memory of a device", others=(("device", None),)),
        ),
    ),
)  # fmt: skip
