"""The memory of a training run on each device of a layout: tensor, pipeline, data and expert parallelism, ZeRO."""

from __future__ import annotations

from dataclasses import replace

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic
from .layouts import Layout
from .memory import Memory, TrainingRun, part_moments, sizes
from .parts import parts
from .training import STAGES


def memory_per_device(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    layout: Layout,
    micro_batches: int = 1,
    sequence_parallel: bool = True,
) -> Memory:
    """The highest moment on the fullest device of a layout: that of the stage that needs most, see `stage_memories`."""
    return max(stage_memories(config, arithmetic, run, layout, micro_batches, sequence_parallel), key=lambda m: m.total)


def stage_memories(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    layout: Layout,
    micro_batches: int = 1,
    sequence_parallel: bool = True,
) -> list[Memory]:
    """The highest moment of a device of each stage. The layout says how many devices share what; `run.data` and
    `run.processes` are left aside. `micro_batches` of `run.micro_batch_size` sequences make a step of a replica.
    GristmillError names the rule that a layout breaks, or a size that cannot be."""
    for name, value in (("micro_batches", micro_batches), *sizes(run)):
        if value < 1:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    of_stage = parts(config, layout)
    run = spread_run(run, layout, micro_batches)
    found = []
    for part in of_stage:
        kept = in_flight(part.stage, part.stages, micro_batches)
        highest = part_moments(part, arithmetic, run, kept, sequence_parallel)
        found.append(max(highest, key=lambda memory: memory.total))
    return found


def spread_run(run: TrainingRun, layout: Layout, micro_batches: int) -> TrainingRun:
    """The run with what its layout says of data parallelism, and of gradients summed over micro-batches."""
    data = next(name for name, stage in STAGES.items() if stage == layout.zero)
    return replace(run, data=data, processes=layout.data, accumulates=run.accumulates or micro_batches > 1)


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches of which a stage keeps activations when it is fullest, one forward and one backward in turn:
    min(stages behind it and itself, all) (Narayanan et al. 2021, section 2.2.1)."""
    return min(stages - stage, micro_batches)
