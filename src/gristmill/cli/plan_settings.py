"""The settings that a training run is planned with: the command line's, else a recipe's, else defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GristmillError
from ..hardware import cpu_has_bf16

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.activations import Arithmetic
    from ..plan.memory import TrainingRun
    from ..train.config import PretrainConfig

DEFAULTS: dict[str, Any] = {
    "micro_batch_size": 1,
    "accumulate": False,
    "precision": "bf16",
    "weights": "fp32",
    "optimizer": "adamw",
    "activation_checkpointing": "none",
    "offload": "none",
    "parallel": "ddp",
}
PROCESSES, DEVICE = 1, "cuda"


def recipe_base(source: str) -> PretrainConfig | None:
    """Section `base` of the recipe that `source` is; None where it is none."""
    from ..recipe import load_recipe

    return load_recipe(source).base if Path(source).is_file() and Path(source).suffix != ".json" else None


def training_settings(
    config: ModelConfig, base: PretrainConfig | None, seq_len: int | None, flags: dict[str, Any]
) -> tuple[Arithmetic, TrainingRun]:
    """What the planner takes. `flags` are those of the command line by name, None where one was not given; `base`
    stands in for them, and says how long its sequences are. GristmillError for values that are not known."""
    from ..plan.activations import Arithmetic
    from ..plan.memory import TrainingRun

    given = {name: value for name, value in flags.items() if value is not None}
    known: dict[str, Any] = {"processes": PROCESSES, "device": DEVICE}
    if base is not None and base.training.device != "auto":
        known["device"] = base.training.device
    known |= {name: given[name] for name in known if name in given}
    compiled = known["device"] == "cuda"
    length = config.max_seq_len
    if base is None:
        chosen = DEFAULTS | known | given
    else:
        chosen = known | _of_recipe(base, given.get("micro_batch_size"), **known) | given
        length = base.sequence_length
        if base.training.compile != "auto":
            compiled = base.training.compile != "off"
    _check(chosen)
    arithmetic = Arithmetic(
        chosen["precision"], chosen["weights"], chosen["device"], flags["compile"] if "compile" in given else compiled
    )
    return arithmetic, TrainingRun(
        micro_batch_size=chosen["micro_batch_size"],
        sequence_length=length if seq_len is None else seq_len,
        accumulates=chosen["accumulate"],
        optimizer=chosen["optimizer"],
        checkpointing=chosen["activation_checkpointing"],
        offload=chosen["offload"],
        data=chosen["parallel"],
        processes=chosen["processes"],
    )


def _of_recipe(base: PretrainConfig, micro_batch_size: int | None, processes: int, device: str) -> dict[str, Any]:
    training = base.training
    if processes < 1 or training.batch_size % processes:
        raise GristmillError(
            f"base.training.batch_size ({training.batch_size}) cannot be shared equally by {processes} processes"
        )
    share = training.batch_size // processes
    micro = micro_batch_size or min(training.micro_batch_size or share, share)
    native = "bf16" if device == "cuda" or cpu_has_bf16() else "fp32"
    return {
        "micro_batch_size": micro,
        "accumulate": micro < share,
        "precision": native if training.precision == "auto" else training.precision,
        "weights": training.weights,
        "optimizer": training.optimizer,
        "activation_checkpointing": training.memory.activation_checkpointing,
        "offload": training.memory.offload,
        "parallel": training.parallel.data,
    }


def _check(chosen: dict[str, Any]) -> None:
    from ..plan.memory import PORTIONS

    known = {
        "precision": ("fp32", "bf16", "fp16", "fp8"),
        "weights": ("fp32", "bf16"),
        "optimizer": tuple(PORTIONS),
        "activation_checkpointing": ("none", "sqrt", "block", "selective"),
        "offload": ("none", "cpu", "disk"),
        "parallel": ("ddp", "zero1", "zero2", "zero3"),
        "device": ("cuda", "cpu"),
    }
    for name, values in known.items():
        if chosen[name] not in values:
            option = name.replace("_", "-")
            raise GristmillError(f"--{option} {chosen[name]}: use one of {', '.join(values)}")
    if chosen["weights"] == "bf16" and chosen["precision"] in ("fp32", "fp16"):
        raise GristmillError(f"--weights bf16 cannot be multiplied in {chosen['precision']}; use --precision bf16")
