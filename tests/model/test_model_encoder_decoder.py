"""The encoder-decoder's own properties, and T5's buckets against transformers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.errors import GristmillError
from gristmill.model.attention import causal_attention, masked_attention
from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, GrowingCache
from gristmill.model.relative import RelativeBias, relative_buckets

VOCAB = 29
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_seq_len": 32,
}
T5_LIKE = {
    "positions": "none",
    "relative_buckets": 6,
    "relative_max_distance": 10,
    "attention_scale": 1.0,
    "activation": "relu",
    "gated": False,
    "logit_scale": 0.25,
}
VARIANTS = {
    "t5": T5_LIKE,
    "rope": {"tie_embeddings": False, "head_bias": True},
    "alibi": {"positions": "alibi", "norm_position": "sandwich", "norm": "layernorm", "norm_bias": True},
    "learned": {"positions": "learned", "norm_position": "post", "embedding_norm": True, "qkv_bias": True},
    "sinusoidal": {"positions": "sinusoidal", "norm_position": "output", "output_bias": True, "embedding_scale": 4.0},
    "sliding": {"sliding_window": 4, "attention_pattern": ("sliding", "full")},
    "softcap": {"attention_softcap": 6.0, "logit_softcap": 9.0},
}


def model_of(variant: str, seed: int = 0, **changes) -> EncoderDecoder:
    model = EncoderDecoder(EncoderDecoderConfig(**SHAPE | VARIANTS[variant] | changes)).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return model.eval()


MODELS = {variant: model_of(variant) for variant in VARIANTS}


def ids(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_padding_on_either_side_and_the_batch_change_no_logits(variant, rows, extra):
    model, width = MODELS[variant], max(length for length, _ in rows) + extra
    read, mask = ids(len(rows), width), torch.zeros(len(rows), width, dtype=torch.long)
    for row, (length, left) in enumerate(rows):
        mask[row, width - length if left else 0 : width if left else length] = 1
    written = ids(len(rows), 5, seed=1)
    together = model(read, written, mask)
    for row in range(len(rows)):
        alone = model(read[row][mask[row].bool()][None], written[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=5e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunks", [[1] * 8, [3, 1, 4], [8]])
def test_decoding_with_a_cache_gives_what_the_whole_forward_gives(variant, chunks):
    model, read, written = MODELS[variant], ids(2, 7), ids(2, 8, seed=1)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 0]])
    memory = model.read(read, mask)
    cache, parts = GrowingCache(model.config, 2, 8), []
    for chunk in chunks:
        span = torch.arange(cache.length, cache.length + chunk)
        parts.append(model.logits(model.decode(written[:, span], memory, span[None], cache)))
        cache.advance(chunk)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(read, written, mask), atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_is_the_likeliest_token_again_and_again(variant):
    model, read = model_of(variant, start_id=3), ids(3, 6)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
    written = torch.full((3, 1), 3)
    for _ in range(7):
        written = torch.cat((written, model(read, written, mask)[:, -1:].argmax(-1)), dim=1)
    expected = written[:, 1:].tolist()
    assert model.generate(read, 7, mask_BS=mask) == expected
    stop = expected[0][2]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in expected]
    assert model.generate(read, 7, [stop], mask) == cut
    assert model.generate(read, 0) == [[], [], []]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_sees_all_that_is_read_and_nothing_that_follows(variant):
    model, read, written = MODELS[variant], ids(1, 4), ids(1, 6, seed=1)
    before = model(read, written)
    later = written.clone()
    later[0, 4] = (later[0, 4] + 1) % VOCAB
    after = model(read, later)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-6, rtol=0)
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 1e-3
    for place in range(4):
        other = read.clone()
        other[0, place] = (other[0, place] + 1) % VOCAB
        assert (model(other, written) - before).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count_and_gradients(variant):
    model = model_of(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters
    model(ids(2, 9), ids(2, 9, seed=1)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for name, parameter in model.named_parameters() if "position" not in name)


def test_both_attentions_go_through_attend():
    model, read, written = MODELS["t5"], ids(2, 5), ids(2, 3, seed=1)
    seen = {"own": [], "cross": []}

    def recording(kind):
        def attend(spec, q_BTHD, k_BTKD, v_BTKE):
            seen[kind].append(
                (spec.layer, spec.causal, spec.bias is not None, tuple(q_BTHD.shape), tuple(k_BTKD.shape))
            )
            return masked_attention(spec, q_BTHD, k_BTKD, v_BTKE)

        return attend

    memory = model.read(read)
    hidden = model.decode(written, memory, attend=recording("own"), cross_attend=recording("cross"))
    assert torch.equal(hidden, model.decode(written, memory))
    assert seen["own"] == [(layer, True, True, (2, 3, 4, 4), (2, 3, 2, 4)) for layer in range(3)]
    assert seen["cross"] == [(layer, False, False, (2, 3, 4, 4), (2, 5, 2, 4)) for layer in range(3)]


def test_a_copy_has_a_bias_of_its_own():
    model, read, written = model_of("t5"), ids(1, 5), ids(1, 5, seed=1)
    before, twin = model(read, written), copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.relative_bias.weight.add_(torch.randn(6, 4))
    assert torch.equal(model(read, written), before)
    assert (twin(read, written) - before).abs().max() > 1e-3


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 300), st.booleans())
def test_buckets_are_those_of_transformers(half_buckets, beyond, bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    buckets, far = 2 * half_buckets, half_buckets + beyond
    distance = torch.arange(-700, 701)
    expected = t5.T5Attention._relative_position_bucket(distance, bidirectional, buckets, far)
    assert torch.equal(relative_buckets(distance, buckets, far, bidirectional), expected)


def test_near_buckets_hold_one_distance_each_and_the_last_all_beyond():
    at = torch.arange(0, 40)
    assert relative_buckets(-at, 8, 16, bidirectional=False)[:4].tolist() == [0, 1, 2, 3]
    assert set(relative_buckets(-at[16:], 8, 16, bidirectional=False).tolist()) == {7}
    assert set(relative_buckets(at, 8, 16, bidirectional=False).tolist()) == {0}
    assert relative_buckets(torch.tensor([-1, 0, 1, 39]), 8, 16, bidirectional=True).tolist() == [1, 0, 5, 7]


def test_the_bias_is_the_tables_entry_for_each_head():
    bias = RelativeBias(4, 8, 2, bidirectional=False)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(8.0).view(4, 2))
    added = bias(torch.tensor([3]), torch.tensor([3, 2, 1, 4]))
    assert added.tolist() == [[[0.0, 2.0, 4.0, 0.0]], [[1.0, 3.0, 5.0, 1.0]]]
    batched = bias(torch.tensor([[3], [4]]), torch.tensor([[3, 2], [3, 2]]))
    assert batched.shape == (2, 2, 1, 2)
    assert batched[1, 0].tolist() == [[2.0, 4.0]]


def test_rows_and_widths_that_cannot_be_are_named():
    model = MODELS["t5"]
    with pytest.raises(GristmillError, match="row 1 has no token"):
        model(ids(2, 3), ids(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(GristmillError, match=r"width 16 .* 12 wide"):
        model.memory(torch.zeros(1, 3, 12))
    with pytest.raises(GristmillError, match=r"mask has shape \[2, 2\]"):
        model(ids(2, 3), ids(2, 3), torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(GristmillError, match="33 tokens"):
        MODELS["learned"](ids(1, 3), ids(1, 33))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"causal": True}, "causal must be false"),
        ({"num_decoder_layers": 0}, "num_decoder_layers"),
        ({"num_decoder_layers": 1, "attention_pattern": ("full", "full")}, "attention_pattern"),
        ({"relative_buckets": 8}, "relative_buckets needs positions: none"),
        ({"positions": "none", "relative_buckets": 7}, r"relative_buckets \(7\) must be even"),
        ({"positions": "none", "relative_buckets": 2}, r"relative_buckets \(2\) must be even and 4 or more"),
        ({"positions": "none", "relative_buckets": 8, "relative_max_distance": 4}, "relative_max_distance"),
        ({"parallel_block": "shared"}, "parallel_block"),
        ({"learned_sinks": True}, "learned_sinks is not for encoder-decoders"),
        ({"qk_norm": "head"}, "qk_norm must be none"),
        ({"qk_norm": "projection"}, "qk_norm must be none"),
        ({"start_id": 29}, r"start_id \(29\) is not below vocab_size"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 3}, "head_dim"),
    ],
)
def test_impossible_shapes_are_refused_by_field(changes, field):
    with pytest.raises(ValidationError, match=field):
        EncoderDecoderConfig(**SHAPE | changes)


def test_causal_attention_is_the_default():
    model, read, written = MODELS["rope"], ids(1, 4), ids(1, 5)
    memory = model.read(read)
    assert torch.equal(model.decode(written, memory), model.decode(written, memory, attend=causal_attention))
