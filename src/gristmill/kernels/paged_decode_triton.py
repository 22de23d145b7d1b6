"""Paged attention of sequences that decode: one query each, or the few of which drafts are checked.

Nothing is computed twice and little at all: the time is that of reading the keys and values. So the keys of a sequence
are divided among programs (Dao et al. 2023, "Flash-Decoding"), or a batch of one would use as many multiprocessors as
it has key heads. How many parts a sequence has follows from its own length alone, so its result is the same, bit for
bit, whoever is decoded with it. The program that ends a sequence's last part merges all of them, in their order.

The grid is the GPU's, not the batch's: every program works out the list of all parts (a sum over the batch, in
registers) and takes every so many-th. So one CUDA graph serves all lengths, and no program starts in vain.

Figures behind the choices, for an H100 (132 multiprocessors, 228 KiB of shared memory each, 3.0 TB/s):
- 3.0 TB/s times 0.7 us of latency are 2.1 MB on their way, 16 KiB a multiprocessor. A tile of 64 keys of width 128 in
  bfloat16 is 32 KiB with its values; two of them waiting in each of two programs are enough several times over.
- 16 rows are the tensor cores' least: a group of 1 to 16 queries costs the same. 16 x 128 sums on 4 warps are only 16
  registers a thread, but a tile's addresses and the merge take it to 250 (ptxas, sm_90a): two programs of 4 warps fill
  a multiprocessor's registers, which is why the grid has two for each.
- A part of 128 keys is 2 tiles, which are on their way together: about two latencies in all. A batch of one at 512
  tokens gets 4 parts a head. What a part leaves for the merge, 4 (E + 2) bytes a row, is 2-6 % of what it has read.
- At most so many parts that a batch of one fills the GPU twice: more would only be merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent_launch import launch_options, start_next, wait_for_inputs
from .paged_attention import PagedBatch, Scores
from .paged_tile_triton import (
    attend_tile,
    cache_bytes_per_key,
    common_arguments,
    load_queries,
    seen_tiles,
    store_rows,
    width_of,
)
from .rope_kv import PagedLayer

SHORTEST_PART = 128  # keys
PROGRAMS = 264  # of a batch of one, over all heads; a constant, so that results do not depend on the GPU's size
# Shared memory that a program's waiting tiles may take: two programs and what they need besides fit a multiprocessor.
TILES_BYTES = 72 * 1024


@dataclass(frozen=True, eq=False)
class DecodeSpace:
    """Where parts wait for their merge; calls in one stream share it. `arrived` is zeros between calls."""

    sums: Tensor  # float32 [parts, rows, E], base-2 softmax sums of values
    peaks: Tensor  # float32 [parts, 2, rows], highest score and sum of weights
    arrived: Tensor  # int32 [sequences * key heads]


@dataclass(frozen=True)
class DecodeTiles:
    """How the kernel is built; `decode_tiles` chooses."""

    keys: int
    warps: int
    stages: int
    programs: int  # a multiprocessor
    shortest_part: int = SHORTEST_PART


def decode_space(
    num_seqs: int, num_heads: int, layer: PagedLayer, max_count: int = 1, shortest_part: int = SHORTEST_PART
) -> DecodeSpace:
    """Space for batches of `num_seqs` sequences as long as the block table is wide."""
    kv_heads, width = layer.keys.shape[2], layer.values.shape[-1]
    longest = layer.block_table_SM.shape[1] * layer.keys.shape[1]
    parts = num_seqs * kv_heads * min(most_parts(kv_heads), triton.cdiv(longest, shortest_part))
    rows = num_heads // kv_heads * max_count
    device = layer.keys.device
    return DecodeSpace(
        torch.empty(parts, rows, width, dtype=torch.float32, device=device),
        torch.empty(parts, 2, rows, dtype=torch.float32, device=device),
        torch.zeros(num_seqs * kv_heads, dtype=torch.int32, device=device),
    )


def most_parts(kv_heads: int) -> int:
    """Parts of a sequence at most."""
    return min(max(triton.next_power_of_2(PROGRAMS // kv_heads), 8), 256)


def merged_at_once(rows: int, value_width: int) -> int:
    """Parts whose sums are on their way together in the merge: 4,096 numbers, 32 registers a thread of 4 warps."""
    return min(max(4096 // (width_of(rows) * width_of(value_width)), 1), 4)


def decode_tiles(layer: PagedLayer, rows: int) -> DecodeTiles:
    """Tiles of 64 keys, of 32 where heads are so wide (256 and latent ones) that two tiles would not fit; two or three
    of them on their way; twice the warps where sums would fill the registers."""
    bytes_per_key = cache_bytes_per_key(layer)
    keys = 64 if 2 * 64 * bytes_per_key <= TILES_BYTES else 32
    waiting = min(max(TILES_BYTES // (keys * bytes_per_key), 1), 3)
    wide = width_of(rows) * width_of(layer.values.shape[-1]) > 4096
    # A tile waits for its blocks' numbers and then for its keys: Triton gives each of the two half of the stages.
    return DecodeTiles(keys, 8 if wide else 4, 2 * waiting + 1, 2)


def paged_decode_kernel(
    out_NHE: Tensor,
    q_NHD: Tensor,
    layer: PagedLayer,
    batch: PagedBatch,
    scores: Scores,
    space: DecodeSpace | None = None,
    tiles: DecodeTiles | None = None,
) -> None:
    """`paged_attention` of the batch's first `num_decoding` sequences, into their rows of `out_NHE`."""
    kv_heads = layer.keys.shape[2]
    rows = q_NHD.shape[1] // kv_heads * batch.max_count
    if tiles is None:
        tiles = decode_tiles(layer, rows)
    if space is None:
        space = decode_space(batch.num_decoding, q_NHD.shape[1], layer, batch.max_count, tiles.shortest_part)
    assert space.sums.shape[1] >= rows
    assert space.arrived.shape[0] >= batch.num_decoding * kv_heads
    programs = _multiprocessors(q_NHD.device) * tiles.programs if q_NHD.is_cuda else 3
    _decode[(min(programs, space.sums.shape[0]),)](
        **common_arguments(out_NHE, q_NHD, layer, batch, scores),
        slots=batch.slots_B,
        offsets=batch.offsets,
        lengths=batch.lengths_B,
        sums=space.sums,
        peaks=space.peaks,
        arrived=space.arrived,
        count=batch.num_decoding,
        kv_heads=kv_heads,
        most_parts=most_parts(kv_heads),
        shortest_part=triton.cdiv(tiles.shortest_part, tiles.keys),
        ROWS=space.sums.shape[1],
        SOME=merged_at_once(rows, layer.values.shape[-1]),
        BLOCK_B=max(triton.next_power_of_2(batch.num_decoding), 16),
        BLOCK_M=width_of(rows),
        BLOCK_N=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **launch_options(),
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _parts(tiles, shortest_part, most_parts):  # type: ignore[no-untyped-def]
    """Tiles of a part, and parts, of a sequence of so many tiles; one part even where there is nothing to see."""
    each = tl.maximum((tiles + most_parts - 1) // most_parts, shortest_part)
    return each, tl.maximum((tiles + each - 1) // each, 1)


# Not compiled anew for every batch: these change from step to step, or from layer to layer; and where the
# three tensors begin, which are cut out of one.
@triton.jit(
    do_not_specialize=["count", "most_parts", "shortest_part", "table_slot", "window", "sink_tokens"],
    do_not_specialize_on_alignment=["slots", "offsets", "lengths"],
)
def _decode(  # type: ignore[no-untyped-def]
    out,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    slopes,
    sinks,
    slots,
    offsets,
    lengths,
    sums,
    peaks,
    arrived,
    count,
    kv_heads,
    most_parts,
    shortest_part,
    out_token,
    out_head,
    q_token,
    q_head,
    key_block,
    key_place,
    key_head,
    value_block,
    value_place,
    value_head,
    scale_block,
    scale_place,
    table_slot,
    scale,
    cap,
    window,
    sink_tokens,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    SOME: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OPERAND: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    b = tl.arange(0, BLOCK_B)
    length_b = tl.load(lengths + b, mask=b < count, other=0)
    queries_b = tl.load(offsets + b + 1, mask=b < count, other=0) - tl.load(offsets + b, mask=b < count, other=0)
    tiles_b, _sink_tiles_b, _skipped_b = seen_tiles(
        length_b, length_b - queries_b, window, sink_tokens, WINDOWED, BLOCK_N
    )
    _each_b, parts_b = _parts(tiles_b, shortest_part, most_parts)
    parts_b = tl.where(b < count, parts_b, 0)
    ends_b = tl.cumsum(parts_b, 0)

    r = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    for work in range(tl.program_id(0), tl.sum(parts_b, 0) * kv_heads, tl.num_programs(0)):
        # Neighbouring programs read the heads of the same keys, which lie side by side.
        head = work % kv_heads
        item = work // kv_heads
        sequence = tl.sum((ends_b <= item).to(tl.int32), 0)
        first_item = tl.sum(tl.where(b < sequence, parts_b, 0), 0)
        length = tl.load(lengths + sequence)
        first = tl.load(offsets + sequence)
        queries = tl.load(offsets + sequence + 1) - first
        blocks = table + tl.load(slots + sequence).to(tl.int64) * table_slot
        tiles, sink_tiles, skipped = seen_tiles(length, length - queries, window, sink_tokens, WINDOWED, BLOCK_N)
        each, parts = _parts(tiles, shortest_part, most_parts)

        wanted = r < queries * GROUP
        # A row too many sees nothing, being before the first key.
        query_at = tl.where(wanted & (length > 0), length - queries + r // GROUP, -1)
        own_q = q + first.to(tl.int64) * q_token + head * GROUP * q_head
        q_main = load_queries(own_q, r, wanted, q_token, q_head, 0, MAIN, BLOCK_D, GROUP, OPERAND)
        q_tail = q_main
        if TAIL > 0:
            q_tail = load_queries(own_q, r, wanted, q_token, q_head, MAIN, TAIL, BLOCK_TAIL, GROUP, OPERAND)
        slope = tl.zeros([BLOCK_M], tl.float32)
        if ALIBI:
            slope = tl.load(slopes + head * GROUP + r % GROUP) * 1.4426950408889634

        acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        begin = (item - first_item) * each
        for tile in range(begin, tl.minimum(begin + each, tiles)):
            at = (tile + tl.where(tile >= sink_tiles, skipped, 0)) * BLOCK_N + n
            acc, highest, total = attend_tile(
                acc, highest, total, q_main, q_tail, at, length, query_at, slope, blocks,
                keys + head * key_head, values + head * value_head, key_scales + head, value_scales + head,
                key_block, key_place, value_block, value_place, scale_block, scale_place,
                scale, cap, window, sink_tokens,
                True, CAUSAL, WINDOWED, CAPPED, ALIBI, SCALED, VALUES_IN_KEYS,
                PAGE, MAIN, TAIL, E, BLOCK_D, BLOCK_TAIL, BLOCK_E, OPERAND,
            )  # fmt: skip

        own_out = out + first.to(tl.int64) * out_token + head * GROUP * out_head
        own_sinks = sinks + head * GROUP
        if parts == 1:
            store_rows(
                acc, highest, total, own_out, r, wanted, own_sinks, out_token, out_head, GROUP, E, BLOCK_E, SINKS
            )
        else:
            _store_part(acc, highest, total, sums, peaks, work, r, wanted, E, ROWS, BLOCK_E)
            # All of a program's threads have stored before one of them says so; release and acquire do the rest.
            tl.debug_barrier()
            here = arrived + sequence * kv_heads + head
            before = tl.atomic_add(here, 1, sem="acq_rel")
            if before == parts - 1:
                tl.store(here, 0)
                acc, highest, total = _merged(
                    sums,
                    peaks,
                    first_item * kv_heads + head,
                    kv_heads,
                    parts,
                    r,
                    wanted,
                    E,
                    ROWS,
                    BLOCK_M,
                    BLOCK_E,
                    SOME,
                )
                store_rows(
                    acc, highest, total, own_out, r, wanted, own_sinks, out_token, out_head, GROUP, E, BLOCK_E, SINKS
                )


@triton.jit
def _store_part(  # type: ignore[no-untyped-def]
    acc,
    highest,
    total,
    sums,
    peaks,
    part,
    r,
    wanted,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    e = tl.arange(0, BLOCK_E)
    rows = (part * ROWS + r).to(tl.int64)
    tl.store(sums + rows[:, None] * E + e[None, :], acc, mask=wanted[:, None] & (e < E)[None, :])
    peak_at = peaks + part * 2 * ROWS + r
    tl.store(peak_at, highest, mask=wanted)
    tl.store(peak_at + ROWS, total, mask=wanted)


@triton.jit
def _merged(  # type: ignore[no-untyped-def]
    sums,
    peaks,
    part,
    step,
    parts,
    r,
    wanted,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SOME: tl.constexpr,
):
    """A sequence's parts as if they had been one, SOME at a time so that their loads do not wait for each other. Past
    the first-level cache, which may hold what stood there before."""
    e = tl.arange(0, BLOCK_E)
    next_ones = tl.arange(0, SOME)
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, parts, SOME):
        those = (part + (start + next_ones) * step).to(tl.int64)
        mask = (start + next_ones < parts)[:, None] & wanted[None, :]
        peak_at = peaks + those[:, None] * 2 * ROWS + r[None, :]
        peak = tl.load(peak_at, mask=mask, other=float("-inf"), cache_modifier=".cg")
        weight = tl.load(peak_at + ROWS, mask=mask, other=0.0, cache_modifier=".cg")
        sum_at = sums + those[:, None, None] * ROWS * E + r[None, :, None] * E + e[None, None, :]
        some = tl.load(sum_at, mask=mask[:, :, None] & (e < E)[None, None, :], other=0.0, cache_modifier=".cg")
        higher = tl.maximum(highest, tl.max(peak, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        faded = tl.exp2(peak - base[None, :])
        before = tl.exp2(highest - base)
        total = total * before + tl.sum(weight * faded, 0)
        acc = acc * before[:, None] + tl.sum(some * faded[:, :, None], 0)
        highest = higher
    return acc, highest, total
