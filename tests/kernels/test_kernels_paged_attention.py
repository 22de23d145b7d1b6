"""Attention over the paged cache in plain torch, beside its definition; and writing of the cache."""

from dataclasses import replace

import pytest
import torch
from paged_cases import Case, by_definition, check, example, read

from gristmill.kernels import paged_reference
from gristmill.kernels.cpu_linear import has_onednn
from gristmill.kernels.paged_attention import PagedBatch, paged_attention, write_kv
from gristmill.kernels.paged_reference import paged_attention_reference
from gristmill.kernels.rope_kv import quantized

DECODE = Case(lengths=(1, 15, 16, 17, 70), counts=(1, 1, 1, 1, 1))
MIXED = Case(lengths=(40, 3, 33, 90, 20), counts=(1, 1, 5, 40, 20))
CASES = [
    DECODE,
    MIXED,
    replace(DECODE, side_by_side=True, lengths=(70, 130, 65, 2, 9)),
    replace(MIXED, side_by_side=True),
    replace(DECODE, heads=9, kv_heads=3),
    replace(MIXED, heads=7, kv_heads=1, width=24),
    replace(MIXED, value_width=8),
    replace(MIXED, latent=True, width=24, value_width=16, kv_heads=1),
    replace(DECODE, shared_blocks=1),
    replace(MIXED, window=7),
    replace(MIXED, window=18, sink_tokens=3),
    replace(MIXED, window=5, causal=False),
    replace(MIXED, causal=False),
    replace(MIXED, softcap=2.0),
    replace(MIXED, alibi=True),
    replace(MIXED, sinks=True, window=20),
    replace(MIXED, alibi=True, softcap=3.0, sinks=True, lengths=(400, 1, 300), counts=(1, 1, 290)),
    replace(DECODE, lengths=(0, 5, 0), counts=(1, 1, 1)),
    replace(MIXED, counts=(3, 3, 3, 3, 3), num_decoding=5),
    replace(MIXED, cache_dtype=torch.float8_e4m3fn),
    replace(MIXED, cache_dtype=torch.int8, side_by_side=True),
    replace(MIXED, cache_dtype=torch.int8, latent=True, width=24, value_width=16, kv_heads=1),
    replace(MIXED, dtype=torch.bfloat16),
    replace(DECODE, dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fn),
]


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_torch_is_the_definition(case, block_size):
    made = example(replace(case, block_size=block_size))
    check(paged_attention(*made.arguments), made)


def test_in_float64_it_is_the_definition_to_the_last_digits():
    made = example(MIXED)
    found = paged_attention_reference(made.q_NHD.double(), *made.arguments[1:])
    torch.testing.assert_close(found, by_definition(made), rtol=1e-12, atol=1e-12)


def test_a_batch_of_none_is_nothing():
    made = example(DECODE)
    batch = PagedBatch.of([], [], [])
    assert paged_attention(made.q_NHD[:0], made.layer, batch, made.scores).shape == (0, 4, 16)


def test_layers_of_one_step_share_what_is_worked_out_of_it():
    made = example(MIXED)
    paged_attention(*made.arguments)
    (groups,) = made.batch.plans.values()
    paged_attention(*made.arguments)
    assert list(made.batch.plans.values()) == [groups]
    paged_attention(made.q_NHD, made.layer, made.batch, replace(made.scores, window=9))
    assert len(made.batch.plans) == 2
    # A window that no sequence fills is none.
    paged_attention(made.q_NHD, made.layer, made.batch, replace(made.scores, window=90))
    assert len(made.batch.plans) == 2


PROMPTS = Case(lengths=(300, 90, 200, 5), counts=(300, 64, 130, 5))
TILED = [
    PROMPTS,
    replace(PROMPTS, side_by_side=True, lengths=(400, 90, 200, 5)),
    replace(PROMPTS, heads=6, kv_heads=2, window=50),
    replace(PROMPTS, window=70, sink_tokens=3),
    replace(PROMPTS, window=40, causal=False),
    replace(PROMPTS, causal=False),
    replace(PROMPTS, latent=True, width=24, value_width=16, kv_heads=1),
    replace(PROMPTS, dtype=torch.bfloat16),
]


@pytest.mark.skipif(not has_onednn(), reason="such products are oneDNN's, on a processor with AVX2")
@pytest.mark.parametrize("case", TILED, ids=str)
def test_parts_of_prompts_as_products_are_the_definition(case):
    made = example(case)
    with torch.inference_mode():
        found = paged_attention(*made.arguments)
    (groups,) = made.batch.plans.values()
    assert sorted(len(group.tiles) for group in groups) == [0, 1, 2, 3]
    check(found, made)


def test_sequences_that_lie_side_by_side_are_not_copied_and_others_are_copied_together(monkeypatch):
    monkeypatch.setattr(paged_reference, "SHORT", 4 * 16 * 2 * 16 * 4)  # four blocks of such keys
    for side_by_side, expected in ((True, [1, 1, 1, 1]), (False, [2, 2])):
        made = example(Case(lengths=(70, 75, 200, 220), counts=(1, 1, 1, 1), side_by_side=side_by_side))
        paged_attention(*made.arguments)
        (groups,) = made.batch.plans.values()
        assert [group.count for group in groups] == expected
        assert all((group.run is not None) is side_by_side for group in groups)


def test_blocks_out_of_the_window_are_not_read():
    made = example(replace(DECODE, lengths=(100, 60), counts=(1, 1), window=10))
    old = torch.cat([made.places[0][:80], made.places[1][:48]])
    made.layer.keys.flatten(0, 1)[old] = float("nan")
    made.layer.values.flatten(0, 1)[old] = float("nan")
    assert paged_attention(*made.arguments).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_codes_and_scales_come_near_what_they_stand_for(dtype):
    x = torch.randn(50, 3, 16) * torch.logspace(-3, 3, 50)[:, None, None]
    x[7, 1] = 0
    codes, scales = quantized(x, dtype)
    back = codes.float() * scales[..., None]
    largest = x.abs().amax(-1)
    # int8 is off by half a step of 127; e4m3 has 3 bits behind the first.
    bound = largest[..., None] / 127 / 2 if dtype == torch.int8 else x.abs() / 16 + largest[..., None] / 448 / 512
    assert ((back - x).abs() <= bound * 1.001 + 1e-12).all()
    torch.testing.assert_close(back.abs().amax(-1), largest, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn, torch.int8], ids=str)
def test_what_is_written_is_found_there_and_nowhere_else(cache_dtype):
    made = example(replace(DECODE, cache_dtype=cache_dtype))
    places = made.places[4][[3, 60, 17]]
    others = torch.cat(made.places[:4])
    before = read(made.layer.keys, made.layer.key_scales, others)
    k, v = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    write_kv(made.layer, places, k, v)
    tolerance = 1e-12 if cache_dtype is None else 0.04
    for cache, scales, x in (
        (made.layer.keys, made.layer.key_scales, k),
        (made.layer.values, made.layer.value_scales, v),
    ):
        found = read(cache, scales, places)
        assert (found - x).norm() <= tolerance * x.norm()
    assert torch.equal(read(made.layer.keys, made.layer.key_scales, others), before)


def test_values_inside_the_keys_are_written_once():
    made = example(replace(DECODE, latent=True, width=24, kv_heads=1))
    k = torch.randn(1, 1, 24)
    write_kv(made.layer, made.places[4][:1], k, torch.full((1, 1, 16), float("nan")))
    assert torch.equal(made.layer.keys.flatten(0, 1)[made.places[4][:1]], k)


def test_a_token_that_is_not_a_number_stays_so_in_every_cache():
    for cache_dtype in (torch.float8_e4m3fn, torch.int8):
        made = example(replace(DECODE, cache_dtype=cache_dtype))
        spoilt = torch.full((1, 2, 16), float("nan"))
        write_kv(made.layer, made.places[4][:1], spoilt, spoilt)
        found = paged_attention(*made.arguments)
        assert found.isfinite().flatten(1).all(1).tolist() == [True, True, True, True, False]
