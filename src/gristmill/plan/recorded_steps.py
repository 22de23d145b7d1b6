"""Which steps of the engine are CUDA graphs on a GPU, and to what sizes they are filled up (engine/graphs.py,
engine/prompt_steps.py)."""

from __future__ import annotations

import math

from ..model.config import ModelConfig
from .parameters import total_params

# About what an H100 does while the host launches a step's kernels (measured: 32 layers in 20 to 36 ms): those of larger
# steps the host launches in time.
GRAPH_FLOPS = 1.7e13


def is_recorded(config: ModelConfig) -> bool:
    """Whether steps of such a model are replayed as a whole: those with experts or `dynamic` positions ask the host in
    between, those with latent attention or norms of whole projections run as their plain blocks."""
    if config.experts is not None or config.latent is not None or config.qk_norm == "projection":
        return False
    return config.rope_scaling is None or config.rope_scaling.kind != "dynamic"


def recorded_tokens(config: ModelConfig, most: int | None = None) -> int:
    """Tokens of the largest steps reading prompts that are, those of `most` tokens filled up: GRAPH_FLOPS of 2 a
    parameter and token. Graphs keep such a step's memory to themselves."""
    recorded = int(GRAPH_FLOPS / (2 * total_params(config)))
    return recorded if most is None else min(recorded, recorded_size(most))


def recorded_size(tokens: float) -> int:
    """The tokens that a step of `tokens` which reads prompts is filled up to: a power of two, or one and a half of it
    from 192 on; 16 at least."""
    size = max(1 << (math.ceil(tokens) - 1).bit_length(), 16)
    return size * 3 // 4 if size >= 256 and tokens <= size * 3 // 4 else size
