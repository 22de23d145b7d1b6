"""The product of a linear layer on a CPU.

torch multiplies float32 with the library it was built with, MKL in its wheels, which leaves half of an AMD processor
unused, and a row alone or a few rows at half of what memory gives. oneDNN, which comes with torch and multiplies
bfloat16 there already, is better at every number of rows. It reads at the speed of memory where the weight lies in an
order of its own, which takes off a third to a half of the time of a few rows. Weights that take no gradient get such a
copy at their first product, as long as half of the machine's memory would be left, and a new one once they changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from .. import hardware

SMALLEST = 1 << 16  # elements of a weight that is worth a copy; a smaller one stays in the processor's cache
State = tuple[int, int]  # a weight's version, which every change in place counts up, and where it lies
_BLOCKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weight -> its state then, and the copy


def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`, by oneDNN where that is the faster: float32 and bfloat16 on a processor with AVX2,
    in inference mode, for its product has no gradient. Rounds as such products do; not bit for bit as `F.linear`."""
    if fits(x, weight) and has_onednn(x.dtype):
        # "none": nothing is applied to the product. It is what torch.compile calls for a linear layer on a CPU.
        return torch.ops.mkldnn._linear_pointwise.default(x, _blocked(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether these are what oneDNN is called for."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler cannot trace the question for inference mode
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and type(x) is Tensor
        and type(weight) in (Tensor, Parameter)  # not one that is shared out or quantized
        and x.is_cpu
        and weight.is_cpu
        and torch.is_inference_mode_enabled()
        and weight.is_contiguous()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN, and the processor what it is fast on."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def forget(weights: Iterable[Tensor]) -> None:
    """Drop the copies of weights that may have changed uncounted: through `.data`, or by a fused optimizer while they
    took a gradient in between."""
    for weight in weights:
        _BLOCKED.pop(weight, None)


def _blocked(weight: Tensor) -> Tensor:
    """The weight as oneDNN reads it fastest; itself where it is small, memory is short, or it may change unseen: fused
    optimizers do not count their steps as changes, and tensors made in inference mode count none."""
    if weight.requires_grad or weight.is_inference() or weight.numel() < SMALLEST:
        return weight
    state: State = weight._version, weight.data_ptr()
    known: tuple[State, Tensor | None] | None = _BLOCKED.get(weight)
    if known is None or known[0] != state:
        _BLOCKED.pop(weight, None)  # the old copy goes before the new one comes
        made = torch.ops.mkldnn._reorder_linear_weight.default(weight, None) if _has_room(weight.nbytes) else None
        known = _BLOCKED[weight] = state, made
    return weight if known[1] is None else known[1]


def _has_room(size: int) -> bool:
    """Whether half of the memory would be left; no where the system does not tell."""
    available = hardware.available_memory_bytes()
    return available is not None and available - size > hardware.memory_bytes() / 2
