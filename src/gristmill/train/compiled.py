"""Compiling a model for the length of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Mode = Literal["auto", "off", "blocks", "model"]


def resolve_compile(mode: Mode, device: torch.device, sharded: bool = False) -> Mode:
    """`auto` as what it stands for: model on a GPU, blocks where their weights are gathered one by one; off elsewhere,
    where a compiler of C++ would be needed."""
    if mode != "auto":
        return mode
    if device.type != "cuda":
        return "off"
    return "blocks" if sharded else "model"


@contextmanager
def compiled(model: Any, mode: Mode) -> Iterator[None]:
    """Inside it the blocks of `model` run compiled, each by itself ("blocks", quick to compile) or as one program
    together with embedding and last norm ("model", faster where norms and residual sums of neighbours fuse). Names of
    parameters stay as they are."""
    if mode == "blocks":
        before = [block.forward for block in model.blocks]
        for block in model.blocks:
            block.forward = torch.compile(block.forward)
        try:
            yield
        finally:
            for block, forward in zip(model.blocks, before, strict=True):
                if "forward" in block.__dict__:
                    del block.forward
                if block.forward != forward:
                    block.forward = forward
    elif mode == "model":
        model.hidden_states = torch.compile(model.hidden_states)
        try:
            yield
        finally:
            del model.hidden_states
    else:
        yield


def eager() -> Any:
    """A context in which what is compiled runs as written: for batches of other shapes, as validation has."""
    return torch.compiler.set_stance("force_eager")
