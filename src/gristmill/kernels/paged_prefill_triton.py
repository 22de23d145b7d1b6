"""Paged attention of many queries a sequence: whole prompts, and parts of prompts whose beginning is cached.

A program takes a block of queries of one sequence, with all heads that share a key head, over the keys they see (Dao
2023, "FlashAttention-2"). Which queries a program has it works out from the batch itself, on the device. Tiles that all
rows see whole need no mask and get none; tiles that no row sees are not read. The last blocks of a sequence see most
and go first, so that the GPU is not left with one of them at the end.

Figures behind the choices, for an H100 (64 Ki registers and 228 KiB of shared memory a multiprocessor):
- Warpgroup products want 64 rows or more. 64 rows meet a tile of keys: 4 * 64 * 64 * D operations for 4 * 64 * D bytes
  from the second-level cache, 64 operations a byte, 350 TFLOP/s at its 5.5 TB/s if heads that share it are not counted.
- D 128: 64 rows on 4 warps, 255 registers (ptxas, sm_90a), queries 16 KiB and three tiles of 32 KiB: two programs a
  multiprocessor, one's softmax beside the other's products. Measured, four prompts of 2,048, 16 heads: 331 TFLOP/s;
  128 rows on 8 warps 313, with tiles of two blocks, whose keys have an address each, 238; 128 keys spill.
- D 64: 4 warps, 255 registers, two programs; one's softmax runs beside the other's products.
- D 256 and latent heads: 64 rows, as the sums take twice the registers, and tiles of 32 keys.
- float32 has no tensor cores at full precision: 32 rows and tiles of 32 keys, no stages; right, not fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .paged_attention import PagedBatch, Scores
from .paged_tile_triton import (
    attend_tile,
    block_numbers,
    common_arguments,
    load_queries,
    seen_tiles,
    store_rows,
    width_of,
)
from .rope_kv import PagedLayer
from .sizes import ceil_div, power_of_two


@dataclass(frozen=True)
class PrefillTiles:
    """How the kernel is built; `prefill_tiles` chooses."""

    rows: int
    keys: int
    warps: int
    stages: int


def prefill_tiles(q_NHD: Tensor, layer: PagedLayer) -> PrefillTiles:
    """Tiles by the width of a head; at least as many rows as query heads share a key head."""
    width = max(width_of(q_NHD.shape[-1]), width_of(layer.values.shape[-1]))
    if q_NHD.dtype.itemsize == 4:
        tiles = PrefillTiles(32, 32, 8, 1)
    elif width <= 64:
        tiles = PrefillTiles(128, 64, 4, 3)
    elif width <= 128:
        tiles = PrefillTiles(64, 64, 4, 3)
    else:
        tiles = PrefillTiles(64, 32, 8, 2)
    shared = power_of_two(q_NHD.shape[1] // layer.keys.shape[2])
    return PrefillTiles(max(tiles.rows, shared), tiles.keys, tiles.warps, tiles.stages)


def paged_prefill_kernel(
    out_NHE: Tensor,
    q_NHD: Tensor,
    layer: PagedLayer,
    batch: PagedBatch,
    scores: Scores,
    tiles: PrefillTiles | None = None,
) -> None:
    """`paged_attention` of the sequences after the batch's first `num_decoding`, into their rows of `out_NHE`."""
    if tiles is None:
        tiles = prefill_tiles(q_NHD, layer)
    kv_heads = layer.keys.shape[2]
    tokens = tiles.rows // (q_NHD.shape[1] // kv_heads)
    decoding = batch.num_decoding
    count = batch.slots_B.shape[0] - decoding
    # A block a sequence may be cut short, no more: what there are of them only the device knows, as also how many
    # queries belong to sequences that decode.
    most_blocks = ceil_div(q_NHD.shape[0], tokens) + count
    _prefill[(most_blocks, kv_heads)](
        **common_arguments(out_NHE, q_NHD, layer, batch, scores),
        slots=batch.slots_B[decoding:],
        offsets=batch.offsets[decoding:],
        lengths=batch.lengths_B[decoding:],
        count=count,
        TOKENS=tokens,
        BLOCK_B=max(power_of_two(count), 16),
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


# Not compiled anew for every batch: these change from step to step, or from layer to layer; and where the
# three tensors begin, which are cut out of one.
@triton.jit(
    do_not_specialize=["count", "table_slot", "window", "sink_tokens"],
    do_not_specialize_on_alignment=["slots", "offsets", "lengths"],
)
def _prefill(  # type: ignore[no-untyped-def]
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
    count,
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
    TOKENS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OPERAND: tl.constexpr,
):
    b = tl.arange(0, BLOCK_B)
    queries_b = tl.load(offsets + b + 1, mask=b < count, other=0) - tl.load(offsets + b, mask=b < count, other=0)
    blocks_b = (queries_b + TOKENS - 1) // TOKENS
    item = tl.sum(blocks_b, 0) - 1 - tl.program_id(0)
    if item < 0:
        return
    sequence = tl.sum((tl.cumsum(blocks_b, 0) <= item).to(tl.int32), 0)
    skip = (item - tl.sum(tl.where(b < sequence, blocks_b, 0), 0)) * TOKENS  # queries of the sequence before this block
    head = tl.program_id(1)
    length = tl.load(lengths + sequence)
    first = tl.load(offsets + sequence)
    queries = tl.load(offsets + sequence + 1) - first
    blocks = table + tl.load(slots + sequence).to(tl.int64) * table_slot

    r = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    here = tl.minimum(queries - skip, TOKENS)
    wanted = r < here * GROUP
    first_at = length - queries + skip
    # A row too many sees nothing, being before the first key.
    query_at = tl.where(wanted & (length > 0), first_at + r // GROUP, -1)
    own_q = q + (first + skip).to(tl.int64) * q_token + head * GROUP * q_head
    q_main = load_queries(own_q, r, wanted, q_token, q_head, 0, MAIN, BLOCK_D, GROUP, OPERAND)
    q_tail = q_main
    if TAIL > 0:
        q_tail = load_queries(own_q, r, wanted, q_token, q_head, MAIN, TAIL, BLOCK_TAIL, GROUP, OPERAND)
    slope = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head * GROUP + r % GROUP) * 1.4426950408889634

    end = length
    whole = length // BLOCK_N  # tiles that all rows see whole
    if CAUSAL:
        end = tl.minimum(length, first_at + here)
        whole = (first_at + 1) // BLOCK_N
    tiles, sink_tiles, skipped = seen_tiles(end, first_at, window, sink_tokens, WINDOWED, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    keys += head * key_head
    values += head * value_head
    key_scales += head
    value_scales += head
    if not WINDOWED:
        block = block_numbers(blocks, 0, n, end, PAGE, BLOCK_N)
        for tile in range(whole):
            following = block_numbers(blocks, (tile + 1) * BLOCK_N, n, end, PAGE, BLOCK_N)
            acc, highest, total = attend_tile(
                acc, highest, total, q_main, q_tail, end, query_at, slope, tile * BLOCK_N, n, block,
                keys, values, key_scales, value_scales,
                key_block, key_place, value_block, value_place, scale_block, scale_place,
                scale, cap, window, sink_tokens,
                False, CAUSAL, WINDOWED, CAPPED, ALIBI, SCALED, VALUES_IN_KEYS,
                PAGE, MAIN, TAIL, E, BLOCK_N, BLOCK_D, BLOCK_TAIL, BLOCK_E, OPERAND,
            )  # fmt: skip
            block = following
    if WINDOWED:
        whole = 0
    for tile in range(whole, tiles):
        start = (tile + tl.where(tile >= sink_tiles, skipped, 0)) * BLOCK_N
        block = block_numbers(blocks, start, n, end, PAGE, BLOCK_N)
        acc, highest, total = attend_tile(
            acc, highest, total, q_main, q_tail, end, query_at, slope, start, n, block,
            keys, values, key_scales, value_scales,
            key_block, key_place, value_block, value_place, scale_block, scale_place,
            scale, cap, window, sink_tokens,
            True, CAUSAL, WINDOWED, CAPPED, ALIBI, SCALED, VALUES_IN_KEYS,
            PAGE, MAIN, TAIL, E, BLOCK_N, BLOCK_D, BLOCK_TAIL, BLOCK_E, OPERAND,
        )  # fmt: skip
    own_out = out + (first + skip).to(tl.int64) * out_token + head * GROUP * out_head
    store_rows(
        acc, highest, total, own_out, r, wanted, sinks + head * GROUP, out_token, out_head, GROUP, E, BLOCK_E, SINKS
    )
