"""The most memory that a training run needs at once, from its shape and settings.

A step has six moments at which memory may be highest, and the estimate is the highest of them:
  loss      the whole forward pass is kept, and the head's logits are being made, a chunk at a time
  backward  the loss hands its gradients on
  last block, first block    the model's end and its beginning are in backward: there all activations and few gradients
            are alive, here few activations and all gradients
  end       backward reaches the embedding
  step      the optimizer works
Each is a sum of what lives then. Symbols as in plan/parameters.py and plan/activations.py; N tokens of a micro-batch.

On several devices each has its part (plan/parts.py), and the fullest one counts. A stage of a pipeline keeps several
micro-batches (`in_flight`); those without the head have no moment of the loss, those without the embedding no end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic, Checkpointing, block_bytes, kept_bytes, norm_input, recomputed_bytes
from .parts import Part, numbers, whole
from .training import DataParallel, state_bytes

Offload = Literal["none", "cpu", "disk"]

SPARE = 0.05  # of a device's memory: what an allocator cannot hand out because free space lies in pieces
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
    frozen: float = 0  # weights that are not trained: beside adapters, or of reference and reward models
    cache: float = 0  # keys and values, where answers are written
    working: float = 0  # what is computed again, optimizer's temporaries, libraries

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """All but the moment, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}


def peak_memory(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun) -> Memory:
    """The highest moment of a training step. GristmillError for settings that cannot be."""
    for name, value in sizes(run):
        if value < 1:
            raise GristmillError(f"{name} must be at least 1, not {value}")
    return max(moments(config, arithmetic, run), key=lambda memory: memory.total)


def logits_chunk(tokens: int, vocab_size: int, operand: int, device: str) -> int:
    """For how many tokens logits of `operand` bytes are made at a time (train/losses.py)."""
    size, least, tile = (2**23, 256, 1) if device == "cpu" else (2**29, 8192, 128)
    most = max(size // (vocab_size * (4 if device == "cpu" else operand)), least)
    chunks = max(-(-tokens // most), 1)
    return max(-(-tokens // (chunks * tile)) * tile, 1)


def moments(config: ModelConfig, arithmetic: Arithmetic, run: TrainingRun) -> list[Memory]:
    """All six, in their order."""
    return part_moments(whole(config, run.processes), arithmetic, run)


def sizes(run: TrainingRun) -> list[tuple[str, int]]:
    """What of a run must be at least 1."""
    return [(name, getattr(run, name)) for name in ("micro_batch_size", "sequence_length", "processes")]


def part_moments(
    part: Part, arithmetic: Arithmetic, run: TrainingRun, in_flight: int = 1, sequence_parallel: bool = True
) -> list[Memory]:
    """The moments of a device that holds this part."""
    config, states = part.blocks, _States(part, arithmetic, run)
    tokens, width = run.tokens, config.hidden_size
    e, w = arithmetic.operand, arithmetic.weight
    cut = part.tensor if sequence_parallel else 1  # of the residual stream
    table = config.vocab_size * width if part.makes_logits else 0
    always = Memory(
        "", weights=states.weights, optimizer=states.optimizer, working=LIBRARY_BYTES[arithmetic.device],
        communication=states.gathered,
    )  # fmt: skip
    ends = ends_bytes(part, arithmetic) / cut + BATCH_BYTES
    each = tokens * (kept_bytes(config, arithmetic, run.checkpointing, cut) + ends)
    behind = (in_flight - 1) * each  # what other micro-batches keep
    kept = behind + each + states.casts_kept
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
    pending = 0 if states.gradients_stay and not part.tied else head_gradient
    recomputed = tokens * recomputed_bytes(config, arithmetic, run.checkpointing, cut) + states.casts_made_again
    block = block_bytes(config, 0, arithmetic, cut)
    last_kept = {"none": block.whole, "selective": block.input + block.products}.get(run.checkpointing, block.input)
    table_again = config.vocab_size * width * 4 * (2 if part.tied else 1)
    moving = always.communication + states.on_their_way + _between_devices(part, arithmetic, tokens, cut)
    found = [
        replace(always, moment="last block", gradients=before + blocks, activations=kept, loss=pending,
                working=always.working + recomputed, communication=moving),
        replace(always, moment="first block", gradients=states.gradients_at_first, loss=pending * part.tied,
                activations=behind + tokens * (last_kept + ends) + states.casts_of_one,
                working=always.working + recomputed, communication=moving),
        replace(always, moment="step", gradients=states.whole_gradients, communication=0,
                working=always.working + states.updating),
    ]  # fmt: skip
    if part.makes_logits:
        found[:0] = [
            replace(always, moment="loss", gradients=before, activations=kept,
                    loss=2 * tokens * e * width + head_gradient + chunk + copies),
            replace(always, moment="backward", gradients=before, activations=kept,
                    loss=2 * tokens * e * width + 2 * head_gradient),
        ]  # fmt: skip
    if part.embeds:
        activations = behind + tokens * (BATCH_BYTES + width * (4 + arithmetic.stream(config)))
        found[-1:-1] = [
            replace(always, moment="end", gradients=states.gradients_at_end, activations=activations, loss=table_again,
                    communication=moving)
        ]  # fmt: skip
    return found


def _between_devices(part: Part, arithmetic: Arithmetic, tokens: int, cut: int) -> float:
    """Bytes on their way inside a replica: a tensor-parallel block's input and its gradient, gathered along the
    sequence; what comes from and goes to the neighbouring stages."""
    width, sides = part.blocks.hidden_size, (not part.embeds) + (not part.makes_logits)
    gathered = 2 * tokens * width * arithmetic.operand if cut > 1 else 0
    return gathered + sides * tokens * width * arithmetic.stream(part.blocks) / cut


class _States:
    """Bytes that do not depend on the number of tokens."""

    def __init__(self, part: Part, arithmetic: Arithmetic, run: TrainingRun):
        w, e, n = arithmetic.weight, arithmetic.operand, run.processes
        config, params, per_block = part.blocks, part.params, part.block_params
        sharded = n > 1 and run.data in ("zero2", "zero3")
        largest, outside = max(per_block), params - sum(per_block)
        self.weights = part.shared_params(sharded) * w
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
            table = config.vocab_size * config.hidden_size if part.embeds else 0
            self.gradients_at_first -= w * (sum(per_block[:stretch]) + table)  # these are yet to come
        matrices = [shape for layer in (*part.layers, *part.routed) for shape in layer]
        every = [*part.ends, *matrices]
        dense = state_bytes(part.dense_shapes, run.optimizer, w)
        routed = state_bytes(part.expert_shapes, run.optimizer, w)
        # To a CPU its own memory is no other place; what lies in files the system can write back and drop.
        on_cpu = arithmetic.device == "cpu"
        elsewhere = run.offload == "disk" or (run.offload == "cpu" and not on_cpu)
        self.state = part.shared(dense, routed, run.data != "ddp")
        self.optimizer = 0.0 if elsewhere else self.state
        portion, each = PORTIONS[run.optimizer]
        largest_parameter = max(math.prod(shape) for shape, _, _ in every)
        # A portion counts whole parameters, of which a process holds its share.
        self.updating = each * min(max(portion, largest_parameter), params) / (n if sharded else 1) if each else 0.0
        if elsewhere and not on_cpu:  # a CPU updates it where it lies
            self.updating += self.state * min(3 * max(OFFLOAD_PORTION, largest_parameter), params) / params
        self.gathered = self.on_their_way = 0.0
        if sharded:
            self.gathered = e * params if run.data == "zero2" else e * (outside + 3 * largest)
            self.on_their_way = (e + 4) * largest
        # On its way to a weight's gradient each is in the products' type first.
        widest = max(numbers([(shape, 1, True)]) for shape, _, _ in matrices)
        self.gradients_of_block = 0 if sharded else largest * w + (widest * e if e < w else 0)
        layers = range(config.num_layers)
        casts = [0 if sharded else part.cast_bytes(layer, arithmetic) for layer in layers]
        again = run.checkpointing != "none"
        self.casts_kept = 0 if again else sum(casts)
        self.casts_made_again = stretch * max(casts) if again else 0
        self.casts_of_one = 0 if again else max(casts)


def ends_bytes(part: Part, arithmetic: Arithmetic) -> float:
    """Bytes per token that the embedding's norm and the last norm keep; rotary angles are shared by the rows."""
    config = part.blocks
    norms = (config.norm_position != "post" and part.makes_logits) + (config.embedding_norm and part.embeds)
    given = norm_input(config, arithmetic, arithmetic.stream(config))
    return norms * (given * config.hidden_size + 8)
