"""AdamW whose two averages are kept in 8 bits, block by block (Dettmers et al. 2021, "8-bit Optimizers via Block-wise
Quantization").

A block is a stretch of a row. What it holds is divided by the largest absolute value in it and rounded to a code book
of 256 numbers that stand closer the smaller they are. The paper's book spends its bits on finding the exponent; these
spend a fixed part on it, as floating-point formats do: relative errors are the same at every size, and the code is
computed by shifts rather than looked for.

- `exp_avg`: a sign, and 0 or 127 magnitudes of 3 bits behind the point, over 16 powers of two.
- the root of `exp_avg_sq`: 256 magnitudes of 4 bits behind the point, over 16 powers of two. Not the square, whose
  range is twice as wide; and without a 0, because what is divided by must not vanish (Li et al. 2023, "Memory Efficient
  Optimizers with 4-bit States", section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adamw import adamw_update, new_adamw_state
from .base import Portion, State, StatefulOptimizer, by_key, decay_and_move, in_portions, local, smaller_of

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 32
SMALLEST_PARAMETER = 4096  # elements; what is smaller saves nothing, and is mostly norms, which need their precision
PORTION_ELEMENTS = 2**23  # updated together: enough to fill a GPU; eight times their bytes are needed meanwhile
CPU_PORTION_ELEMENTS = 2**20  # there large temporaries cost more than many calls: 0.13 s for 5.4M parameters, not 0.4
ONE = 127  # the exponent of 1.0 in float32, which has 23 bits behind the point


class CodeBook(NamedTuple):
    """The numbers 2^e (1 + f / 2^bits), descending from 1: 256 of them, or, signed, 127, their negatives and 0.

    A code (uint8; signed, int8) counts them from the smallest. It is the upper bits of the float32, less an offset.
    """

    bits: int
    signed: bool

    @property
    def largest(self) -> int:
        """The code of 1."""
        return 127 if self.signed else 255

    @property
    def offset(self) -> int:
        """What the upper bits of a float32 exceed its code by."""
        return (ONE << self.bits) - self.largest

    def encode(self, numbers: Tensor) -> Tensor:
        """The codes of the nearest numbers in the book to float32 numbers from -1 (or 0) to 1."""
        # Not by shifts of integers: a CPU takes several times as long for them as for the same in floating point.
        bits = numbers.abs().view(torch.int32).float()
        codes = bits.mul_(2.0 ** (self.bits - 23)).sub_(self.offset).round_().clamp_(0, self.largest)
        return codes.mul_(numbers.sign()).to(torch.int8) if self.signed else codes.to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """The numbers, float32, of codes."""
        bits = codes.to(torch.int32).abs_().add_(self.offset).mul_(1 << (23 - self.bits))
        numbers = bits.view(torch.float32)
        return numbers.mul_(codes.sign()) if self.signed else numbers


AVERAGES = CodeBook(bits=3, signed=True)
ROOTS = CodeBook(bits=4, signed=False)


def quantize(blocks: Tensor, book: CodeBook) -> tuple[Tensor, Tensor]:
    """Codes, of the blocks' shape `[n, block]`, and scales `[n, 1]`, the largest absolute values."""
    scales = blocks.abs().amax(dim=-1, keepdim=True)
    return book.encode(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)), scales


def dequantize(codes: Tensor, scales: Tensor, book: CodeBook) -> Tensor:
    """What codes `[n, block]` and scales `[n, 1]` stand for."""
    return book.decode(codes) * scales


class Adam8bit(StatefulOptimizer):
    """AdamW with `exp_avg` and the root of `exp_avg_sq` as `*_codes`, bytes of the parameter's shape, and `*_scales`,
    one a block: about 2.03 bytes a parameter. Groups are AdamW's.

    Blocks never reach from one row into the next, so that the state of a parameter that is cut into shards by rows is
    the same state, cut. Parameters of fewer than 4,096 elements, or whose rows no size from 32 to 256 divides, keep
    AdamW's state in full.
    """

    def new_state(self, group: dict[str, Any], parameter: Tensor) -> State:
        size = block_size(parameter)
        if size is None:
            return new_adamw_state(parameter)
        weight = local(parameter)
        zeros = partial(torch.zeros, device=weight.device)
        codes, scales = weight.shape, (*weight.shape[:-1], weight.shape[-1] // size)
        return {
            "step": zeros((), dtype=torch.float32),
            "exp_avg_codes": zeros(codes, dtype=torch.int8),
            "exp_avg_scales": zeros(scales, dtype=torch.float32),
            "root_exp_avg_sq_codes": zeros(codes, dtype=torch.uint8),
            "root_exp_avg_sq_scales": zeros(scales, dtype=torch.float32),
        }

    def full_shape(self, key: str, parameter: Tensor) -> tuple[int, ...]:
        size = block_size(parameter)
        if size is None or not key.endswith("_scales"):
            return super().full_shape(key, parameter)
        return (*parameter.shape[:-1], parameter.shape[-1] // size)

    def portions(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        for alike in by_key(parameters, lambda parameter: (block_size(parameter), parameter.dtype)):
            most = CPU_PORTION_ELEMENTS if alike[0].device.type == "cpu" else PORTION_ELEMENTS
            kept_in_full = block_size(alike[0]) is None
            yield from in_portions(alike, smaller_of(None if kept_in_full else most, self.residence.elements))

    def update(self, portion: Portion) -> None:
        size = block_size(portion.parameters[0])
        if size is None:
            adamw_update(portion, self.grad_scale, self.found_inf)
            return
        group, weights, states = portion.group, portion.weights, portion.states
        beta1, beta2 = group["betas"]
        keep = self.keep(weights[0].device)
        gradient = self.unscaled(_blocks(portion.gradients, size))
        average = _averaged(states, "exp_avg", AVERAGES, size).lerp_(gradient, 1 - beta1)
        square = _averaged(states, "root_exp_avg_sq", ROOTS, size).square_().mul_(beta2)
        root = square.addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        _store(states, "exp_avg", average, AVERAGES, keep)
        _store(states, "root_exp_avg_sq", root, ROOTS, keep)
        steps = [state["step"] for state in states]
        count = torch.stack(steps) + 1
        rows = [weight.numel() // size for weight in weights]
        step_size = _spread(group["lr"] / (1 - beta1**count), rows)
        correction = _spread((1 - beta2**count).sqrt(), rows)
        change = average.mul_(step_size).div_(root.div_(correction).add_(group["eps"]))
        decay_and_move(weights, _unblocked(change, weights, rows), group["lr"] * group["weight_decay"], keep)
        torch._foreach_add_(steps, [keep] * len(steps))


def block_size(parameter: Tensor) -> int | None:
    """Elements of a block of this parameter's state: the largest number up to 256 that divides its rows; None where its
    state is kept in full. The same for a shard as for the whole."""
    if parameter.dim() < 2 or parameter.numel() < SMALLEST_PARAMETER:
        return None
    columns = parameter.shape[-1]
    return next((size for size in range(LARGEST_BLOCK, SMALLEST_BLOCK - 1, -1) if columns % size == 0), None)


def _blocks(tensors: Sequence[Tensor], size: int) -> Tensor:
    """All tensors one below the other, `[n, size]`."""
    return torch.cat([tensor.reshape(tensor.numel() // size, size) for tensor in tensors])


def _unblocked(blocks: Tensor, like: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    parts = blocks.split(list(rows))
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _averaged(states: Sequence[State], key: str, book: CodeBook, size: int) -> Tensor:
    codes = _blocks([state[f"{key}_codes"] for state in states], size)
    return dequantize(codes, _blocks([state[f"{key}_scales"] for state in states], 1), book)


def _store(states: Sequence[State], key: str, blocks: Tensor, book: CodeBook, keep: Tensor) -> None:
    """Write blocks into the states, but where the step is skipped."""
    for kind, new in zip(("codes", "scales"), quantize(blocks, book), strict=True):
        tensors = [state[f"{key}_{kind}"] for state in states]
        width = new.shape[-1]
        old = _blocks(tensors, width)
        if kind == "codes":
            new = new.sub_(old).mul_(keep.to(new.dtype)).add_(old)  # exact: bytes wrap around
        else:
            new = torch.where(keep > 0, new, old)
        torch._foreach_copy_(tensors, _unblocked(new, tensors, [tensor.numel() // width for tensor in tensors]))


def _spread(numbers: Tensor, rows: Sequence[int]) -> Tensor:
    """Each parameter's number for each of its blocks, `[n, 1]`."""
    return torch.cat([number.expand(count) for number, count in zip(numbers.unbind(), rows, strict=True)])[:, None]
