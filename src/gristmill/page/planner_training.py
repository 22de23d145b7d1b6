"""The planner's questions of a model and its training, handed to the public functions of plan/."""

from __future__ import annotations

from ..model.config import ModelConfig
from ..plan.failures import DEVICE_MTBF_HOURS
from ..plan.layout_choice import choose_layout
from ..plan.model import plan_model
from ..plan.parameters import symbols, total_params
from ..plan.quantity import in_bytes
from ..plan.train import Budget, Outlook, Spread, plan_train
from .planner_fields import fields
from .planner_form import Answer, Inputs, Question, Sweep, price_range
from .planner_memory import PROCESSES, arithmetic, letters, training_run
from .sections import lines, table

LENGTHS = tuple(2**power for power in range(9, 21))


def model(inputs: Inputs) -> Answer:
    config = inputs["model"]
    length = inputs["seq_len"] or config.max_seq_len
    return Answer(tuple(plan_model(config, length, inputs["dtype"])), symbols=symbols(config) | {"s": length})


def train(inputs: Inputs) -> Answer:
    config, run = inputs["model"], training_run(inputs)
    pipeline = inputs["pipeline"]
    replicas = max(run.processes // (inputs["tensor"] * pipeline), 1)
    budget = Budget(
        tokens=inputs["tokens"] or 20 * total_params(config),
        batch_tokens=inputs["batch_tokens"] or run.tokens * replicas * (4 * pipeline if pipeline > 1 else 1),
        accelerator=inputs["accelerator"],
        utilization=inputs["mfu"],
    )
    spread = Spread(inputs["tensor"], pipeline, inputs["expert"], inputs["interleaved"], inputs["devices_per_node"])
    outlook = Outlook(
        corpus_tokens=inputs["corpus_tokens"],
        inference_tokens=inputs["inference_tokens"],
        usd_per_hour=price_range(inputs["usd_per_hour"], "usd_per_hour"),
        save_bytes_per_s=inputs["save_rate"],
        asynchronous=inputs["async_saves"],
        device_mtbf_hours=inputs["device_mtbf_hours"] or DEVICE_MTBF_HOURS,
    )
    quantities = plan_train(config, arithmetic(inputs), run, budget, spread, outlook)
    return Answer(tuple(quantities), symbols=letters(inputs, run))


def layout(inputs: Inputs) -> Answer:
    config: ModelConfig = inputs["model"]
    sizes = {name: inputs[name] for name in ("tensor", "pipeline", "data", "expert", "zero")}
    answer = choose_layout(
        config,
        inputs["device"],
        inputs["devices"],
        sequence_length=inputs["seq_len"],
        batch_tokens=inputs["global_batch_tokens"],
        arithmetic=arithmetic(inputs),
        optimizer=inputs["optimizer"],
        utilization=inputs["mfu"],
        devices_per_node=inputs["devices_per_node"],
        fixed={name: size for name, size in sizes.items() if size is not None},
    )
    columns = [
        ("layout", "text"), ("step, s", "number"), ("MFU", "percent"), ("bubble", "percent"),
        ("exposed traffic", "percent"), ("a device", "text"), ("how", "text"),
    ]  # fmt: skip
    rows = [
        (
            choice.name(), round(choice.step.seconds, 4), choice.step.utilization,
            choice.step.bubble_seconds / choice.step.seconds, choice.step.exposed_seconds / choice.step.seconds,
            in_bytes(choice.memory_bytes).replace(" ", "\u00a0").replace("\u00a0=", " ="), choice.settings(),
        )
        for choice in answer.choices
    ]  # fmt: skip
    sections = [table("layouts", "Quickest first", columns, rows, wide=True)]
    if answer.excluded:
        sections.append(lines("excluded", "Ruled out", [rule.sentence() for rule in answer.excluded], sentences=True))
    return Answer(tuple(answer.quantities()), (answer.plot(),), answer.reasons, tuple(sections), folded=True)


TRAINING = (
    Question(
        "model", "Model", "Parameters by part, bytes, FLOPs per token and cache of a model, from its shape alone.",
        fields("model", "set", "seq_len", "dtype"), model,
        sweeps=(
            Sweep("Cache of one sequence", "seq_len", LENGTHS,
                  {"kv_cache.sequence": "whole", "kv_cache.sequence_windowed": "that queries can still see"},
                  "KV cache"),
            Sweep("Work per token", "seq_len", LENGTHS,
                  {"flops.matrices": "matrices", "flops.attention": "attention", "flops.forward": "forward"}, "work"),
        ),
    ),
    Question(
        "train", "Training", "Arithmetic, time and tokens per second of a training run, memory and traffic.",
        fields("model", "tokens", "batch_tokens", "accelerator", "processes", "parallel", "tensor", "pipeline"), train,
        more=fields("set", "seq_len", "micro_batch_size", "mfu", "precision", "weights", "optimizer",
                    "activation_checkpointing", "offload", "expert", "interleaved", "devices_per_node", "corpus_tokens",
                    "inference_tokens", "usd_per_hour", "save_rate", "async_saves", "device_mtbf_hours"),
        sweeps=(
            Sweep("Time and devices", "processes", PROCESSES, {"time.total": "whole run"}, "time"),
            Sweep("Memory of a device", "processes", PROCESSES,
                  {"memory.ddp": "ddp", "memory.zero1": "zero1", "memory.zero2": "zero2", "memory.zero3": "zero3"},
                  "memory"),
        ),
    ),
    Question(
        "layout", "Layout", "How to spread training over devices: layouts by the time of a step, and why.",
        fields("model", "device", "devices", "seq_len", "global_batch_tokens"), layout,
        more=fields("set", "devices_per_node", "compute_share", "precision", "weights", "optimizer", "fixed_tensor",
                    "fixed_pipeline", "fixed_data", "fixed_expert", "zero"),
    ),
)  # fmt: skip
