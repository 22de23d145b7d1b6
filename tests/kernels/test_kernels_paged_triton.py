"""The kernels of paged attention beside its definition: in Triton's interpreter, and compiled on a GPU."""

import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from paged_cases import Case, check, example

from gristmill.kernels.paged_attention import paged_attention

# Lengths at the borders of pages (16), of tiles, of parts of 64 keys and of longer ones (from 257 and 513 keys on).
BORDERS = Case(lengths=(1, 15, 16, 17, 63, 64, 65, 256, 257, 513), counts=(1,) * 10)
DECODE = Case(lengths=(1, 16, 17, 150), counts=(1,) * 4)
PREFILL = Case(lengths=(17, 1, 70), counts=(17, 1, 40), num_decoding=0)
MIXED = Case(lengths=(129, 3, 33, 90, 20), counts=(1, 1, 5, 40, 20))
VARIANTS = [
    {},
    {"heads": 9, "kv_heads": 3},
    {"heads": 7, "kv_heads": 1, "width": 24},
    {"value_width": 8},
    {"latent": True, "width": 40, "value_width": 32, "kv_heads": 1},
    {"latent": True, "width": 32, "kv_heads": 1},
    {"block_size": 32},
    {"block_size": 64},
    {"shared_blocks": 1},
    {"window": 7},
    {"window": 70, "sink_tokens": 3},
    {"window": 5, "causal": False},
    {"causal": False},
    {"softcap": 2.0},
    {"alibi": True},
    {"sinks": True},
    {"alibi": True, "softcap": 3.0, "sinks": True, "window": 20},
    {"cache_dtype": torch.float8_e4m3fn},
    {"cache_dtype": torch.int8, "softcap": 3.0},
    {"cache_dtype": torch.int8, "latent": True, "width": 24, "value_width": 16, "kv_heads": 1},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16, "heads": 6},
    {"dtype": torch.bfloat16, "cache_dtype": torch.float8_e4m3fn},
]
# Drafts are checked: three to five queries a sequence, more rows than heads, one sequence shorter than its part.
DRAFTS = Case(lengths=(5, 150, 300), counts=(5, 3, 4), num_decoding=3, max_count=5)
PADDED = Case(lengths=(0, 150, 0), counts=(1, 1, 1))
CASES = [replace(base, **variant) for base in (DECODE, PREFILL) for variant in VARIANTS] + [
    BORDERS,
    replace(BORDERS, counts=(1, 15, 16, 1, 2, 64, 65, 5, 4, 3), num_decoding=0),
    MIXED,
    DRAFTS,
    replace(DRAFTS, heads=9, kv_heads=3, window=40),
    replace(DRAFTS, latent=True, width=40, value_width=32, kv_heads=1, sinks=True),
    PADDED,
    replace(PADDED, sinks=True),
    replace(PADDED, num_decoding=0),
]


@pytest.fixture
def kernels():
    """Both kernels as Triton's interpreter runs them, without a GPU; Triton looks for it when it is first imported."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels import paged_attention as module

    return module._on_gpu


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_are_the_definition(kernels, case):
    made = example(case)
    check(kernels(*made.arguments, None), made)


@pytest.mark.parametrize("variant", [{}, {"block_size": 64}, {"window": 70, "sink_tokens": 20}], ids=str)
def test_parts_of_any_length_merge_to_the_same(kernels, variant):
    from gristmill.kernels import paged_decode_triton as decode

    made = example(replace(DECODE, **variant))
    for keys, part in ((16, 16), (32, 64), (32, 1000)):
        out = torch.full_like(made.q_NHD, float("nan"))
        tiles = decode.DecodeTiles(keys, 4, 1, 1, shortest_part=part)
        decode.paged_decode_kernel(out, *made.arguments, tiles=tiles)
        check(out, made)


def test_a_sequence_has_at_most_so_many_parts(kernels, monkeypatch):
    from gristmill.kernels import paged_decode_triton as decode

    monkeypatch.setattr(decode, "most_parts", lambda kv_heads: 3)
    made = example(replace(DECODE, lengths=(300, 1, 140), counts=(1, 1, 1)))
    tiles = decode.DecodeTiles(16, 4, 1, 1, shortest_part=16)
    space = decode.decode_space(3, 4, made.layer, shortest_part=16)
    assert space.sums.shape[0] == 3 * 2 * 3  # in the kernel a part more would be written over another
    out = torch.full_like(made.q_NHD, float("nan"))
    decode.paged_decode_kernel(out, *made.arguments, space, tiles)
    check(out, made)


def test_scores_far_below_zero_merge_as_well(kernels):
    made = example(replace(DECODE, lengths=(300, 150), counts=(1, 1)))  # three parts each
    for places in made.places:
        made.layer.keys.flatten(0, 1)[places] += 8.0
    made.q_NHD.fill_(-10.0)
    check(kernels(*made.arguments, None), made)


def test_space_serves_one_call_after_another(kernels):
    from gristmill.kernels.paged_decode_triton import decode_space

    made = example(replace(DECODE, lengths=(300, 290), counts=(1, 1)))
    space = decode_space(7, 4, made.layer, max_count=3)
    space.sums.fill_(float("nan"))
    space.peaks.fill_(float("nan"))
    for seed in range(3):
        made = example(replace(DECODE, lengths=(300, 290), counts=(1, 1), seed=seed))
        check(kernels(*made.arguments, space), made)
        assert (space.arrived == 0).all()


def test_alone_and_among_others_it_is_the_same_bits(kernels):
    among = example(MIXED)
    found = kernels(*among.arguments, None)
    firsts = among.batch.on_host[1]
    for number, (first, end) in enumerate(pairwise(firsts)):
        alone = replace(
            among.batch,
            slots_B=among.batch.slots_B[number : number + 1],
            offsets=torch.tensor([0, end - first], dtype=torch.int32),
            lengths_B=among.batch.lengths_B[number : number + 1],
            num_decoding=int(end - first == 1),
        )
        own = kernels(among.q_NHD[first:end], among.layer, alone, among.scores, None)
        assert torch.equal(own, found[first:end])


def test_queries_may_be_a_part_of_a_wider_product(kernels):
    made = example(MIXED)
    wide = torch.randn(made.q_NHD.shape[0], 12, 16)
    wide[:, 2:6] = made.q_NHD
    assert torch.equal(kernels(wide[:, 2:6], *made.arguments[1:], None), kernels(made.q_NHD, *made.arguments[1:], None))


def test_what_is_not_a_number_stays_in_its_sequence(kernels):
    made = example(MIXED)
    made.layer.values.flatten(0, 1)[made.places[3][7]] = float("nan")
    made.layer.keys.flatten(0, 1)[made.places[0][100]] = float("nan")
    finite = kernels(*made.arguments, None).isfinite().flatten(1).all(1)
    assert finite.tolist() == [False] + [True] * 6 + [False] * 40 + [True] * 20


GPU_CASES = [
    *CASES,
    *(
        replace(base, heads=heads, kv_heads=kv_heads, width=width, dtype=dtype, block_size=size, cache_dtype=cache)
        for base in (
            Case(lengths=(1, 31, 32, 33, 511, 512, 2500, 5000), counts=(1,) * 8),
            Case(lengths=(700, 33, 1000, 129), counts=(700, 1, 130, 129), num_decoding=0),
        )
        for heads, kv_heads, width in ((9, 3, 64), (6, 2, 96), (16, 8, 128), (32, 8, 128), (8, 4, 256))
        for dtype, cache, size in (
            (torch.bfloat16, None, 32),
            (torch.bfloat16, None, 64),
            (torch.float32, None, 64),
            (torch.bfloat16, torch.float8_e4m3fn, 64),
            (torch.float16, torch.int8, 32),
        )
    ),
    Case((3, 700, 2100), (1, 1, 1), 16, 1, 576, 512, latent=True, block_size=32, dtype=torch.bfloat16),
    Case((300, 700), (300, 40), 16, 1, 576, 512, latent=True, block_size=64, dtype=torch.bfloat16),
    Case((900, 700), (8, 6), 32, 8, 128, dtype=torch.bfloat16, num_decoding=2, max_count=8, block_size=32),
    Case((900, 700, 0), (9, 1, 0), 32, 8, 128, dtype=torch.bfloat16, num_decoding=3, max_count=9, block_size=32),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_the_compiled_kernels_are_the_definition(case):
    pytest.importorskip("triton")
    made = example(replace(case, device="cuda"))
    # Queries before the last few and the first are taken on trust: the definition takes one query at a time.
    check_some(paged_attention(*made.arguments), made)


def check_some(found, made):
    """`check` of the first query, the last, and some between, of each sequence."""
    firsts = made.batch.on_host[1]
    assert found.isfinite().all(), "what no sequence holds has leaked"
    case = made.case
    for number, (length, count) in enumerate(zip(case.lengths, case.counts, strict=True)):
        first = firsts[number]
        for query in sorted({0, count // 2, count - 2, count - 1} & set(range(count))):
            if not case.causal and length > 0:
                query = count - 1  # all of its keys
            end = length - count + query + 1 if case.causal else length
            one = replace(case, lengths=(end,), counts=(1,))
            part = replace_example(made, one, made.q_NHD[first + query][None], made.places[number][:end])
            check(found[first + query][None], part)


def replace_example(made, case, q_NHD, places):
    return type(made)(case, q_NHD, made.layer, made.batch, made.scores, [places])


@pytest.mark.gpu
@needs_gpu
def test_on_the_gpu_a_request_alone_and_among_others_is_the_same_bits():
    pytest.importorskip("triton")
    lengths = (1500, *range(3, 1200, 19))
    made = example(Case(lengths, (1,) * 64, 16, 8, 128, dtype=torch.bfloat16, block_size=32, device="cuda"))
    among = paged_attention(*made.arguments)
    for number in (0, 1, 30, 63):
        alone = replace(
            made.batch,
            slots_B=made.batch.slots_B[number : number + 1],
            offsets=made.batch.offsets[:2],
            lengths_B=made.batch.lengths_B[number : number + 1],
            num_decoding=1,
        )
        own = paged_attention(made.q_NHD[number : number + 1], made.layer, alone, made.scores)
        assert torch.equal(own[0], among[number])


@pytest.mark.gpu
@needs_gpu
def test_one_graph_serves_all_lengths():
    pytest.importorskip("triton")
    from gristmill.kernels.paged_decode_triton import decode_space

    case = Case((3000, 40, 1), (1, 1, 1), 9, 3, 64, dtype=torch.bfloat16, block_size=32, device="cuda")
    made = example(case)
    space = decode_space(3, 9, made.layer)
    paged_attention(*made.arguments, space)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = paged_attention(*made.arguments, space)
    for lengths in ((3000, 40, 1), (7, 1, 1), (129, 0, 1), (2900, 33, 1)):
        made.batch.lengths_B.copy_(torch.tensor(lengths))
        found.fill_(float("nan"))
        graph.replay()
        places = [at[:length] for at, length in zip(made.places, lengths, strict=True)]
        check(found, type(made)(replace(case, lengths=lengths), *made.arguments, places))
        assert (space.arrived == 0).all()


@pytest.mark.gpu
@needs_gpu
def test_the_merge_gives_the_same_bits_every_time():
    """The last program to arrive merges, whichever it is: an error that moves would be a race."""
    pytest.importorskip("triton")
    from gristmill.kernels.paged_decode_triton import decode_space

    lengths = tuple(range(200, 6600, 100))
    made = example(Case(lengths, (1,) * 64, 8, 4, 64, dtype=torch.bfloat16, block_size=32, device="cuda"))
    space = decode_space(64, 8, made.layer)
    first = paged_attention(*made.arguments, space)
    for _ in range(200):
        space.sums.fill_(float("nan"))
        assert torch.equal(paged_attention(*made.arguments, space), first)
