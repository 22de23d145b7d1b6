"""Precision of a training run: the type of the products, autocast, and the scale of fp16's losses.

Weights stay in float32, as master weights, and so do sums, norms' statistics and the optimizer; matrix products take
copies in the lower type (Micikevicius et al. 2018, "Mixed Precision Training"). bfloat16 has float32's range; float16
has not, so its loss is scaled up lest small gradients become zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import hardware
from ..errors import GristmillError

# fp8 swaps linear layers (train/fp8.py); what is left multiplies in bfloat16.
PRODUCTS = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000  # steps without overflow after which the scale doubles
LARGEST_SCALE = 2.0**24  # beyond, the scaled loss of a good step would itself overflow
SMALLEST_SCALE = 2.0**-14  # gradients that overflow even so are the loss's fault, not the scale's


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` as what it stands for on this device: bf16 where it multiplies bfloat16 itself, else fp32. GristmillError
    for a precision that the device cannot do."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else hardware.cpu_has_bf16()
        return "bf16" if native else "fp32"
    if precision not in ("fp32", *PRODUCTS):
        raise GristmillError(f"precision {precision!r} is not known; use auto, fp32, {', '.join(PRODUCTS)}")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What forward passes run in. Copies of weights in the lower type are not kept for the whole pass: each is used
    once in it, and activation checkpointing makes it anew."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRODUCTS[precision], cache_enabled=False)


class LossScaler:
    """The factor of the loss in fp16: halved when gradients overflow, doubled after `GROWTH_STEPS` steps in which none
    did. It lives on the device, and nothing here waits for it. In other precisions `scale` is None and nothing happens.
    """

    def __init__(self, precision: str, device: torch.device):
        self.scale: Tensor | None = None
        self._good_steps = torch.zeros((), device=device)  # since the last change
        if precision == "fp16":
            self.scale = torch.full((), FIRST_SCALE, device=device)

    @torch.no_grad()
    def update(self, overflow: Tensor) -> None:
        """After each step: `overflow` is a float32 scalar on the device, not 0 where a gradient was not finite (and not
        where a step was left out for other reasons)."""
        if self.scale is None:
            return
        bad = overflow > 0
        good_steps = torch.where(bad, 0.0, self._good_steps + 1)
        grow = good_steps >= GROWTH_STEPS
        factor = torch.where(bad, 0.5, torch.where(grow, 2.0, 1.0))
        self.scale.mul_(factor).clamp_(SMALLEST_SCALE, LARGEST_SCALE)
        self._good_steps.copy_(torch.where(grow, 0.0, good_steps))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: nothing but in fp16."""
        return {} if self.scale is None else {"scale": self.scale, "good_steps": self._good_steps}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The state of a checkpoint, which may come from a run of another precision: what is missing stays as it is."""
        if self.scale is not None and "scale" in state:
            self.scale.copy_(state["scale"])
            self._good_steps.copy_(state["good_steps"])
