"""Paged attention of sequences that decode: one query each, or the few of which drafts are checked.

Nothing is computed twice and little at all: the time is that of reading the keys and values. So the keys of a sequence
are divided among programs (Dao et al. 2023, "Flash-Decoding"), or a batch of one would use as many multiprocessors as
it has key heads. How many parts a sequence has follows from its own length alone, so its result is the same, bit for
bit, whoever is decoded with it. The program that ends a sequence's last part merges all of them, in their order.

The grid is the GPU's, not the batch's: a small kernel writes down the list of all parts, once for all layers of a step
that see alike, and a program draws its next part as it begins one. So one CUDA graph serves all lengths, no program
starts in vain, and those that got short parts take more of them.

Figures behind the choices, for an H100 (132 multiprocessors, 228 KiB of shared memory each, 3.0 TB/s):
- A part takes a program some four latencies in a row (the list, the blocks' numbers, keys, what it leaves) of about
  1 us, and its bytes take a multiprocessor 1 us for each 23 KB. What hides the former are other programs of the same
  multiprocessor, so there are as many as registers allow: eight of one warp where heads are 64 wide (248 registers),
  four of two warps where they are 128 wide (250). Nothing waits at a barrier within one warp, and nearly nothing
  within two: measured, 256 sequences of 100 to 1,800 keys, heads 64 wide: 152 us with two programs of four warps, 99
  with four (128 registers), 81 with eight of one warp.
- Parts that are taken, not dealt out beforehand: 351 us instead of 378, heads 128 wide, the same sequences.
- A tile lies in one block of the cache, so that its addresses are one number and what is the same for all tiles: 304
  instructions a tile and warp instead of 630 (sm_90a, heads 128 wide, two warps). Only the last tile is masked.
- 16 rows are the tensor cores' least: a group of 1 to 16 queries costs the same. The merge has rows for those alone.
- A batch of one at 256 or 512 tokens gets 4 parts a head. Longer sequences have longer parts: what is left for the
  merge, 4 (E + 2) bytes a row, and the latencies are shared by more keys, and few sequences still fill the GPU.
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
    block_numbers,
    cache_bytes_per_key,
    common_arguments,
    load_queries,
    seen_tiles,
    store_rows,
    width_of,
)
from .rope_kv import PagedLayer
from .sizes import ceil_div, power_of_two

FIELDS = 9  # of a part: sequence, slot, length, first query, queries, first tile, end, parts of the sequence, its first
SHORTEST_PART = 64  # keys
PROGRAMS = 264  # of a batch of one, over all heads; a constant, so that results do not depend on the GPU's size
TILES_BYTES = 72 * 1024  # shared memory of the tiles of a program of four warps: two of them fit a multiprocessor


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
    registers: int | None = None  # a thread, at most
    shortest_part: int = SHORTEST_PART


def decode_space(
    num_seqs: int, num_heads: int, layer: PagedLayer, max_count: int = 1, shortest_part: int = SHORTEST_PART
) -> DecodeSpace:
    """Space for batches of `num_seqs` sequences as long as the block table is wide."""
    kv_heads, width = layer.keys.shape[2], layer.values.shape[-1]
    parts = num_seqs * kv_heads * parts_of_longest(layer, shortest_part)
    rows = num_heads // kv_heads * max_count
    device = layer.keys.device
    return DecodeSpace(
        torch.empty(parts, rows, width, dtype=torch.float32, device=device),
        torch.empty(parts, 2, rows, dtype=torch.float32, device=device),
        torch.zeros(num_seqs * kv_heads, dtype=torch.int32, device=device),
    )


def most_parts(kv_heads: int) -> int:
    """Parts of a sequence at most."""
    return min(max(power_of_two(PROGRAMS // kv_heads), 8), 256)


def parts_of_longest(layer: PagedLayer, shortest_part: int) -> int:
    """Parts at most of a sequence as long as the block table is wide: `_parts`, of whichever length has most."""
    shortest = ceil_div(layer.block_table_SM.shape[1] * layer.keys.shape[1], shortest_part)
    return min(max(min(shortest, 4), ceil_div(shortest, 4)), most_parts(layer.keys.shape[2]))


def merged_at_once(rows: int, value_width: int) -> int:
    """Parts whose sums are on their way together in the merge: 2,048 numbers, 16 registers a thread of 4 warps."""
    return min(max(2048 // (power_of_two(rows) * width_of(value_width)), 1), 8)


def decode_tiles(layer: PagedLayer, rows: int) -> DecodeTiles:
    """32 keys and as many warps, one or two, as hold a tile and the sums in their registers; else four warps and more
    keys, eight where sums would fill theirs. Two or three tiles are on their way."""
    bytes_per_key = cache_bytes_per_key(layer)
    if width_of(rows) == 16 and bytes_per_key in (256, 512) and layer.key_scales is None:
        return DecodeTiles(32, 1, 3, 8, registers=248) if bytes_per_key == 256 else DecodeTiles(32, 2, 3, 4)
    keys = 64 if 2 * 64 * bytes_per_key <= TILES_BYTES else 32
    waiting = min(max(TILES_BYTES // (keys * bytes_per_key), 1), 3)
    wide = width_of(rows) * width_of(layer.values.shape[-1]) > 4096
    # Where a tile is of several blocks it waits for their numbers and then for its keys, and Triton gives each of the
    # two half of the stages.
    stages = waiting + 1 if layer.keys.shape[1] % keys == 0 else 2 * waiting + 1
    return DecodeTiles(keys, 8 if wide else 4, stages, 2)


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
    kv_heads, constants = layer.keys.shape[2], common_arguments(out_NHE, q_NHD, layer, batch, scores)
    rows = q_NHD.shape[1] // kv_heads * batch.max_count
    if tiles is None:
        tiles = decode_tiles(layer, rows)
    if space is None:
        space = decode_space(batch.num_decoding, q_NHD.shape[1], layer, batch.max_count, tiles.shortest_part)
    assert space.sums.shape[0] >= batch.num_decoding * kv_heads * parts_of_longest(layer, tiles.shortest_part)
    assert space.sums.shape[1] >= rows
    assert space.sums.shape[2] == layer.values.shape[-1]
    assert space.arrived.shape[0] >= batch.num_decoding * kv_heads
    programs = _multiprocessors(q_NHD.device) * tiles.programs if q_NHD.is_cuda else 3
    _decode[(min(programs, space.sums.shape[0]),)](
        **constants,
        items=_shared_out(layer, batch, scores, tiles),
        sums=space.sums,
        peaks=space.peaks,
        arrived=space.arrived,
        KV_HEADS=kv_heads,
        FIELDS=FIELDS,
        LANES=32 * tiles.warps,
        ROWS=space.sums.shape[1],
        SOME=merged_at_once(rows, layer.values.shape[-1]),
        BLOCK_R=power_of_two(rows),
        BLOCK_M=width_of(rows),
        BLOCK_N=tiles.keys,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **({} if tiles.registers is None else {"maxnreg": tiles.registers}),
        **launch_options(),
    )


def _shared_out(layer: PagedLayer, batch: PagedBatch, scores: Scores, tiles: DecodeTiles) -> Tensor:
    """The list of a step's parts, int32 `[1 + parts, FIELDS]`, for all layers that see alike; the first row says how
    many there are."""
    most, shortest = most_parts(layer.keys.shape[2]), ceil_div(tiles.shortest_part, tiles.keys)
    recording = layer.keys.is_cuda and torch.cuda.is_current_stream_capturing()
    key = (scores.window, scores.sink_tokens, layer.keys.shape[2], shortest, tiles.keys, recording)
    if key not in batch.plans:
        count = batch.num_decoding
        parts = parts_of_longest(layer, tiles.shortest_part)
        items = torch.empty(1 + count * parts, FIELDS, dtype=torch.int32, device=layer.keys.device)
        _share_out[(count,)](
            items,
            batch.slots_B,
            batch.offsets,
            batch.lengths_B,
            count,
            most,
            shortest,
            scores.window or 0,
            scores.sink_tokens,
            WINDOWED=scores.window is not None,
            FIELDS=FIELDS,
            BLOCK_B=max(power_of_two(count), 16),
            BLOCK_P=power_of_two(parts),
            BLOCK_N=tiles.keys,
            **launch_options(),
        )
        batch.plans[key] = items
    return batch.plans[key]


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _parts(tiles, shortest_part, most_parts):  # type: ignore[no-untyped-def]
    """Tiles of a part, and parts, of a sequence of so many tiles; one part even where there is nothing to see. Up to
    four parts are of the shortest length or, if the sequence is longer, of twice it; beyond, of up to four times it."""
    longer = tl.where(tiles <= 4 * shortest_part, 1, tl.where(tiles <= 8 * shortest_part, 2, 4))
    most = tl.maximum((tiles + most_parts - 1) // most_parts, shortest_part * longer)
    parts = tl.maximum((tiles + most - 1) // most, 1)
    each = tl.maximum((tiles + parts - 1) // parts, 1)
    return each, tl.maximum((tiles + each - 1) // each, 1)


# Not compiled anew for every batch: these change from step to step, or from layer to layer; and where the
# three tensors begin, which are cut out of one.
@triton.jit(
    do_not_specialize=["count", "most_parts", "shortest_part", "window", "sink_tokens"],
    do_not_specialize_on_alignment=["slots", "offsets", "lengths"],
)
def _share_out(  # type: ignore[no-untyped-def]
    items,
    slots,
    offsets,
    lengths,
    count,
    most_parts,
    shortest_part,
    window,
    sink_tokens,
    WINDOWED: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program writes the parts of one sequence behind those of all before it."""
    start_next(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    sequence = tl.program_id(0)
    b = tl.arange(0, BLOCK_B)
    length_b = tl.load(lengths + b, mask=b < count, other=0)
    queries_b = tl.load(offsets + b + 1, mask=b < count, other=0) - tl.load(offsets + b, mask=b < count, other=0)
    tiles_b, _sink_tiles_b, _skipped_b = seen_tiles(
        length_b, length_b - queries_b, window, sink_tokens, WINDOWED, BLOCK_N
    )
    _each_b, parts_b = _parts(tiles_b, shortest_part, most_parts)
    parts_b = tl.where(b < count, parts_b, 0)
    before = tl.sum(tl.where(b < sequence, parts_b, 0), 0)
    if sequence == 0:
        tl.store(items, tl.sum(parts_b, 0))
        tl.store(items + 1, 0)
    length = tl.load(lengths + sequence)
    first = tl.load(offsets + sequence)
    queries = tl.load(offsets + sequence + 1) - first
    tiles, _sink_tiles, _skipped = seen_tiles(length, length - queries, window, sink_tokens, WINDOWED, BLOCK_N)
    each, parts = _parts(tiles, shortest_part, most_parts)
    p = tl.arange(0, BLOCK_P)
    row = items + (1 + before + p) * FIELDS
    there = p < parts
    nothing = tl.zeros([BLOCK_P], tl.int32)
    tl.store(row, nothing + sequence, mask=there)
    tl.store(row + 1, nothing + tl.load(slots + sequence), mask=there)
    tl.store(row + 2, nothing + length, mask=there)
    tl.store(row + 3, nothing + first, mask=there)
    tl.store(row + 4, nothing + queries, mask=there)
    tl.store(row + 5, p * each, mask=there)
    tl.store(row + 6, tl.minimum((p + 1) * each, tiles), mask=there)
    tl.store(row + 7, nothing + parts, mask=there)
    tl.store(row + 8, nothing + before, mask=there)


@triton.jit(do_not_specialize=["table_slot", "window", "sink_tokens"])
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
    items,
    sums,
    peaks,
    arrived,
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
    KV_HEADS: tl.constexpr,
    FIELDS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    SOME: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OPERAND: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    start_next(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    r = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    lane = tl.arange(0, LANES)
    everything = tl.load(items) * KV_HEADS
    work = tl.program_id(0)
    while work < everything:
        # The next one is drawn by one lane and not looked at before the end, so not waited for. A launch draws as many
        # numbers as there is work, so the next launch begins with one that `everything` divides.
        drawn = tl.zeros([LANES], tl.int32)
        if everything > tl.num_programs(0):
            drawn = tl.atomic_add(items + 1 + drawn, 1, mask=lane == 0, sem="relaxed")
        # Neighbouring programs read the heads of the same keys, which lie side by side.
        head = work % KV_HEADS
        item = items + (1 + work // KV_HEADS) * FIELDS
        sequence = tl.load(item)
        slot = tl.load(item + 1)
        length = tl.load(item + 2)
        first = tl.load(item + 3)
        queries = tl.load(item + 4)
        begin = tl.load(item + 5)
        end = tl.load(item + 6)
        parts = tl.load(item + 7)
        first_item = tl.load(item + 8)
        blocks = table + slot.to(tl.int64) * table_slot
        _tiles, sink_tiles, skipped = seen_tiles(length, length - queries, window, sink_tokens, WINDOWED, BLOCK_N)

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
        whole = begin  # tiles before it all rows see whole
        if not WINDOWED:
            seen_by_all = length
            if CAUSAL:
                seen_by_all = length - queries + 1
            whole = tl.maximum(tl.minimum(seen_by_all // BLOCK_N, end), begin)
            block = block_numbers(blocks, begin * BLOCK_N, n, length, PAGE, BLOCK_N)
            for tile in range(begin, whole):
                following = block_numbers(blocks, (tile + 1) * BLOCK_N, n, length, PAGE, BLOCK_N)
                acc, highest, total = attend_tile(
                    acc, highest, total, q_main, q_tail, length, query_at, slope, tile * BLOCK_N, n, block,
                    keys + head * key_head, values + head * value_head, key_scales + head, value_scales + head,
                    key_block, key_place, value_block, value_place, scale_block, scale_place,
                    scale, cap, window, sink_tokens,
                    False, CAUSAL, WINDOWED, CAPPED, ALIBI, SCALED, VALUES_IN_KEYS,
                    PAGE, MAIN, TAIL, E, BLOCK_N, BLOCK_D, BLOCK_TAIL, BLOCK_E, OPERAND,
                )  # fmt: skip
                block = following
        for tile in tl.range(whole, end, num_stages=STAGES if WINDOWED else 1):
            start = (tile + tl.where(tile >= sink_tiles, skipped, 0)) * BLOCK_N
            if WINDOWED:
                block = block_numbers(blocks, start, n, length, PAGE, BLOCK_N)
            acc, highest, total = attend_tile(
                acc, highest, total, q_main, q_tail, length, query_at, slope, start, n, block,
                keys + head * key_head, values + head * value_head, key_scales + head, value_scales + head,
                key_block, key_place, value_block, value_place, scale_block, scale_place,
                scale, cap, window, sink_tokens,
                True, CAUSAL, WINDOWED, CAPPED, ALIBI, SCALED, VALUES_IN_KEYS,
                PAGE, MAIN, TAIL, E, BLOCK_N, BLOCK_D, BLOCK_TAIL, BLOCK_E, OPERAND,
            )  # fmt: skip
            if not WINDOWED:
                block = block_numbers(blocks, start + BLOCK_N, n, length, PAGE, BLOCK_N)

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
            here = arrived + sequence * KV_HEADS + head
            before = tl.atomic_add(here, 1, sem="acq_rel")
            if before == parts - 1:
                tl.store(here, 0)
                few = tl.arange(0, BLOCK_R)  # the rows of the queries, without those that fill a tile up
                own = few < queries * GROUP
                mean, peak, weight = _merged(
                    sums,
                    peaks,
                    first_item * KV_HEADS + head,
                    KV_HEADS,
                    parts,
                    few,
                    own,
                    E,
                    ROWS,
                    BLOCK_R,
                    BLOCK_E,
                    SOME,
                )
                store_rows(
                    mean, peak, weight, own_out, few, own, own_sinks, out_token, out_head, GROUP, E, BLOCK_E, SINKS
                )
        work = everything
        if everything > tl.num_programs(0):
            work = tl.num_programs(0) + tl.sum(tl.where(lane == 0, drawn, 0), 0) % everything


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
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SOME: tl.constexpr,
):
    """A sequence's parts as if they had been one, SOME at a time so that their loads do not wait for each other. Past
    the first-level cache, which may hold what stood there before."""
    e = tl.arange(0, BLOCK_E)
    next_ones = tl.arange(0, SOME)
    acc = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
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
