"""`bench serve --workload long`: decoding behind 65,536 tokens, with the keys divided among programs and without.

The attention kernel is timed by itself, over as many layers' caches as no level of a GPU's cache holds; then the whole
engine is, as it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gristmill.engine.limits import GPU_BLOCK as BLOCK
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.kernels.available import has_triton
from gristmill.kernels.paged_attention import PagedBatch, Scores
from gristmill.kernels.rope_kv import PagedLayer

from .serve_load import Target, engine_of, random_ids, scaled
from .serve_watch import Figures, Watch, milliseconds

Variants = Iterator[tuple[str, Figures]]
CONTEXT, OUTPUT = 65_536, 64  # tokens
MORE_THAN_CACHED = 512 << 20  # bytes
REPEATS = 20


def long_length(scale: float) -> int:
    return scaled(CONTEXT, scale) + OUTPUT


def long_context(served: Target, requests: int | None, scale: float) -> Variants:
    """GristmillError without a GPU, where nothing divides keys."""
    if served.device.type != "cuda" or not has_triton():
        raise GristmillError("--workload long compares kernels of a GPU; there is none here")
    context = scaled(CONTEXT, scale)
    yield from _attention_alone(served, requests or 1, context)
    engine = engine_of(served, max_num_seqs=requests or 1, max_model_len=long_length(scale))
    for turn in range(2):  # the first compiles kernels and captures graphs
        watch = Watch(engine)
        for number in range(requests or 1):
            ids = random_ids(engine.vocab_size, context, turn, number)
            watch.add(ids, SamplingParams(max_tokens=OUTPUT, temperature=0, ignore_eos=True))
        watch.run()
    first = list(watch.first.values())
    yield (
        "the engine",
        {"between tokens ms p50": milliseconds(watch.gaps, 50), "first token ms p50": milliseconds(first, 50)},
    )


def _attention_alone(served: Target, sequences: int, context: int) -> Variants:
    from gristmill.kernels.paged_decode_triton import decode_space, decode_tiles, paged_decode_kernel

    config, device, dtype = served.model.config, served.device, served.model.embedding.weight.dtype
    heads, key_dim, value_dim = config.cache_shape
    if value_dim == 0:
        raise GristmillError("--workload long knows no latent attention, whose values lie in its keys")
    width = -(-context // BLOCK)
    table = torch.arange(sequences * width, dtype=torch.int32, device=device).view(sequences, width)
    layer_bytes = sequences * width * BLOCK * heads * (key_dim + value_dim) * dtype.itemsize

    def drawn(dim: int) -> torch.Tensor:
        return torch.randn(sequences * width, BLOCK, heads, dim, dtype=dtype, device=device)

    layers = [
        PagedLayer(drawn(key_dim), drawn(value_dim), table) for _ in range(-(-MORE_THAN_CACHED // layer_bytes) + 1)
    ]
    batch = PagedBatch.of(list(range(sequences)), [1] * sequences, [context] * sequences, device)
    q_NHD = torch.randn(sequences, config.num_heads, key_dim, dtype=dtype, device=device)
    out_NHE = q_NHD.new_empty(sequences, config.num_heads, value_dim)
    usual = decode_tiles(layers[0], config.num_heads // heads)
    for side, tiles in (("one part", replace(usual, shortest_part=width * BLOCK)), ("parts", usual)):
        space = decode_space(sequences, config.num_heads, layers[0], 1, tiles.shortest_part)
        scores = Scores(key_dim**-0.5)

        def over_layers(space=space, tiles=tiles, scores=scores) -> None:  # type: ignore[no-untyped-def]
            for layer in layers:
                paged_decode_kernel(out_NHE, q_NHD, layer, batch, scores, space, tiles)

        over_layers()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()  # launched one by one, small kernels would wait for the host
        with torch.cuda.graph(graph):
            over_layers()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        each = start.elapsed_time(end) / REPEATS / len(layers)
        yield side, {"attention ms a step": each * config.num_layers, "GB/s": layer_bytes / each / 1e6}
