"""The loss of the training loop: cross-entropy that never holds all logits.

Shape suffixes: N tokens, C hidden_size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.cross_entropy import LogitShape, cross_entropy_
from ..model.autocast import without_autocast

GPU_LOGITS_BYTES = 2**29
# Each chunk reads and writes the head's float32 gradient (8 V C bytes) for 6 n V C operations in products of n tokens;
# on an H100 that is 4 % more time at 8,192 tokens, whatever V and C are, and 14 % at 2,048.
GPU_LEAST_TOKENS = 8192
CPU_LOGITS_BYTES = 2**23  # about what a processor caches
CPU_LEAST_TOKENS = 256


def cross_entropy_and_z_loss(
    hidden_NC: Tensor,
    head_VC: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """sum_n weights[n] * (-log softmax(logits[n])[targets[n]] + z_loss * logsumexp(logits[n])^2), and what of it is
    z-loss, which has no gradient; float32 scalars. Logits are scale * (hidden @ head.T + bias), and
    cap * tanh(logit / cap) of that with a soft-cap, as in `Decoder.logits`.

    Logits are made for `chunk_tokens` tokens at a time and their gradient is taken at once, so memory is O(chunk * V)
    instead of O(N * V). The products run in the dtype of `hidden_NC`; softmax and sums in float32, the sum of the
    head's gradient too. A token of weight 0 costs a product: leave it out where it is known without waiting for the
    device.
    """
    shape = (scale, softcap, z_loss, torch.is_grad_enabled())
    with without_autocast(hidden_NC.device.type):
        total, squares = _ChunkedCrossEntropy.apply(hidden_NC, head_VC, bias_V, targets_N, weights_N, *shape)
    return total, squares


def chunk_tokens(count: int, vocab_size: int, dtype: torch.dtype, device_type: str) -> int:
    """For how many of `count` tokens logits of `dtype` are made at a time: about 8 MiB of them on a processor, 512 MiB
    on a GPU, more where that would be few tokens; chunks as equal as can be."""
    on_cpu = device_type == "cpu"
    size, least = (CPU_LOGITS_BYTES, CPU_LEAST_TOKENS) if on_cpu else (GPU_LOGITS_BYTES, GPU_LEAST_TOKENS)
    most = max(size // (vocab_size * (4 if on_cpu else dtype.itemsize)), least)
    chunks = max(-(-count // most), 1)
    tile = 1 if on_cpu else 128  # rows that a product on a GPU computes together
    return max(-(-count // (chunks * tile)) * tile, 1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        head_VC: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        scale: float,
        softcap: float | None,
        z_loss: float,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        count, dtype = hidden_NC.shape[0], hidden_NC.dtype
        head = head_VC.to(dtype)
        shape = LogitShape(scale, softcap, bias_V)
        size = chunk_tokens(count, head.shape[0], dtype, hidden_NC.device.type)
        memory = hidden_NC.new_empty(min(size, count), head.shape[0])  # of every chunk's logits, then their gradient
        grad_hidden = torch.empty_like(hidden_NC) if learn else None
        grad_head: Tensor | None = None
        grad_bias: Tensor | None = None
        totals, squares = [], []
        for start in range(0, count, size):
            rows = slice(start, start + size)
            hidden = hidden_NC[rows]
            logits = torch.mm(hidden, head.T, out=memory[: len(hidden)])
            loss, square = cross_entropy_(logits, targets_N[rows], weights_N[rows], shape, z_loss, learn)
            totals.append(loss.sum())
            squares.append(square.sum())
            if grad_hidden is None:
                continue
            grad_logits = logits
            torch.mm(grad_logits, head, out=grad_hidden[rows])
            grad_head = add_product(grad_head, grad_logits.T, hidden, alone=size >= count)
            if bias_V is not None:
                more = grad_logits.sum(dim=0, dtype=torch.float32)
                grad_bias = more if grad_bias is None else grad_bias.add_(more)
        if grad_hidden is not None:
            grad_head = torch.zeros_like(head_VC) if grad_head is None else grad_head.to(head_VC.dtype)
            if bias_V is not None:
                grad_bias = torch.zeros_like(bias_V) if grad_bias is None else grad_bias.to(bias_V.dtype)
            ctx.save_for_backward(grad_hidden, grad_head, grad_bias)
        total, square = (
            torch.stack(parts).sum() if parts else hidden_NC.new_zeros((), dtype=torch.float32)
            for parts in (totals, squares)
        )
        ctx.mark_non_differentiable(square)
        return total, square

    @staticmethod
    @once_differentiable  # what is saved has no graph: second derivatives would be wrong
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        grads = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return *grads, None, None, None, None, None, None


def add_product(total: Tensor | None, left: Tensor, right: Tensor, alone: bool) -> Tensor:
    """`total` + left @ right, in place and in float32; the product's own dtype where it is `alone`."""
    if total is None:
        if alone or left.dtype == torch.float32:
            return left @ right
        if left.is_cuda:
            return torch.ops.aten.mm.dtype(left, right, torch.float32)
        return (left @ right).float()
    if left.dtype == total.dtype:
        return total.addmm_(left, right)
    if left.is_cuda:  # its products of 16-bit numbers are sums in float32 anyway
        return torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    return total.add_(left @ right)
