"""Log-probabilities of targets, with gradients, that never hold all logits.

Shape suffixes: N tokens, C hidden_size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.cross_entropy import LogitShape, cross_entropy_
from ..model.autocast import without_autocast
from .losses import add_product, chunk_tokens


def target_logprobs(
    hidden_NC: Tensor,
    head_VC: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """log softmax(logits[n])[targets[n]], float32 `[N]`; logits are those of `losses.cross_entropy_and_z_loss`.

    Unlike a sum of them, whose gradient is known at once, each may get any gradient: so backward makes the logits of a
    chunk of `losses.chunk_tokens` again, which is one more product with the head. Memory is O(chunk * V).
    """
    with without_autocast(hidden_NC.device.type):
        logprobs: Tensor = _ChunkedLogprobs.apply(hidden_NC, head_VC, bias_V, targets_N, scale, softcap)
    return logprobs


class _ChunkedLogprobs(torch.autograd.Function):
    """A log-probability is the cross-entropy of a token of weight -1, and its gradient g that of one of weight -g."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        head_VC: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_NC, head_VC, bias_V, targets_N)
        ctx.scale, ctx.softcap = scale, softcap
        head, shape = head_VC.to(hidden_NC.dtype), LogitShape(scale, softcap, bias_V)
        found = [torch.zeros(0, device=hidden_NC.device)]
        for rows in _chunks(hidden_NC, head):
            products, targets = hidden_NC[rows] @ head.T, targets_N[rows]
            weights = torch.full(targets.shape, -1.0, device=targets.device)
            found.append(cross_entropy_(products, targets, weights, shape, learn=False)[0])
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NC, head_VC, bias_V, targets_N = ctx.saved_tensors
        head, shape = head_VC.to(hidden_NC.dtype), LogitShape(ctx.scale, ctx.softcap, bias_V)
        weights_N = -grad_outputs[0]
        grad_hidden = torch.empty_like(hidden_NC)
        grad_head: Tensor | None = None
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        chunks = _chunks(hidden_NC, head)
        for rows in chunks:
            hidden = hidden_NC[rows]
            logits = hidden @ head.T
            cross_entropy_(logits, targets_N[rows], weights_N[rows], shape)  # becomes their gradient
            torch.mm(logits, head, out=grad_hidden[rows])
            grad_head = add_product(grad_head, logits.T, hidden, alone=len(chunks) == 1)
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0, dtype=torch.float32)
        grad_head = torch.zeros_like(head_VC) if grad_head is None else grad_head.to(head_VC.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_head, grad_bias, None, None, None


def _chunks(hidden_NC: Tensor, head: Tensor) -> list[slice]:
    count = len(hidden_NC)
    size = chunk_tokens(count, len(head), hidden_NC.dtype, hidden_NC.device.type)
    return [slice(start, start + size) for start in range(0, count, size)]
