"""What must hold for every variant, whatever its weights: rows, padding, packing, counting, the cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import ABSOLUTE, VARIANTS, VOCAB, random_ids, random_model, variant

from gristmill.engine.attention import PagedAttention
from gristmill.engine.cache import PagedCache
from gristmill.engine.config import EngineConfig
from gristmill.engine.limits import engine_config
from gristmill.errors import GristmillError
from gristmill.kernels.paged_attention import PagedBatch
from gristmill.model.attention import DocumentAttention, causal_attention, visible
from gristmill.model.decoder import Decoder

ALL = pytest.mark.parametrize("name", VARIANTS)
TIGHT = {"atol": 1e-4, "rtol": 0.0}


def moved(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@ALL
def test_parameters_are_counted_before_they_are_made(name):
    config = variant(name)
    model = Decoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters
    if config.experts is not None:
        assert config.num_active_parameters < config.num_parameters


@ALL
def test_a_token_changes_no_earlier_logits_and_does_change_its_own(name):
    model, ids = random_model(variant(name)), random_ids(1, 12)
    before = model(ids)
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % VOCAB
    after = model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], atol=1e-5, rtol=0)
    assert moved(after[:, 7], before[:, 7]) > 1e-3
    if name != "all-sliding":
        assert moved(after[:, 11], before[:, 11]) > 1e-5


@ALL
def test_rows_of_a_batch_do_not_meet(name):
    model, ids = random_model(variant(name)), random_ids(5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(ids[order]), model(ids)[order], **TIGHT)
    torch.testing.assert_close(model(ids[2:3]), model(ids)[2:3], **TIGHT)


@ALL
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    """Padding is a document of its own, and every token keeps its position."""
    config = variant(name)
    model = random_model(config)
    rows = [random_ids(length, seed=length) for length in (20, 4, 17)]  # dynamic scaling begins behind 16
    ids, segments, positions = (torch.zeros(3, 20, dtype=torch.long) for _ in range(3))
    for number, row in enumerate(rows):
        place = slice(20 - len(row), 20) if side == "left" else slice(0, len(row))
        ids[number, place], segments[number, place] = row, 1
        positions[number, place] = torch.arange(len(row))
    logits = model(ids, positions, DocumentAttention(segments))
    for number, row in enumerate(rows):
        torch.testing.assert_close(logits[number, segments[number] == 1], model(row[None])[0], **TIGHT)


@ALL
def test_packed_documents_are_as_if_alone(name):
    config = variant(name)
    model = random_model(config)
    documents = [random_ids(length, seed=length) for length in (5, 1, 7)]
    segments = torch.cat([torch.full((len(d),), i) for i, d in enumerate(documents)])[None]
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
    packed = model(torch.cat(documents)[None], positions, DocumentAttention(segments))[0]
    alone = torch.cat([model(d[None])[0] for d in documents])
    torch.testing.assert_close(packed, alone, **TIGHT)
    if config.positions not in ABSOLUTE:
        running = model(torch.cat(documents)[None], None, DocumentAttention(segments))[0]
        torch.testing.assert_close(running, alone, **TIGHT)
    assert moved(model(torch.cat(documents)[None])[0, 5:], alone[5:]) > 1e-3


def cached_logits(model: Decoder, rows: list[torch.Tensor], cuts: list[list[int]], length: int) -> list[torch.Tensor]:
    """Logits of each row, read in pieces that end at `cuts`, all rows' pieces of a round in one step of the engine."""
    size, held = 4, -(-length // 4)
    cache = paged(model.config, len(rows), length, size, torch.float32)
    cache.table_SM[: len(rows)].copy_(torch.arange(len(rows) * held).view(len(rows), held).flip(0))
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    starts = [0] * len(rows)
    for turn in range(max(map(len, cuts))):
        ends = {row: cut[turn] for row, cut in enumerate(cuts) if turn < len(cut)}
        order = sorted(ends, key=lambda row: ends[row] - starts[row] > 1)
        counts = [ends[row] - starts[row] for row in order]
        batch = PagedBatch.of(order, counts, [ends[row] for row in order])
        at = torch.cat([torch.arange(starts[row], ends[row]) for row in order])
        ids = torch.cat([rows[row][starts[row] : ends[row]] for row in order])
        slots = torch.tensor(order).repeat_interleave(torch.tensor(counts))
        places = cache.table_SM[slots, at // size] * size + at % size
        attend = PagedAttention(cache.layers, batch, places)
        logits = model.logits(model.hidden_states(ids[None], at[None], attend, length))[0]
        for row, piece in zip(order, logits.split(counts), strict=True):
            found[row].append(piece)
            starts[row] = ends[row]
    return [torch.cat(pieces) for pieces in found]


def paged(config, slots, length, size, dtype) -> PagedCache:
    blocks = slots * -(-length // size)
    limits = EngineConfig(max_num_seqs=slots, max_model_len=length, block_size=size, num_blocks=blocks)
    return PagedCache(config, limits, dtype, torch.device("cpu"))


@ALL
def test_decoding_with_a_cache_is_the_full_forward(name):
    """Whole prompts, parts of prompts and single tokens, of three sequences at once, against each sequence alone."""
    model = random_model(variant(name))
    rows = [random_ids(length, seed=length) for length in (13, 9, 13)]
    cuts = [[5, *range(6, 14)], [4, 7, 8, 9], [5, 9, *range(10, 14)]]
    length = 24  # of the context, which dynamic scaling reckons with
    with torch.inference_mode():
        found = cached_logits(model, rows, cuts, length)
        for logits, row in zip(found, rows, strict=True):
            whole = model.logits(model.hidden_states(row[None], context_length=length))[0]
            torch.testing.assert_close(logits, whole, **TIGHT)


def test_a_latent_cache_keeps_one_narrow_vector():
    config = variant("latent")
    cache = paged(config, 2, 8, 8, torch.float32)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(2, 8, 1, 14)] * 3
    assert all(layer.values.numel() == 0 for layer in cache.layers)
    assert PagedCache.bytes_per_block(config, 8, torch.float32) == 3 * 8 * 14 * 4
    assert PagedCache.bytes_per_block(variant("grouped"), 8, torch.bfloat16) == 3 * 8 * 2 * 16 * 2
    assert PagedCache.bytes_per_block(variant("grouped"), 8, torch.bfloat16, "int8") == 3 * 8 * 2 * (16 + 2 * 4)


@pytest.mark.parametrize("name", ["latent", "latent-query", "latent-experts"])
def test_absorbed_latent_attention_is_the_multiplied_out_one(name):
    model, ids = random_model(variant(name)), random_ids(2, 11)

    def absorbed(spec, q, k, v):
        assert (spec.num_kv_heads, spec.head_dim, spec.value_dim) == (1, 14, 10)
        assert k.shape[2:] == (1, 14)
        assert torch.equal(v, k[..., :10])
        return causal_attention(spec, q, k, v)

    class Absorbed:
        latent = True
        __call__ = staticmethod(absorbed)

    torch.testing.assert_close(model(ids, attend=Absorbed()), model(ids), **TIGHT)


@settings(max_examples=60, deadline=None)
@given(
    time=st.integers(1, 9),
    before=st.integers(0, 7),
    window=st.one_of(st.none(), st.integers(1, 8)),
    sink_tokens=st.integers(0, 3),
    causal=st.booleans(),
)
def test_what_is_visible_is_what_the_definition_says(time, before, window, sink_tokens, causal):
    model = random_model(variant("grouped"))
    spec = model.blocks[0].attention.spec
    spec = type(spec)(**{**vars(spec), "causal": causal, "window": window, "sink_tokens": sink_tokens if window else 0})
    queries, keys = torch.arange(before, before + time), torch.arange(before + time)
    found = visible(spec, queries, keys)
    for q in queries.tolist():
        for k in keys.tolist():
            near = window is None or abs(q - k) < window or (k < spec.sink_tokens)
            assert (True if found is None else bool(found[q - before, k])) == (near and (k <= q or not causal))


def test_a_window_as_wide_as_the_row_costs_no_mask(monkeypatch):
    model, ids = random_model(variant("all-sliding", sliding_window=12)), random_ids(1, 12)
    plain = random_model(variant("grouped"))
    plain.load_state_dict(model.state_dict())
    masks = []
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **named: masks.append(named["attn_mask"]) or whole(*a, **named),
    )
    torch.testing.assert_close(model(ids), plain(ids), **TIGHT)
    assert masks == [None] * 6
    model(random_ids(1, 13))
    assert all(mask is not None for mask in masks[6:])


def test_a_model_that_reads_both_ways_is_not_served():
    config = variant("grouped", causal=False)
    with pytest.raises(GristmillError, match="causal: false"):
        engine_config(config, torch.float32, torch.device("cpu"), {})


def test_mscale_is_yarns_alone():
    scaling = {"factor": 4.0, "original_max_seq_len": 16, "mscale_all_dim": 1.0}
    linear, yarn = (variant("latent", rope_scaling=scaling | {"kind": kind}) for kind in ("linear", "yarn"))
    assert linear.query_scale == 12**-0.5
    assert yarn.query_scale == pytest.approx(12**-0.5 * (0.1 * math.log(4) + 1) ** 2)


def test_learned_positions_end():
    model = random_model(variant("learned-positions", max_seq_len=8))
    with pytest.raises(GristmillError, match="9 tokens is longer than the 8 learned positions"):
        model(random_ids(1, 2), torch.tensor([[7, 8]]))
    assert model(random_ids(1, 8)).shape == (1, 8, VOCAB)
    with pytest.raises(GristmillError, match="9 tokens is longer than the 8 learned positions"):
        model(random_ids(1, 9))


@ALL
def test_gradients_reach_every_parameter(name):
    model = random_model(variant(name)).train()
    ids = random_ids(4, 12)
    model(ids).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["grouped", "latent", "sliding-softcap-sinks", "sandwich", "alibi", "experts-shared"])
def test_bfloat16_runs_and_stays_near(name):
    model, ids = random_model(variant(name)), random_ids(2, 10)
    exact = model(ids)
    coarse = model.to(torch.bfloat16)(ids)
    assert coarse.dtype == torch.bfloat16
    assert moved(coarse.float(), exact) < 0.1 * float(exact.detach().abs().max())


@pytest.mark.parametrize("name", ["grouped", "latent", "sliding-softcap-sinks", "rope-dynamic", "alibi", "sandwich"])
def test_compiles_without_a_break(name):
    torch._dynamo.reset()
    model, ids = random_model(variant(name)), random_ids(2, 12)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids), model(ids), atol=1e-5, rtol=0)


def test_learned_positions_can_be_traced():
    model, ids = random_model(variant("learned-positions")), random_ids(2, 6)
    positions = torch.arange(6)[None]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, positions), model(ids), atol=1e-5, rtol=0)


def test_a_length_for_each_row_compiles_too():
    torch._dynamo.reset()
    model, ids = random_model(variant("rope-dynamic")), random_ids(3, 20)
    lengths = torch.tensor([[20], [30], [40]])
    compiled = torch.compile(model.hidden_states, fullgraph=True, backend="aot_eager")
    expected = model.hidden_states(ids, context_length=lengths)
    torch.testing.assert_close(compiled(ids, context_length=lengths), expected, atol=1e-5, rtol=0)
    assert moved(expected[0], model.hidden_states(ids[:1], context_length=40)[0]) > 1e-3
