"""Which device a stage computes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import GristmillError


def resolve_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; of several GPUs the one that this process was given."""
    if device == "cuda" and not torch.cuda.is_available():
        raise GristmillError("device: cuda was asked for, but torch sees no GPU; set device: cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Inside it, if `wanted`, a GPU's kernels give the same bits in every run; a CPU's always do."""
    if device.type != "cuda" or not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
