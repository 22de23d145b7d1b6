"""`paged_attention` in plain torch, for CPUs and as the kernels' reference.

Sequences are taken together or alone so as to copy least and call least: a long one whose blocks lie side by side is a
view of the cache and stands alone; the others are gathered by their block tables, those of a few queries and like
length together. SDPA does the work, with query heads that share a key head where it expects queries (a few queries) or
rows of a batch (more), so that keys are never repeated. Many queries on a CPU, parts of prompts, are written as the
products of kernels/cpu_linear.py, over those keys alone that a block of queries sees: twice as fast as SDPA.

Shape suffixes: N queries of the step, B sequences of a group, T queries of each, S keys of each, M blocks of each,
H query heads, K key/value heads, G query heads per key/value head, D key width, E value width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_linear import cpu_linear, fits, has_onednn
from .paged_attention import PagedBatch, Scores, value_scales
from .rope_kv import PagedLayer

# Queries a sequence up to which sequences are taken together, as many as speculation checks at once and a few more.
FEW = 16
# Sequences of a group hold at most a quarter more blocks than its shortest, and two: what is copied in vain.
MORE_BLOCKS, SPARE_BLOCKS = 1.25, 2
# Bytes of a sequence's keys up to which copying them costs less than a call of SDPA.
SHORT = 192 * 1024
# Queries of a sequence from which on they are worth products of their own, and how many are multiplied at once.
MANY, TILE = 64, 128
# Queries whose scores are held at once where they are written out.
ROWS = 256


@dataclass(frozen=True, eq=False)
class Group:
    """Sequences that are computed by one call, and what of it does not change from layer to layer."""

    rows: slice | Tensor  # their queries in the step, [B * T]
    count: int
    queries: int
    run: slice | None  # places of the keys in the cache, where they lie side by side
    blocks: Tensor | None  # the blocks that are gathered, [B * M]
    empty: Tensor | None  # which of the gathered places, [B * S], hold no key of their sequence
    query_at_BT: Tensor
    key_at_BS: Tensor
    mask_BTS: Tensor | None  # None: all is seen
    causal: bool = False  # the mask is SDPA's own: as many queries as keys, each sees those up to its own
    tiles: tuple[Tile, ...] = ()  # of one sequence with many queries


@dataclass(frozen=True, eq=False)
class Tile:
    """Queries that are multiplied at once, and the keys that any of them sees."""

    queries: slice
    keys: slice
    first_hidden: int  # of these keys the first that not all of the queries see
    bias_TS: Tensor  # from there on: 0 where seen, -inf where not


@dataclass(frozen=True)
class _Sequence:
    first: int  # of its queries
    count: int
    length: int
    begin: int  # number of its first block that any query sees
    blocks: list[int]
    gathered: bool  # wherever its blocks lie

    @property
    def side_by_side(self) -> bool:
        return not self.gathered and self.blocks == list(range(self.blocks[0], self.blocks[0] + len(self.blocks)))


def paged_attention_reference(q_NHD: Tensor, layer: PagedLayer, batch: PagedBatch, scores: Scores) -> Tensor:
    """`paged_attention` in plain torch. Works in the queries' type, or in float32 where scores are not plain."""
    out_NHE = q_NHD.new_zeros(*q_NHD.shape[:2], layer.values.shape[-1])
    kv_heads = layer.keys.shape[2]
    tiled = scores.plain and fits(q_NHD, layer.keys) and has_onednn()
    for group in _groups(layer, batch, scores, tiled):
        q_BTKGD = q_NHD[group.rows].unflatten(0, (group.count, group.queries)).unflatten(2, (kv_heads, -1))
        k_BSKD = _read(layer.keys, layer.key_scales, group, q_NHD.dtype)
        v_BSKE = _read(layer.values, value_scales(layer), group, q_NHD.dtype)
        attend = _tiled if group.tiles else _products if scores.plain else _written_out
        out_NHE[group.rows] = attend(group, scores, q_BTKGD, k_BSKD, v_BSKE).flatten(0, 1).flatten(1, 2)
    return out_NHE


def _products(group: Group, scores: Scores, q_BTKGD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor) -> Tensor:
    k_BKSD, v_BKSE, mask = k_BSKD.transpose(1, 2), v_BSKE.transpose(1, 2), group.mask_BTS
    _count, queries, _heads, shared, _width = q_BTKGD.shape
    if queries <= FEW:  # all heads that share keys as queries of one head
        if mask is not None:
            mask = mask[:, None].expand(-1, -1, queries, -1)
            mask = mask.repeat(1, 1, shared, 1) if queries > 1 else mask
        if group.causal:
            mask = torch.ones(queries, queries, dtype=torch.bool, device=q_BTKGD.device).tril().repeat(shared, 1)
        q = q_BTKGD.permute(0, 2, 3, 1, 4).flatten(2, 3)
        out_BKXE = F.scaled_dot_product_attention(q, k_BKSD, v_BKSE, attn_mask=mask, scale=scores.scale)
        return out_BKXE.unflatten(2, (shared, queries)).permute(0, 3, 1, 2, 4)
    # One sequence: its heads that share keys as a batch that looks at the same keys.
    out_GKTE = F.scaled_dot_product_attention(
        q_BTKGD[0].permute(2, 1, 0, 3),
        k_BKSD.expand(shared, -1, -1, -1),
        v_BKSE.expand(shared, -1, -1, -1),
        attn_mask=mask,
        is_causal=group.causal,
        scale=scores.scale,
    )
    return out_GKTE.permute(2, 1, 0, 3)[None]


def _tiled(group: Group, scores: Scores, q_BTKGD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor) -> Tensor:
    """One sequence as products of a block of queries, of all heads that share keys, with the keys they see, in
    float32."""
    q_TKGD, heads = q_BTKGD[0].float(), range(k_BSKD.shape[2])
    keys_KSD = (k_BSKD[0].float() * scores.scale).transpose(0, 1).contiguous()
    values_KES = v_BSKE[0].float().permute(1, 2, 0)
    out_TKGE = q_TKGD.new_empty(*q_TKGD.shape[:3], v_BSKE.shape[-1])
    for tile in group.tiles:
        seen_KES = values_KES[..., tile.keys].contiguous()
        for head in heads:
            x_TGS = cpu_linear(q_TKGD[tile.queries, head], keys_KSD[head, tile.keys])
            x_TGS[..., tile.first_hidden :] += tile.bias_TS[:, None]
            out_TKGE[tile.queries, head] = cpu_linear(x_TGS.softmax(dim=-1), seen_KES[head])
    return out_TKGE[None].to(q_BTKGD.dtype)


def _written_out(group: Group, scores: Scores, q_BTKGD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor) -> Tensor:
    parts = [
        _weighted(scores, q, k_BSKD, v_BSKE, at, group.key_at_BS, mask)
        for q, at, mask in zip(
            q_BTKGD.split(ROWS, dim=1),
            group.query_at_BT.split(ROWS, dim=1),
            _mask(group, q_BTKGD.device).split(ROWS, dim=1),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=1)


def _mask(group: Group, device: torch.device) -> Tensor:
    if group.mask_BTS is not None:
        return group.mask_BTS
    seen = torch.ones(group.count, group.queries, group.key_at_BS.shape[1], dtype=torch.bool, device=device)
    return seen.tril() if group.causal else seen


def _weighted(
    scores: Scores, q: Tensor, k: Tensor, v: Tensor, query_at: Tensor, key_at: Tensor, mask: Tensor
) -> Tensor:
    """Scores, their softmax and the weighted values, written out."""
    exact = torch.promote_types(q.dtype, torch.float32)
    heads = q.shape[2:4]
    x_BKGTS = torch.einsum("btkgd,bskd->bkgts", q.to(exact), k.to(exact)) * scores.scale
    if scores.softcap is not None:
        x_BKGTS = scores.softcap * torch.tanh(x_BKGTS / scores.softcap)
    if scores.alibi_slopes_H is not None:
        distance_BTS = (query_at[:, :, None] - key_at[:, None]).abs()
        slopes_KG11 = scores.alibi_slopes_H.to(exact).view(*heads, 1, 1)
        x_BKGTS = x_BKGTS - slopes_KG11 * distance_BTS[:, None, None]
    x_BKGTS = x_BKGTS.masked_fill(~mask[:, None, None], float("-inf"))
    keys = x_BKGTS.shape[-1]
    if scores.sinks_H is not None:
        sinks = scores.sinks_H.to(exact).view(*heads, 1, 1).expand(*x_BKGTS.shape[:-1], 1)
        x_BKGTS = torch.cat((x_BKGTS, sinks), dim=-1)
    weights = x_BKGTS.softmax(dim=-1)[..., :keys]
    return torch.einsum("bkgts,bske->btkge", weights, v.to(exact)).to(q.dtype)


def _read(cache: Tensor, scales: Tensor | None, group: Group, dtype: torch.dtype) -> Tensor:
    """Keys or values of a group in the queries' type, `[B, S, K, D]`: a view where there is nothing to do."""
    x = _gather(cache, group)
    if scales is not None:
        x = (x.float() * _gather(scales, group)[..., None].float()).to(dtype)
    elif x.dtype != dtype:
        x = x.to(dtype)
    if group.empty is not None:  # a weight of 0 does not undo what is not a number
        x = x.flatten(0, 1).index_fill_(0, group.empty, 0).view_as(x)
    return x


def _gather(cache: Tensor, group: Group) -> Tensor:
    if group.run is not None:
        return cache.flatten(0, 1)[group.run][None]
    assert group.blocks is not None
    bytewise = cache.view(torch.uint8) if cache.dtype.itemsize == 1 else cache
    gathered = bytewise.index_select(0, group.blocks).view(cache.dtype)
    return gathered.flatten(0, 1).unflatten(0, (group.count, -1))


def _groups(layer: PagedLayer, batch: PagedBatch, scores: Scores, tiled: bool) -> list[Group]:
    """The step's groups; the first layer with such a window works them out."""
    window = scores.window if scores.window is not None and scores.window < max(batch.on_host[2], default=0) else None
    sinks = scores.sink_tokens if window is not None else 0
    key = (window, sinks, scores.causal, tiled, layer.block_table_SM.data_ptr())
    if key not in batch.plans:
        cut = replace(scores, window=window, sink_tokens=sinks)
        size = layer.keys.shape[1]
        bytes_a_block = layer.keys[:1].nbytes
        together = _together(list(_sequences(layer.block_table_SM, batch, cut, size)), SHORT // bytes_a_block)
        batch.plans[key] = [_plan(sequences, cut, size, tiled, layer.keys.device) for sequences in together]
    return batch.plans[key]


def _sequences(table_SM: Tensor, batch: PagedBatch, scores: Scores, size: int) -> Iterator[_Sequence]:
    for slot, (first, end), length in zip(
        batch.on_host[0],
        zip(batch.on_host[1][:-1], batch.on_host[1][1:], strict=True),
        batch.on_host[2],
        strict=True,
    ):
        count = end - first
        if length == 0 or count == 0:
            continue
        assert count <= length, "a query's own key must be cached"
        begin = 0
        if scores.window is not None and scores.sink_tokens == 0:
            begin = max(length - count - scores.window + 1, 0) // size
        blocks = table_SM[slot, begin : -(-length // size)].tolist()
        yield _Sequence(first, count, length, begin, blocks, batch.gathered)


def _together(sequences: Sequence[_Sequence], short: int) -> list[list[_Sequence]]:
    """Groups of sequences; those of up to `short` blocks are copied rather than called alone."""

    def stands_alone(one: _Sequence) -> bool:
        return len(one.blocks) > short and one.side_by_side

    groups: list[list[_Sequence]] = []
    for one in sorted(sequences, key=lambda one: (one.count, len(one.blocks), one.first)):
        last = groups[-1][0] if groups else None
        if (
            last is not None
            and last.count == one.count <= FEW
            and not (stands_alone(last) or stands_alone(one))
            and len(one.blocks) <= len(last.blocks) * MORE_BLOCKS + SPARE_BLOCKS
        ):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _plan(sequences: list[_Sequence], scores: Scores, size: int, tiled: bool, device: torch.device) -> Group:
    count, queries = len(sequences), sequences[0].count
    sequences = sorted(sequences, key=lambda one: one.first)
    firsts = [one.first for one in sequences]
    rows: slice | Tensor = slice(firsts[0], firsts[0] + count * queries)
    if firsts != list(range(firsts[0], firsts[0] + count * queries, queries)):
        rows = torch.tensor([first + at for first in firsts for at in range(queries)], device=device)
    run = blocks = None
    if count == 1 and sequences[0].side_by_side:
        one = sequences[0]
        keys = one.length - one.begin * size
        run = slice(one.blocks[0] * size, one.blocks[0] * size + keys)
    else:
        most = max(len(one.blocks) for one in sequences)
        keys = most * size
        padded = [one.blocks + one.blocks[-1:] * (most - len(one.blocks)) for one in sequences]
        blocks = torch.tensor(padded, device=device).flatten()
    begins_B, lengths_B = torch.tensor([[one.begin * size, one.length] for one in sequences], device=device).unbind(1)
    key_at_BS = begins_B[:, None] + torch.arange(keys, device=device)
    query_at_BT = lengths_B[:, None] - queries + torch.arange(queries, device=device)
    held_BS = key_at_BS < lengths_B[:, None]
    empty = (~held_BS).flatten().nonzero()[:, 0]
    group = Group(rows, count, queries, run, blocks, empty if len(empty) else None, query_at_BT, key_at_BS, None)
    if tiled and queries >= MANY:
        return replace(group, tiles=tuple(_tiles(scores, query_at_BT, key_at_BS, held_BS)))
    if scores.causal and scores.window is None and run is not None and queries == keys > 1:
        return replace(group, causal=True)
    mask_BTS = _visible(scores, query_at_BT, key_at_BS) & held_BS[:, None]
    return group if bool(mask_BTS.all()) else replace(group, mask_BTS=mask_BTS)


def _tiles(scores: Scores, query_at_BT: Tensor, key_at_BS: Tensor, held_BS: Tensor) -> Iterator[Tile]:
    for first in range(0, query_at_BT.shape[1], TILE):
        queries = slice(first, min(first + TILE, query_at_BT.shape[1]))
        seen_TS = (_visible(scores, query_at_BT[:, queries], key_at_BS) & held_BS[:, None])[0]
        by_any = seen_TS.any(dim=0).nonzero()[:, 0]
        keys = slice(int(by_any[0]), int(by_any[-1]) + 1)
        seen_TS = seen_TS[:, keys]
        hidden = (~seen_TS).any(dim=0).nonzero()[:, 0]
        first_hidden = int(hidden[0]) if len(hidden) else seen_TS.shape[1]
        bias_TS = torch.zeros(seen_TS.shape, device=seen_TS.device).masked_fill_(~seen_TS, -torch.inf)
        yield Tile(queries, keys, first_hidden, bias_TS[:, first_hidden:].contiguous())


def _visible(scores: Scores, query_at_BT: Tensor, key_at_BS: Tensor) -> Tensor:
    distance_BTS = query_at_BT[:, :, None] - key_at_BS[:, None]
    seen = distance_BTS >= 0 if scores.causal else torch.ones_like(distance_BTS, dtype=torch.bool)
    if scores.window is not None:
        near = distance_BTS < scores.window
        if not scores.causal:
            near &= distance_BTS > -scores.window
        seen &= near | (key_at_BS < scores.sink_tokens)[:, None]
    return seen
