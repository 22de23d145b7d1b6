"""Whether a training run fits a device, and which settings would make it fit where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from ..errors import GristmillError
from ..model.config import ModelConfig
from .device import Device
from .finetune_memory import Adapters, default_targets, inference_memory
from .layouts import Layout
from .memory_plan import MemoryQuestion, usable_bytes
from .quantity import in_bytes
from .serve_memory import kv_bits as cache_bits
from .serve_memory import weight_bits as served_bits


def verdict(question: MemoryQuestion, card: Device) -> list[str]:
    """Whether it fits the device, by how much, and the first settings that would where it does not: the cheapest on as
    many devices, else the fewest devices, and adapters where the whole model is trained."""
    peak, room = question.peak().total, usable_bytes(card)
    if peak <= room:
        return [f"It fits {card.name}: {in_bytes(room - peak)} of {in_bytes(room)} are left."]
    said = [f"It does not fit {card.name}: {in_bytes(peak - room)} more than the {in_bytes(room)} it can give."]
    if found := _first(_promising(question, room), room):
        return [*said, f"It would fit with {found}."]
    said.append("No setting makes it fit on as many devices.")
    if found := _first(larger_layouts(question), room):
        said.append(f"On more devices it would fit with {found} each.")
    if found := _first(with_adapters(question), room):
        said.append(f"With adapters it would fit: {found}.")
    return said


def _promising(question: MemoryQuestion, room: float) -> Iterator[tuple[list[str], MemoryQuestion]]:
    """`smaller_questions` without those whose smallest micro-batch does not fit either."""
    hopeless: dict[tuple[str, int, str], bool] = {}
    for changes, other in smaller_questions(question):
        key = (other.run.offload, other.spread.zero, other.run.checkpointing)
        if key not in hopeless:
            more = question.micro_batches * question.run.micro_batch_size
            least = replace(other, run=replace(other.run, micro_batch_size=1), micro_batches=more)
            hopeless[key] = least.peak().total > room
        if not hopeless[key]:
            yield changes, other


def _first(candidates: Iterator[tuple[list[str], MemoryQuestion]], room: float) -> str | None:
    for changes, other in candidates:
        total = other.peak().total
        if total <= room:
            return f"{' '.join(changes)}: {in_bytes(total)}"
    return None


def with_adapters(question: MemoryQuestion) -> Iterator[tuple[list[str], MemoryQuestion]]:
    """Adapters of rank 16 beside the frozen model, in 16 bits, then in 4, then with micro-batches of one sequence and
    blocks computed again."""
    if question.adapters is not None or question.method != "full":
        return
    targets, plain = default_targets(question.config), replace(question.run, offload="none")
    small = replace(plain, micro_batch_size=1, checkpointing="block")
    for run, more in ((plain, []), (small, ["--micro-batch-size 1", "--activation-checkpointing block"])):
        for base in ("bf16", "nf4"):
            changes = ["--lora-rank 16", f"--base {base}", *more]
            yield changes, replace(question, run=run, adapters=Adapters(16, targets, base))


def smaller_questions(question: MemoryQuestion) -> Iterator[tuple[list[str], MemoryQuestion]]:
    """The same with settings that need less, the cheapest first: smaller micro-batches, more checkpointing, more of
    ZeRO, state in host memory; all sizes under each of them."""
    run, layout = question.run, question.spread
    modes = _from(("none", "selective", "block"), run.checkpointing)
    stages = [stage for stage in range(4) if stage >= layout.zero] if layout.data > 1 else [layout.zero]
    places = _from(("none", "cpu"), run.offload) if question.adapters is None else (run.offload,)
    sizes = [run.micro_batch_size // 2**power for power in range(run.micro_batch_size.bit_length())]
    for place, stage, mode, size in product(places, stages, modes, sizes):
        pairs = [
            ("--micro-batch-size", run.micro_batch_size, size),
            ("--activation-checkpointing", run.checkpointing, mode),
            ("--zero", layout.zero, stage),
            ("--offload", run.offload, place),
        ]
        changes = [f"{name} {new}" for name, old, new in pairs if old != new]
        if changes:
            less = replace(run, micro_batch_size=size, checkpointing=mode, offload=place)  # type: ignore[arg-type]
            more = question.micro_batches * -(-run.micro_batch_size // size)
            yield changes, replace(question, run=less, layout=replace(layout, zero=stage), micro_batches=more)


def larger_layouts(question: MemoryQuestion) -> Iterator[tuple[list[str], MemoryQuestion]]:
    """The same on twice as many devices, then four times and so on to 1,024, micro-batches of one sequence, blocks
    computed again: more data parallelism with ZeRO 3, tensor parallelism within a node of eight, then a pipeline."""
    run = replace(question.run, micro_batch_size=1, checkpointing="block")
    layout, config = question.spread, question.config
    for power in range(1, 11):
        times = 2**power
        tensor = min(times, max(8 // layout.tensor, 1))
        options = [replace(layout, data=layout.data * times, zero=3)]
        options.append(replace(layout, tensor=layout.tensor * tensor, pipeline=layout.pipeline * (times // tensor)))
        for option in options:
            try:
                option.check(config)
            except GristmillError:
                continue
            changes = [
                f"--{name} {getattr(option, name)}" for name in ("tensor", "pipeline", "data", "zero")
                if getattr(option, name) != getattr(layout, name)
            ]  # fmt: skip
            changes += ["--micro-batch-size 1"] * (question.run.micro_batch_size > 1)
            changes += ["--activation-checkpointing block"] * (question.run.checkpointing != "block")
            yield changes, replace(question, run=run, layout=option)


def _from(order: tuple[str, ...], now: str) -> tuple[str, ...]:
    return order[order.index(now) :] if now in order else (now,)


def serving_verdict(
    config: ModelConfig,
    layout: Layout,
    sequences: int,
    sequence_length: int,
    weight_bits: float,
    kv_bits: float,
    card: Device,
) -> list[str]:
    """The same of a server: with fewer bits of the weights, then of the cache too, then on more devices."""

    def total(layout: Layout, weights: float, cache: float) -> float:
        found = inference_memory(config, layout, sequences, sequence_length, weights, cache)
        return max(memory.total for memory in found)

    room, needed = usable_bytes(card), total(layout, weight_bits, kv_bits)
    if needed <= room:
        return [f"It fits {card.name}: {in_bytes(room - needed)} of {in_bytes(room)} are left."]
    said = [f"It does not fit {card.name}: {in_bytes(needed - room)} more than the {in_bytes(room)} it can give."]
    choices = [(f"--weights {name}", served_bits(name), kv_bits) for name in ("int8", "int4")]
    choices += [(f"{text} --kv int8", bits, cache_bits("int8", config)) for text, bits, _ in choices]
    for text, bits, cache in choices:
        if bits < weight_bits and cache <= kv_bits and (least := total(layout, bits, cache)) <= room:
            said.append(f"It would fit with {text}: {in_bytes(least)}.")
            break
    for power in range(1, 7):
        option = replace(layout, tensor=layout.tensor * 2**power)
        try:
            least = total(option, weight_bits, kv_bits)
        except GristmillError:
            break
        if least <= room:
            said.append(f"On more devices it would fit with --tensor {option.tensor}: {in_bytes(least)} each.")
            break
    return said
