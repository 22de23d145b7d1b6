"""`gristmill plan memory`: what training, fine-tuning or serving takes on each device, each figure with its formula.

Symbols as in plan/parameters.py; P parameters on a device before ZeRO cuts them, n data-parallel devices, g bytes of a
gradient, e of what is multiplied, N tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig
from . import activations, training
from .activations import Arithmetic, block_bytes
from .device import Device
from .finetune import ALIGNMENT, FROZEN_BITS, lora_memory_reduction_factor, lora_reduction_factor, lora_trainable_params
from .finetune_memory import Adapters, adapter_moments, alignment_memory, inference_memory
from .layouts import Layout
from .memory import SPARE, Memory, TrainingRun, part_moments, sizes
from .parallel_memory import in_flight, spread_run
from .parameters import total_params
from .parts import Part, parts
from .quantity import Quantity

PCIE_5_X16 = 32e9 * 16 * 128 / 130 / 8  # byte/s one way: 16 lanes of 32 Gbit/s, 128 of 130 bits (PCI Express 5.0)
NVME_BANDWIDTH = 7e9  # byte/s of one drive on four lanes of PCI Express 4.0, about what datasheets promise

MEANING = {
    "weights": "P g (zero2, zero3: / n)",
    "gradients": "P g (zero2, zero3: / n); one block's alone where they are not all there at the highest moment",
    "optimizer": "states (but ddp: / n)",
    "activations": "N tokens * bytes per token, and copies of weights in the products' type",
    "loss": "logits of a chunk, and the gradients of head and hidden states",
    "communication": "weights that are gathered, gradients on their way",
    "frozen": "weights that are not trained",
    "cache": "keys and values of the sequences that are written",
    "working": "what backward computes again and is working on; the optimizer's temporaries; libraries",
}
ZERO = {
    "ddp": "16 P", "zero1": "4 P + 12 P / n", "zero2": "2 P + 14 P / n", "zero3": "16 P / n",
}  # fmt: skip


@dataclass(frozen=True)
class MemoryQuestion:
    """A training run on a layout (that of `run` alone unless given): `micro_batches` of a step, whether tensor-parallel
    devices share out the residual stream's tokens, adapters beside a frozen model, or a method with several models."""

    config: ModelConfig
    arithmetic: Arithmetic
    run: TrainingRun
    layout: Layout | None = None
    micro_batches: int = 1
    sequence_parallel: bool = True
    adapters: Adapters | None = None
    method: str = "full"
    rollouts: int = 0

    @property
    def spread(self) -> Layout:
        return self.layout or Layout(data=self.run.processes, zero=training.STAGES[self.run.data])

    def check(self) -> None:
        """GristmillError for what cannot be."""
        check_length(self.config, self.run.sequence_length)
        for name, value in (("micro_batches", self.micro_batches), *sizes(self.run)):
            if value < 1:
                raise GristmillError(f"{name} must be at least 1, not {value}")
        if self.rollouts < 0:
            raise GristmillError(f"rollouts must be 0 or more, not {self.rollouts}")
        self.spread.check(self.config)
        if self.adapters is not None:
            self.adapters.check(self.config)
            if self.method != "full":
                raise GristmillError("adapters are reckoned without --method: their reference is the frozen model")
            if self.run.offload != "none":
                raise GristmillError("adapters are reckoned without --offload: their optimizer's state is small")

    def of_stages(self) -> list[tuple[Part | None, list[Memory]]]:
        """Each stage's part and its moments."""
        config, arithmetic, layout = self.config, self.arithmetic, self.spread
        of_stage = parts(config, layout)
        if self.method != "full":
            found = alignment_memory(
                config,
                arithmetic,
                self.run,
                self.method,
                layout,
                self.micro_batches,
                self.rollouts,
                self.sequence_parallel,
            )
            each = len(found) // len(of_stage)
            return [(part, found[each * i : each * (i + 1)]) for i, part in enumerate(of_stage)]
        run = spread_run(self.run, layout, self.micro_batches)
        stages: list[tuple[Part | None, list[Memory]]] = []
        for part in of_stage:
            flying = in_flight(part.stage, part.stages, self.micro_batches)
            if self.adapters is not None:
                stages.append(
                    (part, adapter_moments(part, arithmetic, run, self.adapters, flying, self.sequence_parallel))
                )
            else:
                stages.append((part, part_moments(part, arithmetic, run, flying, self.sequence_parallel)))
        return stages

    def peak(self) -> Memory:
        """The highest moment of the fullest device."""
        return max((memory for _, found in self.of_stages() for memory in found), key=lambda memory: memory.total)


def plan_memory(
    config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun, layout: Layout | None = None
) -> list[Quantity]:
    """`answer` of a training run."""
    return answer(MemoryQuestion(config, arithmetic, run, layout))


def answer(
    question: MemoryQuestion, card: Device | None = None, disk_bandwidth: float = NVME_BANDWIDTH
) -> list[Quantity]:
    """Peak memory of the fullest device by parts, its moments' totals, each stage's peak, activations by checkpointing
    mode, what is offloaded, adapters, states under ZeRO; beside a device's memory where one is given."""
    question.check()
    stages = question.of_stages()
    _, fullest = max(stages, key=lambda stage: max(memory.total for memory in stage[1]))
    peak = max(fullest, key=lambda memory: memory.total)
    rows = [
        Quantity(f"memory.{name}", size, "byte", MEANING[name])
        for name, size in peak.parts().items()
        if size or name not in ("frozen", "cache")
    ]
    rows.append(Quantity("memory.total", peak.total, "byte", f"sum, at its highest moment: {peak.moment}"))
    rows += [Quantity(f"moments.{m.moment.replace(' ', '_')}", m.total, "byte", _largest(m)) for m in fullest]
    rows += _layout_rows(question, stages)
    rows += _activation_rows(question)
    rows += _adapter_rows(question) + _copies_rows(question) + _offload_rows(question, card, disk_bandwidth)
    if question.spread.data > 1 and question.adapters is None:
        rows += _zero_rows(question)
    return rows + (device_rows(peak, card) if card is not None else [])


def inference_answer(
    config: ModelConfig,
    layout: Layout,
    sequences: int,
    sequence_length: int,
    weight_bits: float,
    kv_bits: float,
    card: Device | None = None,
) -> list[Quantity]:
    """The same of a server: weights, keys and values of so many whole sequences, working space of a step."""
    check_length(config, sequence_length)
    found = inference_memory(config, layout, sequences, sequence_length, weight_bits, kv_bits)
    fullest = max(found, key=lambda memory: memory.total)
    meaning = {
        "weights": f"the blocks' matrices at {weight_bits:.4g} bits, the rest at 16 or more",
        "cache": f"{-(-sequences // layout.data)} sequences of {sequence_length} tokens at {kv_bits:.4g} bits a number",
        "working": "a step's residual stream, widest results and logits; libraries",
    }
    rows = [Quantity(f"memory.{name}", getattr(fullest, name), "byte", formula) for name, formula in meaning.items()]
    rows.append(Quantity("memory.total", fullest.total, "byte", "sum, on the fullest device"))
    if layout.devices > 1:
        rows += [Quantity(f"stages.{number}", memory.total, "byte", _largest(memory))
                 for number, memory in enumerate(found)] if layout.pipeline > 1 else []  # fmt: skip
        rows.append(Quantity("layout.devices", layout.devices, "device", "tensor * pipeline * data"))
    return rows + (device_rows(fullest, card) if card is not None else [])


def check_length(config: ModelConfig, sequence_length: int) -> None:
    """GristmillError for a sequence that the model cannot read."""
    if config.positions == "learned" and sequence_length > config.max_seq_len:
        raise GristmillError(
            f"seq_len ({sequence_length}) is more than the model's {config.max_seq_len} learned positions"
        )
    if sequence_length > config.max_seq_len:
        raise GristmillError(
            f"seq_len ({sequence_length}) is more than the model's max_seq_len ({config.max_seq_len}): give fewer "
            f"tokens, or a model that is made for them (--set max_seq_len={sequence_length})"
        )


def device_rows(peak: Memory, card: Device) -> list[Quantity]:
    """The device's memory, and what is left of it or lacking."""
    room = usable_bytes(card)
    left = room - peak.total
    return [
        Quantity("device.memory", card.memory_bytes, "byte", f"{card.name}, as its driver reports it", card.label),
        Quantity("device.usable", room, "byte", f"{1 - SPARE:.0%} of it: free space lies in pieces"),
        Quantity("device.free" if left >= 0 else "device.lacking", abs(left), "byte",
                 "usable - total" if left >= 0 else "total - usable: it does not fit"),
    ]  # fmt: skip


def usable_bytes(card: Device) -> float:
    """What of a device's memory tensors can take."""
    return card.memory_bytes * (1 - SPARE)


def _layout_rows(question: MemoryQuestion, stages: list[tuple[Part | None, list[Memory]]]) -> list[Quantity]:
    layout = question.spread
    if layout.tensor * layout.pipeline * layout.expert == 1:
        return []
    held = [part.params for part, _ in stages if part is not None]
    rows = [
        Quantity("layout.devices", layout.devices, "device", "tensor * pipeline * data"),
        Quantity("layout.parameters", max(held), "param", "of the fullest device, before ZeRO cuts them"),
    ]
    if layout.pipeline > 1:
        for number, (_, found) in enumerate(stages):
            flying = in_flight(number, layout.pipeline, question.micro_batches)
            highest = max(found, key=lambda memory: memory.total)
            formula = f"{highest.moment}; {flying} micro-batches in flight, min(stages from here on, micro_batches)"
            rows.append(Quantity(f"stages.{number}", highest.total, "byte", formula))
    return rows


def _activation_rows(question: MemoryQuestion) -> list[Quantity]:
    config, arithmetic = question.config, question.arithmetic
    spread = question.spread.tensor * question.spread.pipeline > 1
    whole = ", of the whole model: before devices share them" if spread else ""
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
        rows.append(Quantity(f"activations.{mode}", kept, unit, formula + whole))
    return rows


def _adapter_rows(question: MemoryQuestion) -> list[Quantity]:
    adapters, config = question.adapters, question.config
    if adapters is None:
        return []
    trained = lora_trainable_params(config, adapters.rank, adapters.targets)
    params = total_params(config)
    return [
        Quantity("adapters.parameters", trained, "param",
                 f"sum of r (in + out), r = {adapters.rank}, beside {', '.join(adapters.targets)}"),
        Quantity("adapters.reduction_factor", lora_reduction_factor(params, trained), "x", "P / adapters"),
        Quantity("adapters.states_reduction_factor",
                 lora_memory_reduction_factor(params, trained, 16, FROZEN_BITS[adapters.base] / 8), "x",
                 "16 P / (frozen bytes + 16 adapters): states alone, mixed precision against these"),
        Quantity("adapters.frozen_bits", FROZEN_BITS[adapters.base], "bit/param",
                 "of the blocks' matrices, scales included; the rest in 16"),
    ]  # fmt: skip


def _copies_rows(question: MemoryQuestion) -> list[Quantity]:
    if question.method == "full":
        return []
    copies = ALIGNMENT[question.method]
    return [
        Quantity(
            "copies.trained", len(copies.trained), "model", ", ".join(copies.trained) + ", each of the policy's size"
        ),
        Quantity("copies.frozen", len(copies.frozen), "model", ", ".join(copies.frozen)),
    ]


def _offload_rows(question: MemoryQuestion, card: Device | None, disk_bandwidth: float) -> list[Quantity]:
    """State that lies elsewhere, and the seconds that its way there and back takes a step."""
    offload, arithmetic = question.run.offload, question.arithmetic
    if offload == "none" or question.adapters is not None:
        return []
    run = spread_run(question.run, question.spread, question.micro_batches)
    state = max(
        training_state_bytes(part, arithmetic, run) for part in parts(question.config, question.spread)
    )  # of the fullest device
    trained = len(ALIGNMENT[question.method].trained)
    state *= trained
    link = (card.host_link_bandwidth if card is not None else None) or PCIE_5_X16
    host, disk = (state, 0.0) if offload == "cpu" else (0.0, state)
    seconds = offload_seconds(state, link, disk_bandwidth if offload == "disk" else None)
    several = f", of {trained} models" if trained > 1 else ""
    formula = f"state / {link:.3g} byte/s of the host link, both ways at once"
    if offload == "disk":
        formula = f"the longer of state / {link:.3g} byte/s (link) and 2 state / {disk_bandwidth:.3g} byte/s (drive)"
    return [
        Quantity("offload.host", host, "byte", f"the optimizer's state of a device{several}, in host memory"),
        Quantity("offload.disk", disk, "byte", f"the optimizer's state of a device{several}, in files"),
        Quantity("offload.moved", 2 * state, "byte", "state, to the device and back, a step"),
        Quantity("offload.step", seconds, "s", formula),
    ]


def offload_seconds(state_bytes: float, link_bandwidth: float, disk_bandwidth: float | None = None) -> float:
    """Seconds a step for state that visits the device: it comes and goes at once over the link, one after the other
    from and to a drive. Nothing else hides it: it is there when gradients are."""
    link = state_bytes / link_bandwidth
    return link if disk_bandwidth is None else max(link, 2 * state_bytes / disk_bandwidth)


def training_state_bytes(part: Part, arithmetic: Arithmetic, run: TrainingRun) -> float:
    """Bytes of the optimizer's state that a device owns, wherever it lies."""
    weight = arithmetic.weight
    dense = training.state_bytes(part.dense_shapes, run.optimizer, weight)
    return part.shared(dense, training.state_bytes(part.expert_shapes, run.optimizer, weight), run.data != "ddp")


def _zero_rows(question: MemoryQuestion) -> list[Quantity]:
    """The table of Rajbhandari et al. 2020, with its 2 + 2 + 12 bytes a parameter."""
    layout = question.spread
    held = max(part.params for part in parts(question.config, layout))
    return [
        Quantity(f"zero.{data}", training.zero_bytes_per_process(held, layout.data, stage), "byte",
                 f"{ZERO[data]}, n = {layout.data}: states alone, as the ZeRO paper counts them")
        for data, stage in training.STAGES.items()
    ]  # fmt: skip


def _largest(moment: Memory) -> str:
    name, size = max(moment.parts().items(), key=lambda part: part[1])
    return f"most of it {name} ({size / moment.total:.0%})"
