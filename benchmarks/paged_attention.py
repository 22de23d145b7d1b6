"""How near attention over the paged cache comes to what the GPU can: bytes a second where sequences decode, operations
a second where prompts are read, and which tiles do best.

    python benchmarks/paged_attention.py                       # both, at the shapes of three models
    python benchmarks/paged_attention.py --sweep               # other tiles too, the best five and the default
    python benchmarks/paged_attention.py --only decode --contexts 300 mixed --batches 1 256
    python benchmarks/paged_attention.py --cache fp8 --only decode --shape 8b --out paged.json

Decoding: microseconds of one call inside a CUDA graph, which goes round as many caches as it takes to be larger than
the second-level cache; `share` is the bytes of keys and values over that time, over `--bandwidth` (TB/s that a copy
reaches on that GPU). Context `mixed` is lengths of 100 to 1,800 drawn evenly, the same each time. Prompts: 4 D
operations for each query, head and key that the query sees. Beside them torch's own attention over as many keys without
pages (of the longest sequence, all). The best of a sweep is the luckiest of many: time it again before taking it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from gristmill.kernels.paged_attention import PagedBatch, Scores
from gristmill.kernels.paged_decode_triton import DecodeTiles, decode_space, decode_tiles, paged_decode_kernel
from gristmill.kernels.paged_prefill_triton import PrefillTiles, paged_prefill_kernel, prefill_tiles
from gristmill.kernels.rope_kv import PagedLayer, quantized

SHAPES = {"135m": (9, 3, 64), "0.6b": (16, 8, 128), "8b": (32, 8, 128)}  # query heads, key heads, width
CACHES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
MOST_BYTES = 30 * 2**30  # of all caches of a row
COLD_BYTES = 200 * 2**20  # four times an H100's second-level cache


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of attention over the paged cache.")
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--cache", choices=list(CACHES), default="bf16", help="type of keys and values")
    parser.add_argument("--block-size", type=int, default=64, help="tokens of a block of the cache")
    parser.add_argument("--only", choices=["decode", "prefill"], default=None)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--contexts", nargs="+", default=["512", "4096", "65536", "mixed"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s of a copy on this GPU")
    parser.add_argument("--sweep", action="store_true", help="all tiles")
    parser.add_argument("--out", type=Path, default=None, help="JSON of all rows")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}")
    rows: list[dict[str, Any]] = []
    for shape in arguments.shape:
        if arguments.only != "prefill":
            for batch, context in itertools.product(arguments.batches, arguments.contexts):
                rows += report(decode_rows(arguments, shape, batch, context), "share", arguments.sweep)
        if arguments.only != "decode":
            for length in arguments.prompts:
                rows += report(prefill_rows(arguments, shape, length), "tflops", arguments.sweep)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1))


def report(rows: Iterator[dict[str, Any]], by: str, sweep: bool) -> list[dict[str, Any]]:
    """Print the first row, which is the default, torch's, and the best of the others."""
    found = list(rows)
    for row in found[:2] + (sorted(found[2:], key=lambda row: -row.get(by, 0.0))[:5] if sweep else []):
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    return found


def lengths_of(context: str, batch: int) -> list[int]:
    draw = random.Random(0)
    return [draw.randint(100, 1800) if context == "mixed" else int(context) for _ in range(batch)]


def decode_rows(arguments: argparse.Namespace, shape: str, batch: int, context: str) -> Iterator[dict[str, Any]]:
    heads, kv_heads, width = SHAPES[shape]
    dtype = CACHES[arguments.cache]
    per_token = 2 * kv_heads * (width * dtype.itemsize + (4 if dtype.itemsize == 1 else 0))
    lengths = lengths_of(context, batch)
    used = sum(lengths) * per_token
    start = {"decode": shape, "cache": arguments.cache, "batch": batch, "context": context}
    if used > MOST_BYTES:
        return
    copies = math.ceil(COLD_BYTES / used) if used < COLD_BYTES else 1
    layers = [make_layer(shape, dtype, arguments.block_size, batch, max(lengths)) for _ in range(copies)]
    q_NHD = torch.randn(batch, heads, width, dtype=torch.bfloat16, device="cuda")
    paged = PagedBatch.of(list(range(batch)), [1] * batch, lengths, "cuda")
    scores = Scores(width**-0.5)
    out = torch.empty_like(q_NHD)
    default = decode_tiles(layers[0], heads // kv_heads)
    choices = [default]
    if arguments.sweep:
        choices += [
            DecodeTiles(keys, warps, stages, programs, registers, part)
            for (keys, warps, programs, registers), stages, part in itertools.product(
                ((16, 1, 8, 248), (32, 1, 8, 248), (32, 2, 4, None), (64, 2, 6, 160), (32, 4, 4, 128), (64, 4, 4, 128)),
                (3, 4),
                (64, 128, 256),
            )
        ]
    for number, tiles in enumerate(choices):
        paged.plans.clear()  # so that the list of parts is made in each recording
        try:
            space = decode_space(batch, heads, layers[0], 1, tiles.shortest_part)
            calls = [partial(paged_decode_kernel, out, q_NHD, layer, paged, scores, space, tiles) for layer in layers]
            took = graph_time(calls)
        except triton.runtime.errors.OutOfResources:
            continue
        share = used / took / 1e6 / arguments.bandwidth
        yield {**start, **asdict(tiles), "us": took, "share": share}
        if number == 0:
            yield {**start, "torch_us": torch_decode_time(heads, kv_heads, width, batch, max(lengths), copies)}


def torch_decode_time(heads: int, kv_heads: int, width: int, batch: int, context: int, copies: int) -> float:
    """SDPA over keys that lie side by side, in bfloat16."""
    kv = [torch.randn(2, batch, kv_heads, context, width, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
    q = torch.randn(batch, kv_heads, heads // kv_heads, width, dtype=torch.bfloat16, device="cuda")
    return graph_time([partial(F.scaled_dot_product_attention, q, x[0], x[1]) for x in kv])


def prefill_rows(arguments: argparse.Namespace, shape: str, length: int) -> Iterator[dict[str, Any]]:
    heads, kv_heads, width = SHAPES[shape]
    count = max(16384 // length, 1)  # prompts of a step
    layer = make_layer(shape, CACHES[arguments.cache], arguments.block_size, count, length)
    q_NHD = torch.randn(count * length, heads, width, dtype=torch.bfloat16, device="cuda")
    paged = PagedBatch.of(list(range(count)), [length] * count, [length] * count, "cuda", num_decoding=0)
    scores = Scores(width**-0.5)
    out = torch.empty_like(q_NHD)
    operations = count * heads * 4 * width * length * (length + 1) / 2
    start = {"prefill": shape, "cache": arguments.cache, "prompts": count, "length": length}
    default = prefill_tiles(q_NHD, layer)
    choices = [default]
    if arguments.sweep:
        choices += [
            PrefillTiles(rows, keys, warps, stages)
            for rows, keys, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        ]
    for number, tiles in enumerate(choices):
        try:
            call = partial(paged_prefill_kernel, out, q_NHD, layer, paged, scores, tiles)
            took = 1000 * triton.testing.do_bench(call, return_mode="median")
        except triton.runtime.errors.OutOfResources:
            continue
        yield {**start, **asdict(tiles), "us": took, "tflops": operations / took / 1e6}
        if number == 0:
            q, k, v = (
                torch.randn(count, some, length, width, dtype=torch.bfloat16, device="cuda")
                for some in (heads, kv_heads, kv_heads)
            )
            torchs = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
            took = 1000 * triton.testing.do_bench(torchs, return_mode="median")
            yield {**start, "torch_us": took, "torch_tflops": operations / took / 1e6}


def make_layer(shape: str, dtype: torch.dtype, block_size: int, sequences: int, length: int) -> PagedLayer:
    """A cache of random numbers whose blocks are shuffled."""
    _heads, kv_heads, width = SHAPES[shape]
    blocks = -(-length // block_size)
    table = torch.randperm(sequences * blocks, device="cuda").int().view(sequences, blocks)
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    for _ in range(2):
        x = torch.randn(sequences * blocks, block_size, kv_heads, width, dtype=torch.bfloat16, device="cuda")
        if dtype.itemsize == 1:
            x, scale = quantized(x, dtype)
            scales.append(scale)
        codes.append(x)
    return PagedLayer(codes[0], codes[1], table, *scales)


def graph_time(calls: Sequence[Callable[[], object]]) -> float:
    """Median microseconds of a call, from replays of a graph of all of them, several times over."""
    repeats = max(20 // len(calls), 1)
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(15):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / (repeats * len(calls)))
    return sorted(times[3:])[len(times[3:]) // 2]


if __name__ == "__main__":
    main()
