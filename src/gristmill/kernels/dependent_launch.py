"""How the small kernels of a decoding step follow one another without gaps.

On Hopper and later a kernel may start while the one before it still runs (CUDA C++ programming guide, "Programmatic
dependent launch and synchronization"): it asks for its weights at once, which no kernel writes, and waits before it
touches anything that another has made. So the start of a kernel and its weights' way from memory, both longer than
most of these kernels' work, fall into the time of the one before.

Every kernel launched with `launch_options` calls `wait_for_inputs` before it reads or writes anything but weights,
whatever it then does: what a kernel two places back has written is only complete because the one between waited.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def launches_depend() -> bool:
    """Whether this GPU starts kernels early (compute capability 9.0 and later)."""
    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def launch_options() -> dict[str, Any]:
    """Arguments of a kernel's launch: its constant `DEPENDENT`, and the launch's own attribute where there is one."""
    return {"DEPENDENT": True, "launch_pdl": True} if launches_depend() else {"DEPENDENT": False}


@triton.jit
def start_next(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The kernel after this one may start as soon as all programs of this one have come here."""
    if DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Go on once the kernel before this one is done and all that it wrote can be read."""
    if DEPENDENT:
        gdc_wait()
