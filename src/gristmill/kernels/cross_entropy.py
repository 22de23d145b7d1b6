"""Cross-entropy of logits and its gradient in their place, with soft-cap, scale, bias and z-loss.

`cross_entropy_` computes it with the kernel of cross_entropy_triton.py on a GPU and in plain torch elsewhere; the plain
form is what the kernel is tested against. Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .available import has_triton


class LogitShape(NamedTuple):
    """How logits are made of the products of hidden states and head: x = scale * (product + bias), and with a soft-cap
    cap * tanh(x / cap) (Gemma 2)."""

    scale: float = 1.0
    softcap: float | None = None
    bias_V: Tensor | None = None


def cross_entropy_(
    products_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    shape: LogitShape,
    z_loss: float = 0.0,
    learn: bool = True,
) -> tuple[Tensor, Tensor]:
    """Each token's weights[n] * (log Z - logit[target] + z_loss * (log Z)^2), with Z the sum of the softmax, and its
    last summand alone: both float32 `[N]`.

    With `learn`, `products_NV` (float32, bfloat16 or float16; rows may be strided) becomes the gradient of the sum of
    the first with respect to itself; without, it holds nothing of meaning afterwards. All sums are in float32. A token
    of weight 0 gives zeros. z-loss: Chowdhery et al. 2022 (PaLM), section 5. `targets_N` must lie in the vocabulary.
    """
    if products_NV.is_cuda and has_triton():
        from .cross_entropy_triton import cross_entropy_kernel

        return cross_entropy_kernel(products_NV, targets_N, weights_N, shape, z_loss, learn)
    return cross_entropy_reference(products_NV, targets_N, weights_N, shape, z_loss, learn)


def cross_entropy_reference(
    products_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    shape: LogitShape,
    z_loss: float = 0.0,
    learn: bool = True,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy_` in plain torch, to be called without autograd."""
    targets, weights = targets_N[:, None], weights_N[:, None].float()
    logits = products_NV.float()
    if shape.bias_V is not None:
        logits += shape.bias_V
    if shape.scale != 1.0:
        logits *= shape.scale
    slope = None
    if shape.softcap is not None:
        bent = logits.div_(shape.softcap).tanh_()
        slope = 1 - bent.square() if learn else None
        logits = bent.mul_(shape.softcap)
    chosen = logits.gather(1, targets)
    # softmax is one pass of a processor (three times as fast as logsumexp and exp), and its largest share, never under
    # 1/V, gives the sum back.
    highest = logits.amax(dim=-1, keepdim=True)
    shares = torch.softmax(logits, dim=-1, out=logits)
    log_norm = highest - shares.amax(dim=-1, keepdim=True).log()
    square = z_loss * log_norm.square() * weights
    loss = (log_norm - chosen) * weights + square
    if learn:
        grad = shares.mul_(weights * (1 + 2 * z_loss * log_norm))
        grad.scatter_add_(1, targets, -weights)
        if slope is not None:
            grad *= slope
        if shape.scale != 1.0:
            grad *= shape.scale
        if grad.dtype != products_NV.dtype:
            products_NV.copy_(grad)
    return loss[:, 0], square[:, 0]
