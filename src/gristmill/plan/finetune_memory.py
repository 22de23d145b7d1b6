"""Memory of fine-tuning on a device: adapters beside frozen weights, and the copies that alignment holds.

A frozen matrix has no gradient and no state, and its input is not kept for the gradient of its weight: only that of a
matrix with an adapter is, and what passes between the adapter's two narrow matrices. All else of a block stays, since
gradients pass through it on their way down. Matrices in few bits are made whole one at a time, in forward and in
backward (Dettmers et al. 2023, equation 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic, block_bytes, recomputed_bytes
from .finetune import ALIGNMENT, FROZEN_BITS, LORA_TARGETS, lora_matrices, lora_trainable_params
from .kv_cache import kv_cache_bytes_per_token
from .layouts import Layout
from .memory import BATCH_BYTES, LIBRARY_BYTES, Memory, TrainingRun, ends_bytes, logits_chunk, sizes
from .names import nearest
from .parallel_memory import in_flight, spread_run, stage_memories
from .parts import Part, numbers, parts
from .training import Shape, state_bytes

INTO_ATTENTION = ("q", "k", "v", "q_down", "kv_down")


@dataclass(frozen=True)
class Adapters:
    """Adapters of rank r beside the matrices that `targets` name (plan/finetune.py), over a model that is frozen as
    `base`: fp32, bf16, fp16, int8 or nf4."""

    rank: int = 16
    targets: tuple[str, ...] = ("q", "k", "v", "output", "gate", "up", "down")
    base: str = "bf16"

    def check(self, config: ModelConfig) -> None:
        """GristmillError for what cannot be."""
        lora_trainable_params(config, self.rank, self.targets)
        if self.base not in FROZEN_BITS:
            raise GristmillError(f"the frozen model cannot be kept as {self.base!r}; {nearest(self.base, FROZEN_BITS)}")


def default_targets(config: ModelConfig) -> tuple[str, ...]:
    """All matrices of the blocks, as QLoRA has them (Dettmers et al. 2023, figure 2)."""
    found = []
    for name in LORA_TARGETS:
        try:
            lora_matrices(config, [name])
        except GristmillError:
            continue
        found.append(name)
    return tuple(name for name in found if name != "head")


def adapter_memory(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    adapters: Adapters,
    layout: Layout | None = None,
    micro_batches: int = 1,
    sequence_parallel: bool = True,
) -> Memory:
    """The highest moment on the fullest device while adapters are trained. `run.offload` has no meaning here."""
    layout = layout or Layout()
    adapters.check(config)
    for name, value in (("micro_batches", micro_batches), *sizes(run)):
        if value < 1:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    of_stage = parts(config, layout)
    run = spread_run(run, layout, micro_batches)
    found: list[Memory] = []
    for part in of_stage:
        flying = in_flight(part.stage, part.stages, micro_batches)
        found += adapter_moments(part, arithmetic, run, adapters, flying, sequence_parallel)
    return max(found, key=lambda memory: memory.total)


def adapter_moments(
    part: Part,
    arithmetic: Arithmetic,
    run: TrainingRun,
    adapters: Adapters,
    in_flight: int = 1,
    sequence_parallel: bool = True,
) -> list[Memory]:
    """The moments of a device that holds this part, see plan/memory.py."""
    config, e, w = part.blocks, arithmetic.operand, arithmetic.weight
    tokens, width = run.tokens, config.hidden_size
    cut = part.tensor if sequence_parallel else 1
    shapes = _shapes(part, adapters)
    trained = numbers(shapes)
    shared = run.processes if run.data == "zero3" else 1
    state = state_bytes(shapes, run.optimizer, w) / (run.processes if run.data != "ddp" else 1)
    gradients = trained * w / (run.processes if run.data in ("zero2", "zero3") else 1)
    copies = trained * e if e < w else 0  # of adapters, in the products' type
    matrices = [shape for layer in (*part.layers, *part.routed) for shape in layer]
    packed = adapters.base in ("int8", "nf4")
    largest = max(math.prod(shape[-2:]) for shape, _, _ in matrices)
    unpacked = largest * e if packed else 0
    gathered = numbers(matrices) / config.num_layers * 2 * e if shared > 1 else 0.0  # two blocks
    always = Memory(
        "", weights=trained * w, frozen=part_frozen_bytes(part, adapters.base) / shared, optimizer=state,
        gradients=gradients, communication=gathered, working=LIBRARY_BYTES[arithmetic.device] + unpacked,
    )  # fmt: skip
    again = run.checkpointing != "none"
    layers = range(config.num_layers)
    whole = [_block(config, layer, arithmetic, adapters, cut) for layer in layers]
    blocks = [block_bytes(config, layer, arithmetic, cut) for layer in layers]
    if run.checkpointing == "none":
        each = sum(whole)
    elif run.checkpointing == "sqrt":
        each = math.isqrt(config.num_layers) * blocks[0].input
    else:
        more = run.checkpointing == "selective"
        each = sum(block.input + (block.products if more else 0) for block in blocks)
    each += ends_bytes(part, arithmetic) / cut + BATCH_BYTES
    kept = in_flight * tokens * each + (0 if again else copies)
    repeated = recomputed_bytes(config, arithmetic, run.checkpointing, cut)
    if again:  # what is computed again is less by what frozen matrices need not keep
        repeated -= blocks[0].whole - whole[0]
    working = always.working + tokens * repeated
    stay = run.accumulates or run.processes > 1
    before = gradients if stay else 0.0
    of_one = before if stay else gradients / config.num_layers
    first = (in_flight - 1) * tokens * each + tokens * (whole[0] if not again else blocks[0].input)
    found = [
        replace(always, moment="last block", gradients=of_one, activations=kept, working=working),
        replace(always, moment="first block", activations=first, working=working),
        replace(always, moment="step"),
    ]
    if part.makes_logits:
        chunk = logits_chunk(tokens, config.vocab_size, e, arithmetic.device) * config.vocab_size
        on_cpu = arithmetic.device == "cpu" and e < 4
        loss = chunk * (e + (4 if on_cpu else 0)) + 2 * tokens * e * width
        space = LIBRARY_BYTES[arithmetic.device]
        found.insert(0, replace(always, moment="loss", gradients=before, activations=kept, loss=loss, working=space))
    return found


def part_frozen_bytes(part: Part, base: str) -> float:
    """Bytes of a device's part of the frozen model, see `finetune.frozen_bytes`."""
    routers = sum(part.blocks.has_experts(layer) for layer in range(part.blocks.num_layers))
    experts = part.blocks.experts
    router = routers * experts.num_experts * part.blocks.hidden_size if experts is not None else 0
    inside = sum(part.block_params) - router
    rows = 0
    if base == "int8":
        matrices = [shape for layer in (*part.layers, *part.routed) for shape in layer]
        rows = sum(math.prod(shape[:-1]) for shape, _, _ in matrices)
        rows -= routers * experts.num_experts if experts is not None else 0
    return inside * FROZEN_BITS[base] / 8 + 4 * rows + (part.params - inside) * (4 if base == "fp32" else 2)


def alignment_memory(
    config: ModelConfig,
    arithmetic: Arithmetic,
    run: TrainingRun,
    method: str,
    layout: Layout | None = None,
    micro_batches: int = 1,
    rollouts: int = 0,
    sequence_parallel: bool = True,
) -> list[Memory]:
    """The fullest device's memory at the moments of a method that holds several models (`ALIGNMENT`), all of the
    policy's size: `training` (one model after the other; the others' weights and states stay) and, where it writes
    answers itself, `generation`, with keys and values of `rollouts` sequences a replica (those of a micro-batch unless
    given). Frozen models are kept in the products' type, and cut by ZeRO 3."""
    if method not in ALIGNMENT:
        raise GristmillError(f"method {method!r} is not known; {nearest(method, ALIGNMENT)}")
    layout, copies = layout or Layout(), ALIGNMENT[method]
    others, e = len(copies.trained) - 1, arithmetic.operand
    found: list[Memory] = []
    peaks = stage_memories(config, arithmetic, run, layout, micro_batches, sequence_parallel)
    for part, peak in zip(parts(config, layout), peaks, strict=True):
        frozen = len(copies.frozen) * part.shared_params(layout.zero == 3) * e
        state = peak.optimizer * (1 + others)
        weights = peak.weights * (1 + others)
        staying = peak.gradients * (1 + others) if micro_batches > 1 or run.accumulates else peak.gradients
        found.append(
            replace(peak, moment="training", weights=weights, optimizer=state, gradients=staying, frozen=frozen)
        )
        if copies.generates:
            copy = part.params * e if layout.zero == 3 or e < arithmetic.weight else 0
            cache = (rollouts or run.micro_batch_size) * run.sequence_length * cache_bytes_per_token(part, e)
            found.append(
                Memory("generation", weights=weights, optimizer=state, frozen=frozen, cache=cache, communication=copy,
                       working=LIBRARY_BYTES[arithmetic.device])
            )  # fmt: skip
    return found


def cache_bytes_per_token(part: Part, bytes_per_element: float) -> float:
    """Bytes of a token's keys and values on a device. Latent attention's narrow vector stands on every one."""
    return kv_cache_bytes_per_token(part.blocks, bytes_per_element)


def inference_memory(
    config: ModelConfig,
    layout: Layout,
    sequences: int,
    sequence_length: int,
    weight_bits: float = 16,
    kv_bits: float = 16,
    step_tokens: int = 8192,
) -> list[Memory]:
    """Bytes of a server on a device of each stage: weights, keys and values of `sequences` of `sequence_length` tokens
    (those of each data-parallel replica), working space of a step of `step_tokens`. The blocks' matrices have
    `weight_bits`, scales included; what is outside of them at least 16."""
    for name, value in (("sequences", sequences), ("sequence_length", sequence_length)):
        if value < 1:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    from .serve_memory import step_bytes

    found = []
    for part in parts(config, layout):
        inside = sum(part.block_params)
        weights = inside * weight_bits / 8 + (part.params - inside) * max(weight_bits, 16) / 8
        share = -(-sequences // layout.data)
        cache = share * sequence_length * cache_bytes_per_token(part, kv_bits / 8)
        element = 4 if weight_bits > 16 else 2
        working = step_bytes(part.blocks, min(step_tokens, share * sequence_length), share, element)
        found.append(Memory("step", weights=weights, cache=cache, working=working + LIBRARY_BYTES["cuda"]))
    return found


def _shapes(part: Part, adapters: Adapters) -> list[Shape]:
    """Shapes of a device's adapters. A matrix that is cut has one of its adapter's narrow matrices whole."""
    config = part.blocks
    if config.experts is not None:
        config = config.model_copy(update={"experts": config.experts.model_copy(update={"num_experts": part.experts})})
    found: list[Shape] = []
    for name in adapters.targets:
        if name == "head" and not part.makes_logits:
            continue
        try:
            matrices = lora_matrices(config, [name])
        except GristmillError:  # a stage whose layers have none of these
            continue
        for into, out, count in matrices:
            found += [((adapters.rank, into), count, True), ((out, adapters.rank), count, True)]
    return found


def _block(config: ModelConfig, layer: int, arithmetic: Arithmetic, adapters: Adapters, cut: int) -> float:
    """Bytes per token that a block keeps beside adapters."""
    e, targets = arithmetic.operand, adapters.targets
    width = config.hidden_size / cut
    whole = block_bytes(config, layer, arithmetic, cut).whole
    entered = [any(name in targets for name in INTO_ATTENTION), "gate" in targets or "up" in targets]
    if config.parallel_block == "shared":
        entered = [any(entered)]
    whole -= e * width * sum(not needed for needed in entered)
    wide = _wide(config, layer)
    if "down" not in targets:
        whole -= e * wide
    if "output" not in targets and arithmetic.device == "cpu" and not arithmetic.compiled and e < 4:
        whole -= e * config.num_heads * config.value_dim
    whole -= _spared_by_norms(config, arithmetic) / cut
    return whole + e * adapters.rank * _narrow(config, layer, targets)


def _spared_by_norms(config: ModelConfig, arithmetic: Arithmetic) -> float:
    """A CPU's RMSNorm keeps what it has divided for the gradient of its gains, which frozen ones need not."""
    if arithmetic.device == "cuda" or arithmetic.compiled or config.norm != "rmsnorm" or config.norm_unit_offset:
        return 0.0
    norms = {"pre": 2, "post": 2, "sandwich": 4, "output": 2}[config.norm_position]
    inner = (config.num_heads + config.num_kv_heads) * config.head_dim if config.qk_norm != "none" else 0
    return 4 * ((1 if config.parallel_block == "shared" else norms) * config.hidden_size + inner)


def _wide(config: ModelConfig, layer: int) -> float:
    experts = config.experts
    if experts is None or not config.has_experts(layer):
        return config.intermediate_size
    return experts.top_k * experts.intermediate_size + experts.shared_intermediate_size


def _narrow(config: ModelConfig, layer: int, targets: Sequence[str]) -> float:
    """Adapters that a token passes in a block."""
    feed_forward = sum(name in targets for name in ("gate", "up", "down"))
    rest = sum(name in targets for name in LORA_TARGETS if name not in ("gate", "up", "down", "head"))
    experts = config.experts
    if experts is None or not config.has_experts(layer):
        return rest + feed_forward
    return rest + feed_forward * (experts.top_k + bool(experts.shared_intermediate_size))
