"""Activation checkpointing: what the forward pass throws away and backward computes again.

Activations are most of what training needs memory for. Checkpointing (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost") keeps only the inputs of some stretches of the model and repeats their forward pass when
backward reaches them; selective checkpointing (Korthikanti et al. 2022) also keeps what was dear to compute. Gradients
are the same bits, since the repeated pass is the same pass: the model has no dropout. plan/activations.py says what
each mode costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..model.attention import Attend, causal_attention
from ..model.decoder import Decoder
from ..model.embedding import add_positions
from ..model.positions import rotations
from ..model.stack import Stack
from .varlen import PACKED_FLASH

Mode = Literal["none", "sqrt", "block", "selective"]

# What "selective" keeps: products of matrices and attention. What is left to compute again (norms, rotations,
# activations, casts) reads and writes memory but multiplies next to nothing.
KEPT_OPERATORS = (
    "mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_grouped_mm",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward",
)  # fmt: skip


def checkpoint_activations(model: Decoder | Stack, mode: Mode) -> None:
    """Make training passes of `model` keep fewer activations; takes the place of what was set before, "none" ends it.

    "block" keeps each block's input. "sqrt" keeps the inputs of about sqrt(layers) groups of blocks. "selective" keeps
    each block's input and its products (`KEPT_OPERATORS`). Names of parameters stay as they are; passes without
    gradients are not touched. To be called before the model is compiled or sharded.
    """
    for block in model.blocks:
        block.__dict__.pop("forward", None)
    model.__dict__.pop("hidden_states" if isinstance(model, Decoder) else "run", None)
    if mode == "sqrt":
        if isinstance(model, Decoder):
            model.hidden_states = partial(_decoder_in_groups, model)  # type: ignore[method-assign]
        else:
            model.run = partial(_stack_in_groups, model)  # type: ignore[method-assign]
    elif mode != "none":
        for block in model.blocks:
            block.forward = partial(_repeatable, block.forward, selective=mode == "selective")


def group_sizes(num_layers: int) -> list[int]:
    """The blocks in each of about sqrt(layers) groups, sizes that differ by one at most: what is kept, an input a
    group, and what is alive in backward, the blocks of one group, are least together there (Chen et al. 2016, section
    4.1)."""
    groups = math.isqrt(num_layers)
    return [num_layers // groups + (group < num_layers % groups) for group in range(groups)]


def _repeatable(function: Callable[..., Tensor], *arguments: Any, selective: bool = False) -> Tensor:
    """`function(*arguments)`, which backward calls again rather than having kept what is in it."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    more: dict[str, Any] = {"context_fn": _selective_contexts} if selective else {}
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **more)
    return result


def _in_groups(blocks: nn.ModuleList, x_BTC: Tensor, arguments: Sequence[Sequence[Any]]) -> Tensor:
    """`x_BTC` through all blocks, a group of them at a time; `arguments` are what each block takes behind it."""

    def through(x_BTC: Tensor, first: int, last: int) -> Tensor:
        for layer in range(first, last):
            x_BTC = blocks[layer](x_BTC, *arguments[layer])
        return x_BTC

    first = 0
    for size in group_sizes(len(blocks)):
        x_BTC = _repeatable(through, x_BTC, first, first + size)
        first += size
    return x_BTC


def _decoder_in_groups(
    model: Decoder,
    input_ids_BT: Tensor,
    positions_BT: Tensor | None = None,
    attend: Attend = causal_attention,
    context_length: Tensor | int | None = None,
) -> Tensor:
    """`Decoder.hidden_states` by groups of blocks."""
    x_BTC, angles = model._enter(input_ids_BT, positions_BT, context_length)
    hidden: Tensor = model.norm(_in_groups(model.blocks, x_BTC, [(angles, attend)] * len(model.blocks)))
    return hidden


def _stack_in_groups(
    model: Stack, x_BTC: Tensor, positions_BT: Tensor, attend: Attend, per_block: Sequence[Sequence[Any]] = ()
) -> Tensor:
    """`Stack.run` by groups of blocks."""
    x_BTC = add_positions(model.shape, x_BTC, positions_BT, model.position_embedding)
    x_BTC = x_BTC if model.embedding_norm is None else model.embedding_norm(x_BTC)
    angles = rotations(model.shape, positions_BT, x_BTC.dtype)
    arguments = [(angles, attend, *others) for others in per_block or [()] * len(model.blocks)]
    hidden: Tensor = model.norm(_in_groups(model.blocks, x_BTC, arguments))
    return hidden


def _selective_contexts() -> Any:
    """For the forward pass one that stores the results of `KEPT_OPERATORS`, for its repetition one that gives them."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    kept = getattr(operator, "overloadpacket", None) in _kept_packets()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _kept_packets() -> frozenset[Any]:
    found = {getattr(torch.ops.aten, name) for name in KEPT_OPERATORS if hasattr(torch.ops.aten, name)}
    return frozenset({PACKED_FLASH} | found)
