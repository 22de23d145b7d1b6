"""Which device a stage computes on."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import GristmillError

# Parameters of glibc's mallopt (malloc.h). The first is as high as it may be set.
MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20
TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 2**31 - 1
# What cuBLAS asks for lest two streams share its working memory; on Hopper it has as much without being told.
CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def resolve_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; of several GPUs the one that this process was given."""
    if device == "cuda" and not torch.cuda.is_available():
        raise GristmillError("device: cuda was asked for, but torch sees no GPU; set device: cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Inside it, if `wanted`, a GPU's kernels give the same bits in every run; a CPU's always do. GristmillError where
    cuBLAS was not told so before its first product, which the command line does."""
    if device.type != "cuda" or not wanted:
        yield
        return
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # Filling all new memory with NaN finds reads before writes, at the price of a write for every buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        _check_products(device)
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before)


def _check_products(device: torch.device) -> None:
    """torch reads the variable once, at a process's first product on a GPU, and refuses all later ones by it."""
    one = torch.ones(1, 1, device=device)
    try:
        torch.mm(one, one)
    except RuntimeError as error:
        name, value = CUBLAS_WORKSPACE
        if name not in str(error):
            raise
        raise GristmillError(
            f"deterministic: true needs the environment variable {name}={value} from the start of the process: "
            f"{'it is ' + repr(os.environ[name]) if os.environ[name] != value else 'something was multiplied before'}; "
            "set it and start again, or set deterministic: false"
        ) from None


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Inside it, on a CPU under glibc, memory that a step frees stays with the process, for the next step. It would
    else go back to the system and come again page by page, which takes a tenth of a small model's step."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    libc.mallopt(TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_BYTES)  # what glibc itself would have come to by then
        libc.malloc_trim(0)
