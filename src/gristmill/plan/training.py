"""What a training run takes, by pure formulas: arithmetic and time, bytes of states under ZeRO, traffic.

Symbols as in plan/parameters.py; P parameters, n processes, g bytes of a gradient, e bytes of what is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from ..model.config import ModelConfig
from .activations import Arithmetic, linear_layers
from .parameters import total_params

DataParallel = Literal["ddp", "zero1", "zero2", "zero3"]
Shape = tuple[tuple[int, ...], int, bool]  # of a parameter, how many there are, whether they stand in blocks
STAGES: dict[DataParallel, int] = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}

SMALLEST_8BIT = 4096  # elements of a parameter whose optimizer state is kept in 8 bits
LARGEST_BLOCK, SMALLEST_BLOCK = 256, 32


def train_flops(params: float, tokens: float) -> float:
    """6 N D (Kaplan et al. 2020, section 2.1): training without attention's scores. `plan/flops.py` counts exactly."""
    return 6 * params * tokens


def adam_bytes_per_param(weight: float = 2, gradient: float = 2, master: float = 4, moment: float = 4) -> float:
    """Weight + gradient + master weight + two moments: 16 in mixed precision (Rajbhandari et al. 2020, section 3.1)."""
    return weight + gradient + master + 2 * moment


def zero_bytes_per_process(
    params: float,
    processes: int,
    stage: int,
    weight: float = 2,
    gradient: float = 2,
    optimizer: float = 12,
    optimizer_sharded: float | None = None,
) -> float:
    """Bytes of states that a process holds (Rajbhandari et al. 2020, section 5 and figure 1): stage 1 cuts what the
    optimizer owns (master weights among it) over n processes, stage 2 gradients too, stage 3 weights too.
    `optimizer_sharded`: of its bytes those that are cut; all of them unless given."""
    owned = optimizer if optimizer_sharded is None else optimizer_sharded
    cut = [owned, gradient, weight][:stage]
    return params * (weight + gradient + optimizer - sum(cut) + sum(cut) / processes)


def optimizer_to_weight_ratio(optimizer_bytes_per_param: float, weight_bytes_per_param: float) -> float:
    """Bytes of the optimizer's state over those of the weights: 8 / 4 for AdamW in float32."""
    return optimizer_bytes_per_param / weight_bytes_per_param


def zero_communication_factor(stage: int) -> float:
    """Traffic over that of plain data parallelism, 2 P numbers a step: stages 1 and 2 scatter gradients and gather
    weights, P each; stage 3 gathers weights once more (Rajbhandari et al. 2020, section 7)."""
    return 1.5 if stage == 3 else 1.0


def optimizer_bytes(config: ModelConfig, optimizer: str, weight: int = 4) -> float:
    """Bytes of the optimizer's state for a whole model; see `state_bytes`."""
    return state_bytes(parameter_shapes(config), optimizer, weight)


def state_bytes(shapes: Iterable[Shape], optimizer: str, weight: int = 4) -> float:
    """Bytes of the optimizer's state for parameters of these shapes. `weight` is the bytes of a weight, which its
    averages have too.

    adamw: two averages. muon: one for the blocks' matrices. adam8bit: two codes of a byte, and two scales for each
    block of at most 256 numbers of a row. adafactor: a row and a column of float32 for each matrix. Steps (4 bytes a
    parameter) are left out.
    """
    total = 0.0
    for shape, count, inside in shapes:
        numbers = count * math.prod(shape)
        if optimizer == "muon" and inside and len(shape) >= 2:
            total += numbers * weight
        elif optimizer == "adafactor" and len(shape) >= 2 and min(shape[-2:]) > 1:
            total += count * 4 * math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        elif optimizer == "adafactor":
            total += numbers * 4
        elif optimizer == "adam8bit" and (block := _block_of(shape)) is not None:
            total += numbers * (2 + 8 / block)
        else:
            total += numbers * 2 * weight
    return total


def parameter_shapes(config: ModelConfig) -> list[Shape]:
    """Shapes of the decoder's matrices, how many there are of each, and whether they stand in blocks. What is left over
    (norms, biases) comes last, as one vector."""
    width = config.hidden_size
    found: dict[tuple[tuple[int, ...], bool], int] = {}

    def add(shape: tuple[int, ...], inside: bool) -> None:
        found[shape, inside] = found.get((shape, inside), 0) + 1

    add((config.vocab_size, width), False)
    if not config.tie_embeddings:
        add((config.vocab_size, width), False)
    if config.positions == "learned":
        add((config.max_seq_len, width), False)
    for layer in range(config.num_layers):
        for shape in (*dense_shapes(config, layer), *expert_shapes(config, layer)):
            add(shape, True)
    shapes = [(shape, count, inside) for (shape, inside), count in found.items()]
    rest = total_params(config) - sum(count * math.prod(shape) for shape, count, _ in shapes)
    return [*shapes, ((rest,), 1, False)]


def dense_shapes(config: ModelConfig, layer: int) -> list[tuple[int, ...]]:
    """Shapes of a block's matrices that every token meets, the router's among them."""
    found: list[tuple[int, ...]] = [(rows, columns) for columns, rows in linear_layers(config, layer)]
    if config.has_experts(layer):
        assert config.experts is not None
        found.append((config.experts.num_experts, config.hidden_size))
    return found


def expert_shapes(config: ModelConfig, layer: int, experts: int | None = None) -> list[tuple[int, ...]]:
    """Shapes of the tensors of a block's routed experts, or of so many of them."""
    if not config.has_experts(layer):
        return []
    assert config.experts is not None
    wide, width = config.experts.intermediate_size, config.hidden_size
    number = config.experts.num_experts if experts is None else experts
    return [(number, (2 if config.gated else 1) * wide, width), (number, width, wide)]


def communication_bytes(config: ModelConfig, arithmetic: Arithmetic, data: DataParallel, processes: int) -> float:
    """Bytes that a process sends in a step of one micro-batch, by rings: (n-1)/n of

    ddp 2 g P (an all-reduce of gradients); zero1 the same + g P (updated weights, from their owners); zero2 4 P + e P
    (gradients are scattered in float32, weights gathered in the products' type); zero3 e P more, for backward.
    """
    params, g = total_params(config), arithmetic.weight
    e = arithmetic.operand
    volume = {"ddp": 2 * g, "zero1": 3 * g, "zero2": 4 + e, "zero3": 4 + 2 * e}[data]
    return params * volume * (processes - 1) / processes


def _block_of(shape: tuple[int, ...]) -> int | None:
    if len(shape) < 2 or math.prod(shape) < SMALLEST_8BIT:
        return None
    return next((size for size in range(LARGEST_BLOCK, SMALLEST_BLOCK - 1, -1) if shape[-1] % size == 0), None)
