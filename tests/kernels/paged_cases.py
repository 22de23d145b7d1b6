"""Caches of shuffled blocks, with what is not a number wherever no token stands, and attention over them as its
definition has it: a query at a time, in float64."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gristmill.kernels.paged_attention import PagedBatch, Scores, write_kv
from gristmill.kernels.rope_kv import PagedLayer

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Case:
    """Sequences of `lengths` cached tokens, of which the last `counts` are the step's queries."""

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    width: int = 16
    value_width: int | None = None  # None: the same
    latent: bool = False  # values lie in the keys
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # None: the same
    window: int | None = None
    sink_tokens: int = 0
    softcap: float | None = None
    causal: bool = True
    alibi: bool = False
    sinks: bool = False
    num_decoding: int | None = None
    max_count: int | None = None
    shared_blocks: int = 0  # blocks that the sequences of two blocks or more have in common, at their beginning
    side_by_side: bool = False
    seed: int = 0
    device: str = "cpu"

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name, None))


@dataclass
class Example:
    """A case made out: what `paged_attention` takes, and the places of each sequence in the cache."""

    case: Case
    q_NHD: Tensor
    layer: PagedLayer
    batch: PagedBatch
    scores: Scores
    places: list[Tensor] = field(default_factory=list)

    @property
    def arguments(self) -> tuple[Tensor, PagedLayer, PagedBatch, Scores]:
        return self.q_NHD, self.layer, self.batch, self.scores


def example(case: Case) -> Example:
    generator = torch.Generator().manual_seed(case.seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    size = case.block_size
    value_width = case.value_width or case.width
    needed = [-(-length // size) for length in case.lengths]
    num_blocks, most = sum(needed) + 3, max(needed) + 1
    order = torch.arange(num_blocks) if case.side_by_side else torch.randperm(num_blocks, generator=generator)
    slots = torch.randperm(len(case.lengths) + 2, generator=generator)[: len(case.lengths)].tolist()
    # Beyond a sequence's blocks the table leads to blocks that hold nothing.
    table = order[-1].int().expand(len(case.lengths) + 2, most).clone()
    taken = 0
    for slot, blocks in zip(slots, needed, strict=True):
        table[slot, :blocks] = order[taken : taken + blocks]
        if blocks > case.shared_blocks:
            table[slot, : case.shared_blocks] = order[-3]
        taken += blocks
    layer = empty_layer(case, num_blocks, value_width, table)
    places = []
    for slot, length in zip(slots, case.lengths, strict=True):
        at = torch.arange(length)
        places.append(table[slot, at // size].long() * size + at % size)
    unique = torch.cat(places).unique() if places else torch.empty(0, dtype=torch.long)
    k = noise(len(unique), case.kv_heads, case.width)
    v = k[..., :value_width] if case.latent else noise(len(unique), case.kv_heads, value_width)
    write_kv(layer, unique, k.to(case.dtype), v.to(case.dtype))
    q = noise(sum(case.counts), case.heads, case.width).to(case.dtype)
    slopes = torch.rand(case.heads, generator=generator) if case.alibi else None
    sinks = noise(case.heads) if case.sinks else None
    scores = Scores(
        1 / math.sqrt(case.width), case.causal, case.window, case.sink_tokens, case.softcap,
        None if slopes is None else slopes.to(case.device), None if sinks is None else sinks.to(case.device),
    )  # fmt: skip
    batch = PagedBatch.of(slots, case.counts, case.lengths, case.device, case.num_decoding)
    if case.max_count is not None:
        batch = PagedBatch(batch.slots_B, batch.offsets, batch.lengths_B, batch.num_decoding, case.max_count)
    moved = [None if x is None else x.to(case.device) for x in layer]
    if case.latent:
        moved[1] = moved[0][..., :value_width]
    places = [x.to(case.device) for x in places]
    return Example(case, q.to(case.device), PagedLayer(*moved), batch, scores, places)


def empty_layer(case: Case, num_blocks: int, value_width: int, table: Tensor) -> PagedLayer:
    """A cache in which nothing is a number."""
    shape = (num_blocks, case.block_size, case.kv_heads)
    dtype = case.cache_dtype or case.dtype
    if dtype.itemsize == 1:
        # e4m3's NaN; int8 has none, but its scales do.
        codes = [torch.full((*shape, width), 0x7F, dtype=torch.uint8) for width in (case.width, value_width)]
        keys, values = (x.view(dtype) for x in codes)
        scales = [torch.full(shape, float("nan")) for _ in range(2)]
        if case.latent:
            return PagedLayer(keys, keys[..., :value_width], table, *scales)
        return PagedLayer(keys, values, table, *scales)
    keys = torch.full((*shape, case.width), float("nan"), dtype=dtype)
    if case.latent:
        return PagedLayer(keys, keys[..., :value_width], table)
    return PagedLayer(keys, torch.full((*shape, value_width), float("nan"), dtype=dtype), table)


def by_definition(example: Example) -> Tensor:
    """Float64 `[N, H, E]`."""
    case, scores, layer = example.case, example.scores, example.layer
    group = case.heads // case.kv_heads
    rows = []
    first = 0
    for places, length, count in zip(example.places, case.lengths, case.counts, strict=True):
        keys = read(layer.keys, layer.key_scales, places)
        values = read(layer.values, layer.key_scales if case.latent else layer.value_scales, places)
        at = torch.arange(length, device=keys.device)
        for number in range(count):
            query_at = length - count + number
            for head in range(case.heads):
                if length == 0:
                    rows.append(values.new_zeros(values.shape[-1] if values.numel() else layer.values.shape[-1]))
                    continue
                x = keys[:, head // group] @ example.q_NHD[first + number, head].double() * scores.scale
                if scores.softcap is not None:
                    x = scores.softcap * torch.tanh(x / scores.softcap)
                if scores.alibi_slopes_H is not None:
                    x = x - scores.alibi_slopes_H[head].double() * (query_at - at).abs()
                seen = at <= query_at if scores.causal else torch.ones_like(at, dtype=torch.bool)
                if scores.window is not None:
                    near = (query_at - at).abs() < scores.window
                    seen &= near | (at < scores.sink_tokens)
                x = x.masked_fill(~seen, float("-inf"))
                highest = x.max()
                weights = (x - highest).exp()
                whole = weights.sum()
                if scores.sinks_H is not None:
                    whole = whole + (scores.sinks_H[head].double() - highest).exp()
                rows.append(weights @ values[:, head // group] / whole)
        first += count
    return torch.stack(rows).view(sum(case.counts), case.heads, -1)


def read(cache: Tensor, scales: Tensor | None, places: Tensor) -> Tensor:
    """Keys or values at places of the cache, float64 `[S, K, D]`."""
    cache = cache.flatten(0, 1)
    if cache.dtype.itemsize == 1:
        x = cache.view(torch.uint8)[places].view(cache.dtype).double()
    else:
        x = cache[places].double()
    return x if scales is None else x * scales.flatten(0, 1)[places].double()[..., None]


def check(found: Tensor, example: Example) -> None:
    """By the norm of each row, so that no small element hides a wrong one nor a large one's rounding counts."""
    expected = by_definition(example)
    assert found.dtype == example.case.dtype
    assert found.shape == expected.shape
    assert found.isfinite().all(), "what no sequence holds has leaked"
    error = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=0.05)
    assert error.max() < TOLERANCES[example.case.dtype], f"{error.max().item():.2e}"
