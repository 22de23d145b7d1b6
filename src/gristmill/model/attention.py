"""The one interface through which the model calls attention.

The model turns hidden states into rotated queries, keys and values and hands them to an `Attend`. What is attended to
is the caller's business: training masks documents, the engine keeps a cache, a test or a figure records the pattern.

Shape suffixes: B batch, T time, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionSpec:
    """What one block's attention is, for whoever computes it."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float


class Attend(Protocol):
    """Computes attention for one block: `q_BTHD`, `k_BTKD`, `v_BTKD` -> `[B, T, H, D]`."""

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor: ...


def causal_attention(spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Every token attends to itself and to those before it in its row."""
    return masked_attention(spec, q_BTHD, k_BTKD, v_BTKD, mask=None)


def masked_attention(
    spec: AttentionSpec, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of T queries over S keys; `mask` is boolean, true where a query may look, and broadcasts to
    `[B, H, T, S]`; None means causal with T == S."""
    groups = spec.num_heads // spec.num_kv_heads
    q = q_BTHD.transpose(1, 2)
    k = k_BSKD.transpose(1, 2)
    v = v_BSKD.transpose(1, 2)
    if groups > 1:  # repeated rather than enable_gqa: the CPU's flash kernel takes only equal head counts
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # its backward kernel is slow in bfloat16
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None, scale=spec.scale
            ).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale)
    return out.transpose(1, 2)


class DocumentAttention:
    """Causal attention that never crosses a document's border: for rows in which documents are packed.

    `segments_BT` numbers the document of each token; tokens attend to earlier ones of the same number.
    """

    def __init__(self, segments_BT: Tensor):
        time = segments_BT.shape[1]
        causal = torch.ones(time, time, dtype=torch.bool, device=segments_BT.device).tril()
        same = segments_BT[:, :, None] == segments_BT[:, None, :]
        self.mask = (same & causal)[:, None]

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        return masked_attention(spec, q_BTHD, k_BTKD, v_BTKD, self.mask)
