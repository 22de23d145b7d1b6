"""The key/value cache, one row ("slot") a sequence, and the attention that writes and reads it.

A step's tokens, of however many sequences, come as one row without padding: N tokens of the sequences in turn. The
linear layers see them as one batch, and only attention needs to know which token belongs to whom. Memory is `layers *
slots * max_len * kv_heads * (key width + value width)` elements; on a CPU the system hands it out page by page
as it is written. A paged cache will take this one's place behind the same `Attend`.

Shape suffixes: N tokens of the step, B sequences, T tokens of a sequence in the step, S cached tokens, H query heads,
K key/value heads, G query heads per key/value head, D key width, E value width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.attention import AttentionSpec, causal_attention, masked_attention, visible
from ..model.config import ModelConfig
from .scheduler import Chunk


class SlotCache:
    """Keys and values of every slot: per layer `[slots, max_len, kv_heads, width]`. Latent attention keeps keys alone:
    its values lie inside them."""

    def __init__(self, config: ModelConfig, slots: int, max_len: int, dtype: torch.dtype, device: torch.device):
        heads, key_dim, value_dim = config.cache_shape
        layers = range(config.num_layers)
        self.keys = [_zeros((slots, max_len, heads, key_dim), dtype, device) for _ in layers]
        self.values = [_zeros((slots, max_len, heads, value_dim), dtype, device) for _ in layers]

    def write(self, spec: AttentionSpec, slots_N: Tensor, positions_N: Tensor, k_NKD: Tensor, v_NKE: Tensor) -> None:
        self.keys[spec.layer][slots_N, positions_N] = k_NKD
        if not spec.values_in_keys:
            self.values[spec.layer][slots_N, positions_N] = v_NKE

    def read(self, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
        """The layer's keys and values of all slots, as views."""
        keys = self.keys[spec.layer]
        return keys, keys[..., : spec.value_dim] if spec.values_in_keys else self.values[spec.layer]

    def clear(self, slot: int) -> None:
        """Wipe a row in which something was not finite: attention gives what it masks the weight 0, and 0 * NaN is NaN,
        so that the row's next, shorter sequence would be spoilt too."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()

    @staticmethod
    def bytes_per_slot(config: ModelConfig, max_len: int, dtype: torch.dtype) -> int:
        heads, key_dim, value_dim = config.cache_shape
        return config.num_layers * max_len * heads * (key_dim + value_dim) * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only once they are written: numpy asks the system for zero pages, torch writes them."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True)
class _Decode:
    """The step's sequences of one token each: they stand first, and attend over their slots together."""

    count: int
    rows: slice | Tensor  # their slots; a slice where they are neighbours, which saves copying the cache
    longest: int
    at_B1: Tensor  # where each token stands
    mask_B11S: Tensor


@dataclass(frozen=True)
class _Prompts:
    """`count` prompts of equal length, seen whole in this step: no need to read the cache."""

    first: int
    count: int
    length: int


@dataclass(frozen=True)
class _Part:
    """Several tokens of a sequence of which the cache holds the beginning."""

    first: int
    length: int
    slot: int
    seen: int  # cached tokens, these included
    mask_TS: Tensor


class CacheAttention:
    """The `Attend` of one step. Chunks of one token must stand first; the model's row is the chunks' tokens in turn."""

    latent = True

    def __init__(self, cache: SlotCache, chunks: Sequence[Chunk], slots_N: Tensor, positions_N: Tensor):
        self.cache = cache
        self.slots_N, self.positions_N = slots_N, positions_N
        decoding = sum(1 for chunk in chunks if chunk.num_tokens == 1)
        assert all(chunk.num_tokens == 1 for chunk in chunks[:decoding])
        self.decode = _plan_decode(chunks[:decoding], slots_N.device) if decoding else None
        self.rest = list(_plan_rest(chunks[decoding:], decoding, slots_N.device))

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        self.cache.write(spec, self.slots_N, self.positions_N, k_BTKD[0], v_BTKE[0])
        keys, values = self.cache.read(spec)
        out = [] if self.decode is None else [_attend_decode(self.decode, spec, q_BTHD[0], keys, values)]
        for group in self.rest:
            if isinstance(group, _Prompts):
                out.append(_attend_prompts(group, spec, q_BTHD[0], k_BTKD[0], v_BTKE[0]))
            else:
                out.append(_attend_part(group, spec, q_BTHD[0], keys, values))
        return (out[0] if len(out) == 1 else torch.cat(out))[None]


def _plan_decode(chunks: Sequence[Chunk], device: torch.device) -> _Decode:
    slots = [_slot(chunk) for chunk in chunks]
    lengths = torch.tensor([chunk.start + 1 for chunk in chunks], device=device)
    longest = max(chunk.start for chunk in chunks) + 1
    mask = torch.arange(longest, device=device) < lengths[:, None]
    neighbours = slots == list(range(slots[0], slots[0] + len(slots)))
    rows = slice(slots[0], slots[0] + len(slots)) if neighbours else torch.tensor(slots, device=device)
    return _Decode(len(chunks), rows, longest, lengths[:, None] - 1, mask[:, None, None])


def _plan_rest(chunks: Sequence[Chunk], first: int, device: torch.device) -> Iterator[_Prompts | _Part]:
    """Group whole prompts of equal length that follow each other; what begins in the cache stands alone."""
    waiting: _Prompts | None = None
    for chunk in chunks:
        length = chunk.num_tokens
        if waiting is not None and (chunk.start > 0 or length != waiting.length):
            yield waiting
            waiting = None
        if chunk.start == 0:
            waiting = _Prompts(waiting.first if waiting else first, waiting.count + 1 if waiting else 1, length)
        else:
            seen = chunk.start + length
            mask = torch.ones(length, seen, dtype=torch.bool, device=device).tril(chunk.start)
            yield _Part(first, length, _slot(chunk), seen, mask)
        first += length
    if waiting is not None:
        yield waiting


def _attend_decode(group: _Decode, spec: AttentionSpec, q_NHD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query a row over the row's cache. The query heads that share a key head stand where SDPA expects queries,
    so that keys are read once for all of them instead of being repeated."""
    keys, values = keys[:, : group.longest], values[:, : group.longest]
    if isinstance(group.rows, slice):
        keys, values = keys[group.rows], values[group.rows]
    else:
        keys, values = keys.index_select(0, group.rows), values.index_select(0, group.rows)
    q_NHD = q_NHD[: group.count]
    if not spec.plain:
        return masked_attention(spec, q_NHD[:, None], keys, values, group.mask_B11S, group.at_B1)[:, 0]
    mask = group.mask_B11S
    if spec.window is not None:
        near = visible(spec, group.at_B1, torch.arange(group.longest, device=keys.device), causal=False)
        assert near is not None
        mask = mask & near[:, None]
    out_BKGE = F.scaled_dot_product_attention(
        q_NHD.unflatten(1, (spec.num_kv_heads, -1)),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        scale=spec.scale,
    )
    return out_BKGE.flatten(1, 2)


def _attend_prompts(group: _Prompts, spec: AttentionSpec, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
    end = group.first + group.count * group.length
    q, k, v = (x[group.first : end].unflatten(0, (group.count, group.length)) for x in (q_NHD, k_NKD, v_NKD))
    return causal_attention(spec, q, k, v).flatten(0, 1)


def _attend_part(group: _Part, spec: AttentionSpec, q_NHD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q = q_NHD[None, group.first : group.first + group.length]
    rows = slice(group.slot, group.slot + 1)
    return masked_attention(spec, q, keys[rows, : group.seen], values[rows, : group.seen], group.mask_TS)[0]


def _slot(chunk: Chunk) -> int:
    assert chunk.request.slot is not None
    return chunk.request.slot
