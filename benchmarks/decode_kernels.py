"""What the small kernels of a decoding step reach on this GPU, beside torch and cuBLAS.

    python benchmarks/decode_kernels.py [--shapes 135m 0.6b 8b] [--rows 1 8 32 256] [--sweep] [--chain]

Every figure is the time of one call inside a CUDA graph of many calls, each on another set of tensors, so that no
weight comes from a cache; GB/s are the bytes that have to move (weights, inputs, outputs once) over that time. Three
rows and more are multiplied on tensor cores, and once more row by row as one or two are.
`--sweep` tries block sizes, warps and stages of the linear layers and prints the best of each. `--chain` replays all
layers but attention, with and without early starts (kernels/dependent_launch.py): what is left of a step's floor.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from gristmill.kernels import dependent_launch
from gristmill.kernels.norms import Norm, add_norm
from gristmill.kernels.rope_kv import PagedLayer, Turning, rope_kv, rope_kv_reference
from gristmill.kernels.sizes import ceil_div
from gristmill.kernels.small_linear import Path, most_rows, small_linear
from gristmill.kernels.small_linear_triton import small_linear_kernel, takes_vector
from gristmill.kernels.swiglu import gated_activation

DTYPE = torch.bfloat16
CACHED = 120e6  # bytes that a rotation of tensors must exceed: twice an H100's L2 cache and more
LAYERS_OF_CHAIN = 30


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    wide: int
    vocab: int
    qk_norm: bool = False


SHAPES = {
    "135m": Shape(30, 576, 9, 3, 64, 1536, 49_152),
    "0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151_936, qk_norm=True),
    "8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256),
}


def random(*size: int) -> Tensor:
    return torch.randn(*size, device="cuda", dtype=DTYPE)


def seconds(call: Callable[[int], Any], sets: int, least: int = 40, repeats: int = 15) -> float:
    """Median time of `call(set)` inside a graph of at least `least` calls that goes through all sets."""
    calls = [number % sets for number in range(max(least, sets))]
    for number in calls[:3]:
        call(number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in calls:
            call(number)
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return sorted(times)[len(times) // 2]


def compare(
    name: str, rows: int, moved: float, ours: Callable[[int], Any], theirs: Callable[[int], Any], sets: int
) -> None:
    """One line: microseconds and GB/s of both."""
    mine, other = seconds(ours, sets), seconds(theirs, sets)
    print(
        f"{name:<24} M={rows:<4} {mine * 1e6:8.2f} us {moved / mine / 1e9:7.0f} GB/s   torch {other * 1e6:8.2f} us "
        f"{moved / other / 1e9:7.0f} GB/s   x{other / mine:.2f}",
        flush=True,
    )


Inputs = tuple[Tensor, Tensor, Norm | None, Tensor | None]  # x, weight, norm, residual


@dataclass(frozen=True)
class Product:
    """A linear layer of a block, and what is fused with it."""

    name: str
    outputs: int
    width: int
    norm: bool = False
    gated: bool = False
    residual: bool = False


def products(shape: Shape) -> list[Product]:
    queries = shape.heads * shape.head_dim
    return [
        Product("qkv", (shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden, norm=True),
        Product("output", shape.hidden, queries, residual=True),
        Product("gate_up", shape.wide, shape.hidden, norm=True, gated=True),
        Product("down", shape.hidden, shape.wide, residual=True),
        Product("head", shape.vocab, shape.hidden),
    ]


def tensors(product: Product, rows: int) -> tuple[list[Inputs], float]:
    """Sets of x, weight, norm and residual, and the bytes that one call moves."""
    down = product.outputs * (2 if product.gated else 1)
    moved = 2.0 * (down * product.width + rows * (product.width + product.outputs * (2 if product.residual else 1)))
    sets = []
    for _ in range(max(int(CACHED / moved) + 1, 2)):
        residual = random(rows, product.outputs) if product.residual else None
        norm = Norm(random(product.width), 1e-5) if product.norm else None
        sets.append((random(rows, product.width), random(down, product.width) * product.width**-0.5, norm, residual))
    return sets, moved


def library(product: Product, x: Tensor, weight: Tensor, norm: Norm | None, residual: Tensor | None) -> Tensor:
    """The same through torch: norm, cuBLAS, and the rest as one kernel each where we have one."""
    if norm is not None:
        x = F.rms_norm(x, norm.weight_C.shape, norm.weight_C, norm.eps)
    if residual is not None:
        return torch.addmm(residual, x, weight.t())
    out = F.linear(x, weight)
    return gated_activation(out, "silu") if product.gated else out


def fused(product: Product, inputs: Inputs, tuning: dict[str, int] | None = None, path: Path | None = None) -> Tensor:
    x, weight, norm, residual = inputs
    activation = "silu" if product.gated else None
    return small_linear_kernel(x, weight, None, norm, activation, product.gated, residual, path, tuning)


def linear_layers(shape_name: str, rows: int) -> None:
    for product in products(SHAPES[shape_name]):
        sets, moved = tensors(product, rows)
        ours = lambda number, product=product, sets=sets: fused(product, sets[number])  # noqa: E731
        theirs = lambda number, product=product, sets=sets: library(product, *sets[number])  # noqa: E731
        found, expected = ours(0).float(), theirs(0).float()
        error = ((found - expected).norm() / expected.norm()).item()
        assert error < 1e-2, f"{product.name}: the results differ by {error}"
        compare(f"{shape_name} {product.name}", rows, moved, ours, theirs, len(sets))
        if rows <= most_rows(product.width) and not takes_vector(rows, product.width):
            ours = lambda number, product=product, sets=sets: fused(product, sets[number], path="vector")  # noqa: E731
            compare(f"{shape_name} {product.name} by row", rows, moved, ours, theirs, len(sets))


def tunings(product: Product, rows: int) -> list[dict[str, int]]:
    if takes_vector(rows, product.width):
        choices = itertools.product((1, 2, 4, 8, 16), (512, 1024, 2048, 4096), (1, 2, 4, 8))
        return [
            {"BLOCK_N": n, "BLOCK_K": k, "ROWS": 1, "num_warps": w} for n, k, w in choices if 1024 <= n * k <= 4096 * w
        ]
    choices = itertools.product((32, 64), (64, 128, 256), (1, 4, 16), (2, 4, 8))
    return [
        {"BLOCK_N": n, "BLOCK_K": k, "PASSES": passes, "PARTS": ceil_div(product.width, k * passes), "num_warps": warps}
        for n, k, passes, warps in choices
        if k * passes <= product.width
    ]


def sweep(shape_name: str, rows: int) -> None:
    """The best launch parameters of each product, beside what the default reaches."""
    for product in products(SHAPES[shape_name]):
        sets, moved = tensors(product, rows)
        results = []
        for tuning in [{}, *tunings(product, rows)]:
            ours = lambda number, tuning=tuning, product=product, sets=sets: fused(product, sets[number], tuning)  # noqa: E731
            try:
                results.append((seconds(ours, len(sets), repeats=7), tuning))
            except triton.runtime.errors.OutOfResources:  # too much shared memory: not a choice on this GPU
                continue
        default = results[0][0]
        print(f"{shape_name} {product.name} M={rows}: default {default * 1e6:.2f} us {moved / default / 1e9:.0f} GB/s")
        for time, tuning in sorted(results[1:], key=lambda result: result[0])[:4]:
            print(f"    {time * 1e6:8.2f} us {moved / time / 1e9:6.0f} GB/s  {tuning}", flush=True)


def cache(shape: Shape, rows: int, dtype: torch.dtype = DTYPE) -> PagedLayer:
    size = rows * 2, 32, shape.kv_heads
    scales = [None, None] if dtype == DTYPE else [torch.ones(size, device="cuda") for _ in range(2)]
    keys, values = (torch.zeros(*size, shape.head_dim, device="cuda").to(dtype) for _ in range(2))
    table = torch.randperm(rows * 2, device="cuda").view(rows, 2).int()
    return PagedLayer(keys, values, table, *scales)


def others(shape_name: str, rows: int) -> None:
    """Norms, rotary positions with the cache, and the gated activation."""
    shape = SHAPES[shape_name]
    width, queries = shape.hidden, shape.heads * shape.head_dim
    qkv_width = queries + 2 * shape.kv_heads * shape.head_dim
    sets = 20
    xs, residuals = [[random(rows, width) for _ in range(sets)] for _ in range(2)]
    norm, head_norm = Norm(random(width), 1e-5), Norm(random(shape.head_dim), 1e-5)

    def torch_norm(number: int) -> Any:
        total = xs[number] + residuals[number]
        return F.rms_norm(total, norm.weight_C.shape, norm.weight_C, norm.eps), total

    moved = 2.0 * rows * width * 4
    compare(f"{shape_name} add_norm", rows, moved, lambda n: add_norm(xs[n], norm, residuals[n]), torch_norm, sets)

    gates = [random(rows, 2 * shape.wide) for _ in range(sets)]

    def torch_gate(number: int) -> Tensor:
        gate, up = gates[number].chunk(2, -1)
        return F.silu(gate) * up

    moved = 2.0 * rows * shape.wide * 3
    compare(f"{shape_name} swiglu", rows, moved, lambda n: gated_activation(gates[n], "silu"), torch_gate, sets)

    qkvs = [random(rows, qkv_width) for _ in range(sets)]
    positions = torch.randint(64, (rows,), device="cuda")
    slots = torch.arange(rows, device="cuda")
    turning = Turning(10_000.0 ** -torch.linspace(0, 1, shape.head_dim // 2, device="cuda"))
    norms = (head_norm, head_norm) if shape.qk_norm else (None, None)
    layers = {str(dtype)[6:]: cache(shape, rows, dtype) for dtype in (DTYPE, torch.float8_e4m3fn, torch.int8)}

    def ours(number: int, name: str = "bfloat16") -> Tensor:
        return rope_kv(qkvs[number], positions, slots, layers[name], turning, *norms)

    layer = layers["bfloat16"]
    flat = layer.keys.flatten(0, 1), layer.values.flatten(0, 1)
    places = layer.block_table_SM[slots, positions // 32].long() * 32 + positions % 32

    def theirs(number: int) -> Tensor:
        return torch_rope(qkvs[number], shape, positions, places, turning, norms, flat)

    expected = rope_kv_reference(qkvs[0], positions, slots, cache(shape, rows), turning, *norms)
    torch.testing.assert_close(ours(0), expected, rtol=2e-2, atol=2e-2)
    moved = rows * 2.0 * 2 * qkv_width
    compare(f"{shape_name} rope_kv", rows, moved, ours, theirs, sets)
    for name in ("float8_e4m3fn", "int8"):
        time = seconds(lambda number, name=name: ours(number, name), sets)
        print(f"{shape_name} rope_kv {name:<14} M={rows:<4} {time * 1e6:8.2f} us")


def torch_rope(
    qkv: Tensor,
    shape: Shape,
    positions: Tensor,
    places: Tensor,
    turning: Turning,
    norms: tuple[Norm | None, Norm | None],
    flat: tuple[Tensor, Tensor],
) -> Tensor:
    heads = qkv.view(qkv.shape[0], -1, shape.head_dim)
    q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    if norms[0] is not None and norms[1] is not None:
        q, k = (F.rms_norm(x, x.shape[-1:], n.weight_C, n.eps) for x, n in ((q, norms[0]), (k, norms[1])))
    angles = positions[:, None, None].float() * turning.frequencies
    cos, sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)

    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    flat[0][places], flat[1][places] = turn(k), v
    return turn(q)


def chain(shape_name: str, rows: int) -> None:
    """All layers' kernels but attention, in their order, as one graph."""
    shape = SHAPES[shape_name]
    layers = min(shape.layers, LAYERS_OF_CHAIN)
    queries = shape.heads * shape.head_dim
    x, norm = random(rows, shape.hidden), Norm(torch.ones(shape.hidden, device="cuda", dtype=DTYPE), 1e-5)
    weights = []
    for _ in range(layers):
        layer = [tensors(product, 1)[0][0][1] for product in products(shape)[:4]]
        weights.append((*layer, cache(shape, rows)))
    moved = sum(2.0 * weight.numel() for layer in weights for weight in layer[:4])
    positions, slots = torch.randint(64, (rows,), device="cuda"), torch.arange(rows, device="cuda")
    turning = Turning(10_000.0 ** -torch.linspace(0, 1, shape.head_dim // 2, device="cuda"))

    def step(_: int) -> Tensor:
        stream = x
        for qkv, output, gate_up, down, pages in weights:
            q = rope_kv(small_linear(stream, qkv, norm=norm), positions, slots, pages, turning)
            stream = small_linear(q.view(rows, queries), output, residual_MN=stream)
            wide = small_linear(stream, gate_up, norm=norm, activation="silu", gated=True)
            stream = small_linear(wide, down, residual_MN=stream)
        return stream

    early = dependent_launch.launches_depend
    for name, depend in (("early starts", early), ("one after another", lambda: False)):
        dependent_launch.launches_depend = depend
        time = seconds(step, 1, least=1, repeats=31)
        print(
            f"{shape_name} {layers} layers without attention, M={rows}, {name}: {time * 1e6:.0f} us, "
            f"{time * 1e6 / layers / 5:.2f} us a kernel, {moved / time / 1e9:.0f} GB/s",
            flush=True,
        )
    dependent_launch.launches_depend = early


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 256])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--chain", action="store_true")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    with torch.inference_mode():
        for shape, rows in itertools.product(options.shapes, options.rows):
            if options.sweep:
                sweep(shape, rows)
            elif options.chain:
                chain(shape, rows)
            else:
                linear_layers(shape, rows)
                others(shape, rows)


if __name__ == "__main__":
    main()
