"""Numbers on their way to the device or back, which the host does not wait for.

A GPU fetches them from page-locked memory while the host goes on; torch keeps that memory until it has. A copy from
ordinary memory is waited for: so is a number assigned to one element of a tensor (torch before 2.13), which `fill_`
spares, as it goes along with the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def on_its_way(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A list as a tensor on the device."""
    return sent(torch.tensor(values, dtype=dtype), device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A processor's tensor on the device."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass
class Copied:
    """Tensors on their way to the host; on a CPU the tensors themselves."""

    parts: Sequence[Tensor]
    event: torch.cuda.Event | None = None

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Copied:
        """Start the copies behind the work that is under way."""
        if not parts[0].is_cuda:
            return cls(parts)
        copied = [torch.empty_like(part, device="cpu", pin_memory=True) for part in parts]
        for copy, part in zip(copied, parts, strict=True):
            copy.copy_(part, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(copied, event)

    def read(self) -> Sequence[Tensor]:
        """The tensors, once the device is done with them."""
        if self.event is not None:
            self.event.synchronize()
        return self.parts
