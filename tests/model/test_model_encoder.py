"""The encoder's own properties: what must hold for any weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig, pool, text_positions

VOCAB = 37
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_seq_len": 12,
}
BERT_LIKE = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "norm_position": "post",
    "embedding_norm": True,
    "token_types": 2,
    "activation": "gelu",
    "gated": False,
}
SLIDING = {"sliding_window": 3, "attention_pattern": ("full", "sliding")}
VARIANTS = {
    "rope": {},
    "bert": BERT_LIKE,
    "cls": BERT_LIKE | {"pooling": "cls", "normalize": True},
    "alibi": {"positions": "alibi", "pooling": "last"},
    "sinusoidal": {"positions": "sinusoidal", "embedding_scale": 4.0},
    "sliding": SLIDING,
    "softcap": {"attention_softcap": 5.0, "learned_sinks": True},
    "causal": {"causal": True, "pooling": "last", "normalize": True},
    "causal-sliding": SLIDING | {"causal": True, "pooling": "last"},
}


def encoder(seed: int = 0, **changes) -> Encoder:
    """Weights large enough that attention is far from uniform."""
    model = Encoder(EncoderConfig(**SHAPE | changes)).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return model.eval()


ENCODERS = {name: encoder(**changes) for name, changes in VARIANTS.items()}
TEXTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4)


def alone(model: Encoder, texts: list[list[int]]) -> torch.Tensor:
    return torch.cat([model.embed(torch.tensor([text])) for text in texts])


def padded(texts: list[list[int]], left: list[bool], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; at padding stand tokens that would change everything if they were seen."""
    width = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), width), 7), torch.zeros(len(texts), width, dtype=torch.long)
    for row, (text, on_left) in enumerate(zip(texts, left, strict=True)):
        place = slice(width - len(text), width) if on_left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(VARIANTS)), TEXTS, st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 3))
def test_padding_on_either_side_changes_no_vector(variant, texts, left, extra):
    model = ENCODERS[variant]
    ids, mask = padded(texts, left[: len(texts)], extra)
    expected = alone(model, texts)
    torch.testing.assert_close(model.embed(ids, mask), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(model.embed(ids, mask.bool()), expected, atol=2e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(VARIANTS)), TEXTS, TEXTS, st.integers(0, 2))
def test_packed_texts_give_the_vectors_they_give_alone(variant, first, second, gap):
    model = ENCODERS[variant]
    rows = []
    for texts in (first, second):
        ids, numbers = [7] * gap, [0] * gap
        for number, text in enumerate(texts, 1):
            ids += text
            numbers += [number] * len(text)
        rows.append((ids, numbers))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [7] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([numbers + [0] * (width - len(numbers)) for _, numbers in rows])
    torch.testing.assert_close(model.embed(ids, mask), alone(model, first + second), atol=2e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(VARIANTS)), TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_a_batch_changes_nothing(variant, texts, random):
    model = ENCODERS[variant]
    order = list(range(len(texts)))
    random.shuffle(order)
    ids, mask = padded(texts, [False] * len(texts))
    torch.testing.assert_close(model.embed(ids[order], mask[order]), model.embed(ids, mask)[order], atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hidden_token_is_as_if_it_were_not_there(variant):
    model = ENCODERS[variant]
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 8, 9]])
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1]])
    torch.testing.assert_close(model.embed(ids, mask), alone(model, [[1, 2, 4, 8, 9]]), atol=2e-5, rtol=0)


def test_positions_count_in_each_text():
    ids = torch.zeros(2, 6, dtype=torch.long)
    mask = torch.tensor([[0, 1, 1, 2, 1, 2], [3, 3, 0, 0, 1, 2]])
    assert text_positions(ids, mask).tolist() == [[0, 0, 1, 0, 2, 1], [0, 1, 0, 0, 0, 0]]
    assert text_positions(ids, None).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_an_encoder_sees_what_follows_and_a_causal_one_does_not():
    ids = torch.tensor([[1, 2, 3, 4]])
    for variant, sees in (("rope", True), ("causal", False)):
        model = ENCODERS[variant]
        change = model.hidden_states(ids)[0, :3] - model.hidden_states(torch.tensor([[1, 2, 3, 5]]))[0, :3]
        assert (change.abs().max() > 1e-3) == sees


def test_a_sliding_layer_sees_as_far_to_either_side():
    model = encoder(num_layers=1, sliding_window=3, attention_pattern=("sliding",))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 8]])
    changed = ids.clone()
    changed[0, 3] = 20
    moved = (model.hidden_states(ids) - model.hidden_states(changed))[0].abs().amax(-1) > 1e-4
    assert moved.tolist() == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_in_closed_form(pooling):
    hidden = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 1, 2, 0], [0, 0, 1, 0, 0]])
    expected = {
        "mean": [hidden[0, 1:3].mean(0), hidden[0, 3], hidden[1, 2]],
        "cls": [hidden[0, 1], hidden[0, 3], hidden[1, 2]],
        "last": [hidden[0, 2], hidden[0, 3], hidden[1, 2]],
    }[pooling]
    torch.testing.assert_close(pool(hidden, mask, pooling), torch.stack(expected))
    whole = {"mean": hidden.mean(1), "cls": hidden[:, 0], "last": hidden[:, -1]}[pooling]
    torch.testing.assert_close(pool(hidden, None, pooling), whole)


def test_normalized_vectors_have_length_one():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    plain, scaled = encoder(), encoder(normalize=True)
    torch.testing.assert_close(scaled.embed(ids).norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(scaled.embed(ids), F.normalize(plain.embed(ids), dim=-1))
    assert torch.equal(scaled(ids), scaled.embed(ids))


def test_heads_are_what_they_say():
    model = encoder(**BERT_LIKE | {"pooling": "mean", "pooler": True, "masked_lm": True, "num_labels": 3})
    ids, mask = padded([[1, 2, 3, 4], [5, 6]], [True, False])
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    hidden = model.hidden_states(ids, mask, types)
    first = torch.stack([hidden[0, 0], hidden[1, 0]])
    pooled = torch.tanh(first @ model.pooler.weight.T + model.pooler.bias)
    torch.testing.assert_close(
        model.classify(ids, mask, types), pooled @ model.classifier.weight.T + model.classifier.bias
    )
    head = model.masked_lm
    guess = F.layer_norm(F.gelu(head.dense(hidden)), (16,), head.norm.weight, head.norm.bias, model.config.norm_eps)
    torch.testing.assert_close(model.masked_lm_logits(ids, mask, types), guess @ model.embedding.weight.T + head.bias)
    without = encoder(num_labels=3)
    torch.testing.assert_close(without.classify(ids, mask), without.classifier(without.embed(ids, mask)))
    assert (model.hidden_states(ids, mask) - hidden)[mask.bool()].abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [*VARIANTS.values(), {"masked_lm": True}, BERT_LIKE | {"masked_lm": True, "pooler": True, "num_labels": 4}],
)
def test_parameter_count_is_that_of_the_built_model(changes):
    model = Encoder(EncoderConfig(**SHAPE | changes))
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_becomes_an_encoder_that_reads_as_it_does(pooling):
    config = ModelConfig(**SHAPE, tie_embeddings=False, head_bias=True, logit_softcap=4.0, embedding_norm=True)
    decoder = Decoder(config).init_weights(3)
    model = Encoder.from_decoder(decoder, pooling)
    ids, mask = padded([[1, 2, 3, 4], [5, 6]], [True, False])
    rows = [decoder.hidden_states(torch.tensor([text]))[0] for text in ([1, 2, 3, 4], [5, 6])]
    expected = torch.stack([row.mean(0) if pooling == "mean" else row[-1] for row in rows])
    torch.testing.assert_close(model.embed(ids, mask), expected, atol=2e-5, rtol=0)
    assert model.embedding.weight.data_ptr() == decoder.embedding.weight.data_ptr()


def test_gradients_reach_every_parameter():
    model = encoder(**BERT_LIKE | {"pooler": True, "masked_lm": True, "num_labels": 3})
    ids, mask = padded([[1, 2, 3, 4], [5, 6]], [True, False])
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    (
        model.classify(ids, mask, types).square().sum() + model.masked_lm_logits(ids, mask, types).square().sum()
    ).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1, 1], [0, 0]], "row 1 has no token"),
        ([[1, 1], [1, 3]], "row 1 has no token of text 2"),
        ([[1, -1], [1, 1]], "whole numbers"),
        ([[1.0, 0.0], [1.0, 1.0]], "whole numbers"),
        ([[1, 1, 1], [1, 1, 1]], r"mask has shape \[2, 3\], the ids \[2, 2\]"),
    ],
)
def test_masks_that_say_nothing_sensible_are_refused(mask, said):
    with pytest.raises(GristmillError, match=said):
        encoder().embed(torch.ones(2, 2, dtype=torch.long), torch.tensor(mask))


def test_heads_and_tables_that_are_not_there_are_named():
    model, ids = encoder(), torch.tensor([[1, 2]])
    for call, said in (
        (lambda: model.classify(ids), "num_labels is 0"),
        (lambda: model.masked_lm_logits(ids), "masked_lm: false"),
        (lambda: model.pooler_output(model.hidden_states(ids)), "pooler: false"),
        (lambda: model.hidden_states(ids, token_types_BT=ids), "token_types is 0"),
    ):
        with pytest.raises(GristmillError, match=said):
            call()


def test_a_text_longer_than_the_learned_positions_is_refused_and_packed_ones_are_not():
    model = encoder(positions="learned")
    ids = torch.ones(1, 14, dtype=torch.long)
    with pytest.raises(GristmillError, match=r"14 tokens .* 12 learned positions"):
        model.embed(ids)
    assert model.embed(ids, torch.tensor([[1] * 7 + [2] * 7])).shape == (2, 16)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"token_types": -1}, "token_types"),
        ({"num_labels": -2}, "num_labels"),
        ({"tie_embeddings": False}, "tie_embeddings is for decoders"),
        ({"logit_softcap": 3.0}, "logit_softcap is for decoders"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"pool": "mean"}, "pool"),
    ],
)
def test_impossible_shapes_are_refused_by_field(changes, field):
    with pytest.raises(ValidationError, match=field):
        EncoderConfig(**SHAPE | changes)
