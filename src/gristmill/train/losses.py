"""Losses of the training loop: cross-entropy that never holds all logits, and sequence log-probabilities.

Shape suffixes: N tokens, C hidden_size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 256  # 4 MB of float32 logits at a vocabulary of 4,096: what a processor's cache holds


def weighted_cross_entropy(
    hidden_NC: Tensor,
    head_VC: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """sum_n weights[n] * -log softmax(logits[n])[targets[n]], in float32; a scalar. Logits are
    scale * (hidden @ head.T + bias), and cap * tanh(logit / cap) of that with a soft-cap, as in `Decoder.logits`.

    Logits are made for `CHUNK_TOKENS` tokens at a time and their gradient is taken at once, so memory is
    O(CHUNK_TOKENS * V) instead of O(N * V). The products run in the dtype of `hidden_NC`; softmax and sums in float32.
    A token of weight 0 costs what any other costs: leave it out where it is known without waiting for the device.
    """
    shape = (scale, softcap, torch.is_grad_enabled())
    total: Tensor = _ChunkedCrossEntropy.apply(hidden_NC, head_VC, bias_V, targets_N, weights_N, *shape)
    return total


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
        learn: bool,
    ) -> Tensor:
        head = head_VC.to(hidden_NC.dtype)
        if learn:
            grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
            grad_hidden = torch.empty_like(hidden_NC)
            grad_head = torch.zeros_like(head_VC, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        for start in range(0, hidden_NC.shape[0], CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            hidden, targets, weights = hidden_NC[rows], targets_N[rows, None], weights_N[rows, None].float()
            logits = (hidden @ head.T).float()
            if bias_V is not None:
                logits += bias_V
            if scale != 1.0:
                logits *= scale
            slope = None
            if softcap is not None:
                bent = torch.tanh(logits / softcap)
                logits, slope = softcap * bent, 1 - bent.square()
            log_norm = logits.logsumexp(dim=-1, keepdim=True)
            total += ((log_norm - logits.gather(1, targets)) * weights).sum()
            if not learn:
                continue
            grad_logits = logits.sub_(log_norm).exp_()
            grad_logits.scatter_add_(1, targets, torch.full_like(weights, -1.0))
            grad_logits = grad_logits.mul_(weights * scale)
            if slope is not None:
                grad_logits *= slope
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ head
            grad_head += grad_logits.T @ hidden
        if learn:
            ctx.save_for_backward(grad_hidden, grad_head.to(head_VC.dtype), grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        grads = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return *grads, None, None, None, None, None


def token_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """log softmax(logits)[targets], `[B, T]`, in float32."""
    return torch.log_softmax(logits_BTV.float(), dim=-1).gather(-1, targets_BT[..., None])[..., 0]
