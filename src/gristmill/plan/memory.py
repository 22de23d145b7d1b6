"""The most memory that a training run needs at once, from its shape and settings.

A step has six moments at which memory may be highest, and the estimate is the highest of them:
  loss      the whole forward pass is kept, and the head's logits are being made, a chunk at a time
  backward  the loss hands its gradients on
  last block, first block    the model's end and its beginning are in backward: there all activations and few gradients
            are alive, here few activations and all gradients
  end       backward reaches the embedding
  step      the optimizer works
Each is a sum of what lives then. Symbols as in plan/parameters.py and plan/activations.py; N tokens of a micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic, Checkpointing, block_bytes, cast_bytes, kept_bytes, norm_input, recomputed_bytes
from .parameters import head_params, total_params
from .training import DataParallel, optimizer_bytes, parameter_shapes

Offload = Literal["none", "cpu", "disk"]

BATCH_BYTES = 40  # per token: ids, targets, weights, positions and documents' numbers, and masks between them
LIBRARY_BYTES = {"cuda": 64 * 2**20, "cpu": 0}  # cuBLAS's two workspaces of 32 MiB on the device

# Numbers of parameters that an optimizer updates in one go, and the bytes of each that this takes beside the state
# (train/optimizers): more than one portion only where a single parameter is larger.
PORTIONS = {"adamw": (0, 0.0), "muon": (2**25, 24.0), "adam8bit": (2**23, 32.0), "adafactor": (2**23, 24.0)}
OFFLOAD_PORTION = 2**24  # numbers of parameters whose state is on the device at a time, three times


@dataclass(frozen=True)
class TrainingRun:
    """What memory depends on beside the model. `micro_batch_size` sequences of `sequence_length` tokens go through each
    process at once; `accumulates` says that a step sums the gradients of several."""

    micro_batch_size: int
    sequence_length: int
    accumulates: bool = False
    optimizer: str = "adamw"
    checkpointing: Checkpointing = "none"
    offload: Offload = "none"
    data: DataParallel = "ddp"
    processes: int = 1

    @property
    def tokens(self) -> int:
        """N."""
        return self.micro_batch_size * self.sequence_length


@dataclass(frozen=True)
class Memory:
    """Bytes that live in each process at the highest moment, and which that is."""

    moment: str
    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0  # copies of weights in the lower type among them
    loss: float = 0  # logits of a chunk, and the gradients that the loss makes at once
    communication: float = 0  # weights gathered and gradients on their way between processes
    working: float = 0  # what is computed again, optimizer's temporaries, libraries

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """All but the moment, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}


def peak_memory(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun) -> Memory:
    """The highest moment of a training step. GristmillError for settings that cannot be."""
    for name in ("micro_batch_size", "sequence_length", "processes"):
        if getattr(run, name) < 1:
            raise GristmillError(f"{name} must be at least 1, not {getattr(run, name)}")
    return max(moments(config, arithmetic, run), key=lambda memory: memory.total)


def logits_chunk(tokens: int, vocab_size: int, operand: int, device: str) -> int:
    """For how many tokens logits of `operand` bytes are made at a time (train/losses.py)."""
    size, least, tile = (2**23, 256, 1) if device == "cpu" else (2**29, 4096, 128)
    most = max(size // (vocab_size * (4 if device == "cpu" else operand)), least)
    chunks = max(-(-tokens // most), 1)
    return max(-(-tokens // (chunks * tile)) * tile, 1)


def moments(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun) -> list[Memory]:
    """All six, in their order."""
    states = _States(config, arithmetic, run)
    tokens, width = run.tokens, config.hidden_size
    e, w, table = arithmetic.operand, arithmetic.weight, head_params(config)
    always = Memory(
        "", weights=states.weights, optimizer=states.optimizer, working=LIBRARY_BYTES[arithmetic.device],
        communication=states.gathered,
    )  # fmt: skip
    kept = tokens * (kept_bytes(config, arithmetic, run.checkpointing) + _ends(config, arithmetic) + BATCH_BYTES)
    kept += states.casts_kept
    before = states.whole_gradients if states.gradients_stay else 0.0
    head_gradient = table * 4
    on_cpu = arithmetic.device == "cpu"
    # A GPU turns logits into their gradient where they stand; a CPU's operations work on float32 copies of them.
    slope = 4 if on_cpu and config.logit_softcap is not None else 0
    each_logit = e + slope + (4 if on_cpu and e < 4 else 0)
    chunk = logits_chunk(tokens, config.vocab_size, e, arithmetic.device) * config.vocab_size * each_logit
    copies = table * ((e if e < w else 0) + (e if on_cpu and e < 4 else 0))  # of the head; of a chunk's gradient of it
    blocks = states.gradients_of_block
    # A tied table's gradient waits for that of the embedding; an own head's is added to what is there.
    pending = 0 if states.gradients_stay and not config.tie_embeddings else head_gradient
    recomputed = tokens * recomputed_bytes(config, arithmetic, run.checkpointing) + states.casts_made_again
    block = block_bytes(config, 0, arithmetic)
    last_kept = {"none": block.whole, "selective": block.input + block.products}.get(run.checkpointing, block.input)
    table_again = table * 4 * (2 if config.tie_embeddings else 1)
    return [
        replace(always, moment="loss", gradients=before, activations=kept,
                loss=2 * tokens * e * width + head_gradient + chunk + copies),
        replace(always, moment="backward", gradients=before, activations=kept,
                loss=2 * tokens * e * width + 2 * head_gradient),
        replace(always, moment="last block", gradients=before + blocks, activations=kept, loss=pending,
                working=always.working + recomputed, communication=always.communication + states.on_their_way),
        replace(always, moment="first block", gradients=states.gradients_at_first, loss=pending * config.tie_embeddings,
                activations=tokens * (last_kept + _ends(config, arithmetic) + BATCH_BYTES) + states.casts_of_one,
                working=always.working + recomputed,
                communication=always.communication + states.on_their_way),
        replace(always, moment="end", gradients=states.gradients_at_end,
                activations=tokens * (BATCH_BYTES + width * (4 + arithmetic.stream(config))), loss=table_again,
                communication=always.communication + states.on_their_way),
        replace(always, moment="step", gradients=states.whole_gradients, communication=0,
                working=always.working + states.updating),
    ]  # fmt: skip


class _States:
    """Bytes that do not depend on the number of tokens."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun):
        w, e, n = arithmetic.weight, arithmetic.operand, run.processes
        params = total_params(config)
        sharded = n > 1 and run.data in ("zero2", "zero3")
        per_block = [
            sum(math.prod(shape) * count for shape, count, inside in parameter_shapes(_one(config, layer)) if inside)
            for layer in range(config.num_layers)
        ]
        largest, outside = max(per_block), params - sum(per_block)
        self.weights = params * w / (n if sharded else 1)
        self.whole_gradients = self.weights
        # Buckets of DistributedDataParallel are made once; sums over micro-batches stay between them.
        self.gradients_stay = run.accumulates or (n > 1 and not sharded)
        self.gradients_at_end = self.whole_gradients
        if run.accumulates and arithmetic.compiled and not sharded and n == 1:
            self.gradients_at_end *= 2  # compiled, backward hands all of its gradients out at once
        stretch = 1
        if run.checkpointing == "sqrt":
            stretch = -(-config.num_layers // math.isqrt(config.num_layers))
        self.gradients_at_first = self.gradients_at_end
        if not sharded and (not self.gradients_stay or self.gradients_at_end > self.whole_gradients):
            self.gradients_at_first -= w * (sum(per_block[:stretch]) + head_params(config))  # these are yet to come
        state = optimizer_bytes(config, run.optimizer, w)
        owners = n if run.data != "ddp" else 1
        # To a CPU its own memory is no other place; what lies in files the system can write back and drop.
        on_cpu = arithmetic.device == "cpu"
        elsewhere = run.offload == "disk" or (run.offload == "cpu" and not on_cpu)
        self.optimizer = 0.0 if elsewhere else state / owners
        portion, each = PORTIONS[run.optimizer]
        largest_parameter = max(math.prod(shape) for shape, _, _ in parameter_shapes(config))
        # A portion counts whole parameters, of which a process holds its share.
        self.updating = each * min(max(portion, largest_parameter), params) / (n if sharded else 1) if each else 0.0
        if elsewhere and not on_cpu:  # a CPU updates it where it lies
            visiting = min(3 * max(OFFLOAD_PORTION, largest_parameter), params) * state / params
            self.updating += visiting / owners
        self.gathered = self.on_their_way = 0.0
        if sharded:
            self.gathered = e * params if run.data == "zero2" else e * (outside + 3 * largest)
            self.on_their_way = (e + 4) * largest
        inside = [math.prod(shape) for shape, _, inside in parameter_shapes(config) if inside]
        # On its way to a weight's gradient each is in the products' type first.
        self.gradients_of_block = 0 if sharded else largest * w + (max(inside) * e if e < w else 0)
        casts = [0 if sharded else cast_bytes(config, layer, arithmetic) for layer in range(config.num_layers)]
        again = run.checkpointing != "none"
        self.casts_kept = 0 if again else sum(casts)
        self.casts_made_again = stretch * max(casts) if again else 0
        self.casts_of_one = 0 if again else max(casts)


def _one(config: ModelConfig, layer: int) -> ModelConfig:
    """The shape of one of the blocks alone."""
    experts = config.experts
    if experts is not None:
        experts = None if not config.has_experts(layer) else experts.model_copy(update={"dense_layers": ()})
    return config.model_copy(update={"num_layers": 1, "experts": experts, "attention_pattern": ("full",)})


def _ends(config: ModelConfig, arithmetic: Arithmetic) -> float:
    """Bytes per token that the embedding's norm and the last norm keep; rotary angles are shared by the rows."""
    norms = (config.norm_position != "post") + config.embedding_norm
    given = norm_input(config, arithmetic, arithmetic.stream(config))
    return norms * (given * config.hidden_size + 8)
