"""From the product that holds a step's queries, keys and values to attention: norms of queries and keys, rotary
positions, and keys and values into the paged cache, in one pass.

On a GPU one kernel (rope_kv_triton.py), elsewhere plain torch, which is what the kernel is tested against. Inference
only. A token's result depends on that token alone, bit for bit.

Shape suffixes: N tokens, H query heads, K key/value heads, D width of a head, S slots, M blocks of a sequence, P
rotating pairs of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .available import has_triton
from .norms import Norm, norm_reference

# The largest number of each type that a scaled key or value is stored in.
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class PagedLayer(NamedTuple):
    """One layer of a paged cache: `keys`, `values` `[blocks, block_size, K, D]`, and which blocks each slot's sequence
    holds, `[S, M]` int32. In fp8 (e4m3) or int8 there is a float32 scale for each token and head,
    `[blocks, block_size, K]`, that the stored numbers are multiplied with."""

    keys: Tensor
    values: Tensor
    block_table_SM: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


class Turning(NamedTuple):
    """Rotary positions: radians a token of each pair, float32 `[P]` or `[N, P]` (where they depend on the context), and
    the factor of cosines and sines. Channel i turns with channel i + P; those from 2 P on pass. `table` is what they
    come to, of every position, `[positions, 2 P]` (`with_table`): a GPU reads a cosine faster than it computes one."""

    frequencies: Tensor
    factor: float = 1.0
    table: Tensor | None = None

    def with_table(self, positions: int) -> Turning:
        """The same with cosines, then sines, of so many positions."""
        at_L = torch.arange(positions, dtype=torch.float32, device=self.frequencies.device)
        angles_LP = at_L[:, None] * self.frequencies
        return self._replace(table=torch.cat((angles_LP.cos(), angles_LP.sin()), dim=1) * self.factor)


def rope_kv(
    qkv_NX: Tensor,
    positions_N: Tensor,
    slots_N: Tensor,
    layer: PagedLayer,
    turning: Turning | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> Tensor:
    """Queries `[N, H, D]`; keys and values are written where `positions_N` of `slots_N` stand in the cache.

    `qkv_NX` is `[N, (H + 2 K) D]`: all queries, then keys, then values. `q_norm` and `k_norm` (both or none, RMSNorms)
    norm each head. A token at a negative position, which pads a batch, is written nowhere.
    """
    assert (q_norm is None) == (k_norm is None)
    if qkv_NX.is_cuda and has_triton():
        from .rope_kv_triton import rope_kv_kernel

        return rope_kv_kernel(qkv_NX, positions_N, slots_N, layer, turning, q_norm, k_norm)
    return rope_kv_reference(qkv_NX, positions_N, slots_N, layer, turning, q_norm, k_norm)


def rope_kv_reference(
    qkv_NX: Tensor,
    positions_N: Tensor,
    slots_N: Tensor,
    layer: PagedLayer,
    turning: Turning | None = None,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> Tensor:
    """`rope_kv` in plain torch, in float32 until the end."""
    kv_heads, width = layer.keys.shape[2:]
    heads = qkv_NX.unflatten(-1, (-1, width)).float()
    q_NHD, k_NKD, v_NKD = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q_NHD, k_NKD = norm_reference(q_NHD, q_norm), norm_reference(k_NKD, k_norm)
    if turning is not None:
        q_NHD, k_NKD = turned(q_NHD, positions_N, turning), turned(k_NKD, positions_N, turning)
    kept = positions_N >= 0
    block_size = layer.keys.shape[1]
    slots, positions = slots_N[kept].long(), positions_N[kept].long()
    places = layer.block_table_SM[slots, positions // block_size].long() * block_size + positions % block_size
    store(layer.keys, layer.key_scales, places, k_NKD[kept])
    store(layer.values, layer.value_scales, places, v_NKD[kept])
    return q_NHD.to(qkv_NX.dtype)


def turned(x_NHD: Tensor, positions_N: Tensor, turning: Turning) -> Tensor:
    """Rotary positions in float32."""
    angles = positions_N[:, None].float() * turning.frequencies
    cos, sin = (part[:, None] * turning.factor for part in (angles.cos(), angles.sin()))
    pairs = turning.frequencies.shape[-1]
    first, second, rest = x_NHD.split([pairs, pairs, x_NHD.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def quantized(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` as codes of `dtype` (fp8 e4m3 or int8) and float32 scales of its last dimension: x ~ codes * scales."""
    scales = x.float().abs().amax(dim=-1).clamp(min=1e-12) / LARGEST[dtype]
    codes = (x.float() / scales[..., None]).clamp(-LARGEST[dtype], LARGEST[dtype])
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales


def store(cache: Tensor, scales: Tensor | None, places_N: Tensor, x_NKD: Tensor) -> None:
    """Keys or values of tokens into a layer's, at block * block_size + offset."""
    if scales is not None:
        x_NKD, scale_NK = quantized(x_NKD, cache.dtype)
        scales.flatten(0, 1)[places_N] = scale_NK
    if cache.dtype.itemsize == 1:  # torch moves bytes, but not every eight-bit type
        cache, x_NKD = cache.view(torch.uint8), x_NKD.view(torch.uint8)
    cache.flatten(0, 1)[places_N] = x_NKD.to(cache.dtype)
