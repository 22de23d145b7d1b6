"""The one interface through which the model calls attention, and attention in plain torch.

The model turns hidden states into queries, keys and values, with rotary positions already in them, and hands them to
an `Attend`. What is attended to is the caller's business: training masks documents, the engine keeps a cache, a test or
a figure records the pattern. How scores are made (scale, soft-cap, window, ALiBi, sinks) is the model's, and travels in
the `AttentionSpec`; `masked_attention` computes all of it and is the reference that every kernel is tested against.

Shape suffixes: B batch, T queries, S keys, H query heads, K key/value heads, D key width, E value width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import without_autocast

Bias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """What one block's attention is, for whoever computes it.

    `values_in_keys`: values are the first `value_dim` channels of the keys, so a cache need not keep them (latent
    attention in its absorbed form). `sinks` `[H]`: one more score per head whose value is zero.
    `bias(query_at, key_at)` gives what is added to the scores, `[H, T, S]` or `[B, H, T, S]`, from positions `[T]`,
    `[S]` or with a batch in front.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    value_dim: int
    causal: bool = True
    window: int | None = None
    sink_tokens: int = 0
    softcap: float | None = None
    alibi: bool = False
    values_in_keys: bool = False
    sinks: Tensor | None = None
    bias: Bias | None = None

    @property
    def plain(self) -> bool:
        """Whether scores are scaled products and nothing else, as every attention kernel computes them."""
        return self.softcap is None and not self.alibi and self.sinks is None and self.bias is None


class Attend(Protocol):
    """Computes attention for one block: `q_BTHD`, `k_BTKD`, `v_BTKE` -> `[B, T, H, E]`.

    One that has an attribute `latent` which is true gets latent attention in its absorbed form (one key head, the
    values inside the keys), which is what a cache wants; all others get it multiplied out, which is cheaper to train.
    """

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor: ...


def causal_attention(spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
    """Every token attends to itself and to those before it in its row, or to all of it where `spec` is not causal."""
    return masked_attention(spec, q_BTHD, k_BTKD, v_BTKE)


def masked_attention(
    spec: AttentionSpec,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKE: Tensor,
    mask: Tensor | None = None,
    query_at: Tensor | None = None,
    key_at: Tensor | None = None,
) -> Tensor:
    """Attention of T queries over S keys: `[B, T, H, E]`.

    `mask` is boolean, true where a query may look, and broadcasts to `[B, H, T, S]`; it is cut further by the window
    and, where it is None, by causality. `query_at` and `key_at` are the places of queries and keys in their sequence,
    `[T]` and `[S]` or with a batch in front; without them key s stands at s, and the queries are the last T keys.
    A query that may look nowhere gets zeros.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKE))
    time, keys = q.shape[2], k.shape[2]
    in_place = query_at is None and key_at is None
    windowed = spec.window is not None and (spec.window < keys or not in_place)
    simple = spec.plain and mask is None and not windowed and (time == keys or not spec.causal)
    # Kernels that share key heads themselves, for half the memory of copies.
    shared = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and spec.head_dim <= 256
    if simple and shared:
        return _products(spec, q, k, v, None, is_causal=spec.causal).transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    if k.shape[1] == 1:
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
    elif groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if simple:
        return _products(spec, q, k, v, None, is_causal=spec.causal).transpose(1, 2)
    if spec.plain and not windowed and mask is not None:
        return _products(spec, q, k, v, mask).transpose(1, 2)
    if key_at is None:
        key_at = torch.arange(keys, device=q.device)
    if query_at is None:
        query_at = key_at[..., keys - time :]
    allowed = visible(spec, query_at, key_at, causal=mask is None)
    if allowed is not None:
        allowed = allowed if allowed.dim() == 2 else allowed[:, None]
        mask = allowed if mask is None else mask & allowed
    if spec.plain:
        return _products(spec, q, k, v, mask).transpose(1, 2)
    if spec.softcap is None and spec.sinks is None:
        bias = score_bias(spec, query_at, key_at)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        return _products(spec, q, k, v, bias.to(q.dtype)).transpose(1, 2)
    return _written_out(spec, q, k, v, mask, query_at, key_at).transpose(1, 2)


def visible(spec: AttentionSpec, query_at: Tensor, key_at: Tensor, causal: bool = True) -> Tensor | None:
    """Which keys causality (if `causal`) and the window leave, `[T, S]` or `[B, T, S]`; None where all of them."""
    if spec.window is None and not (spec.causal and causal):
        return None
    distance = query_at[..., :, None] - key_at[..., None, :]
    seen = distance >= 0 if spec.causal and causal else None
    if spec.window is not None:
        near = distance < spec.window
        if not spec.causal:
            near &= distance > -spec.window
        if spec.sink_tokens:
            near |= (key_at < spec.sink_tokens)[..., None, :]
        seen = near if seen is None else seen & near
    return seen


def score_bias(spec: AttentionSpec, query_at: Tensor, key_at: Tensor) -> Tensor:
    """What is added to the scaled scores, float32 `[H, T, S]` or `[B, H, T, S]`."""
    total: Tensor | None = None
    if spec.alibi:
        slopes = alibi_slopes(spec.num_heads, query_at.device)
        distance = (query_at[..., :, None] - key_at[..., None, :]).abs()
        total = -slopes[:, None, None] * distance[..., None, :, :]
    if spec.bias is not None:
        own = spec.bias(query_at, key_at).float()
        total = own if total is None else total + own
    assert total is not None
    return total


def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """The penalty per token of distance of each head (Press et al. 2022), float32 `[H]`: a geometric sequence from
    2^(-8/n) for n heads, a power of two; other numbers take every second one of the next power's for the heads that
    are left."""
    power = 2 ** math.floor(math.log2(num_heads))
    head = torch.arange(num_heads, device=device, dtype=torch.float32)
    exponent = torch.where(head < power, 8 * (head + 1), 4 * (2 * (head - power) + 1))
    return torch.exp2(-exponent / power)


def _products(
    spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
) -> Tensor:
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # its backward kernel is slow in bfloat16
        with torch.autocast("cpu", enabled=False):
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            return F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal, scale=spec.scale
            ).to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=spec.scale, enable_gqa=grouped
    )


def _written_out(
    spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_at: Tensor, key_at: Tensor
) -> Tensor:
    weights = attention_weights(spec, q, k, mask, query_at, key_at)
    return weights.to(v.dtype) @ v


def attention_weights(
    spec: AttentionSpec, q_BHTD: Tensor, k_BHSD: Tensor, mask: Tensor | None, query_at: Tensor, key_at: Tensor
) -> Tensor:
    """softmax(scores) in float32, `[B, H, T, S]`: heads already repeated, `mask` already cut by `visible`. With sinks
    a row sums to less than one."""
    with without_autocast(q_BHTD.device.type):
        scores = (q_BHTD.float() @ k_BHSD.float().transpose(2, 3)) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        if spec.alibi or spec.bias is not None:
            scores = scores + score_bias(spec, query_at, key_at)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if spec.sinks is not None:
            sinks = spec.sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
            return torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
        weights = scores.softmax(dim=-1)
        return weights if mask is None else weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


class DocumentAttention:
    """Attention that never crosses a document's border: for rows in which documents are packed.

    `segments_BT` numbers the document of each token; tokens attend to those of the same number (causal: to earlier
    ones). Places are counted from the row's start, and only their differences matter, but for `sink_tokens`, which
    are the first of each document.
    """

    def __init__(self, segments_BT: Tensor):
        self.segments_BT = segments_BT
        self._masks: dict[bool, Tensor] = {}  # by whether they are causal
        self._places_BT: Tensor | None = None

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        mask = self.mask(spec.causal)
        at = self.places() if spec.window is not None or not spec.plain else None
        return masked_attention(spec, q_BTHD, k_BTKD, v_BTKE, mask, at, at)

    def mask(self, causal: bool) -> Tensor:
        """True where a token may look, `[B, 1, T, T]`."""
        if causal not in self._masks:
            same_BTT = self.segments_BT[:, :, None] == self.segments_BT[:, None, :]
            if causal:
                same_BTT &= torch.ones_like(same_BTT[0]).tril()
            self._masks[causal] = same_BTT[:, None]
        return self._masks[causal]

    def places(self) -> Tensor:
        """Each token's place in its own document, `[B, T]`."""
        if self._places_BT is None:
            time = torch.arange(self.segments_BT.shape[1], device=self.segments_BT.device).expand_as(self.segments_BT)
            new = torch.ones_like(self.segments_BT, dtype=torch.bool)
            new[:, 1:] = self.segments_BT[:, 1:] != self.segments_BT[:, :-1]
            self._places_BT = time - torch.where(new, time, 0).cummax(dim=1).values
        return self._places_BT
