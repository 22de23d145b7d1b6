"""The decoder's own properties: what must hold for any weights."""

import math

import model_variants
import pytest
import torch
from model_variants import BASE, VOCAB, random_ids
from pydantic import ValidationError

from gristmill.model.attention import AttentionSpec, causal_attention, masked_attention
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.positions import Rotation, rotate, rotations

SLIDING = {"sliding_window": 4, "attention_pattern": ("sliding",)}
LINEAR = {"kind": "linear", "factor": 2.0, "original_max_seq_len": 32}
LATENT = {"kv_rank": 10, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 6}
EXPERTS = {"num_experts": 4, "top_k": 1, "intermediate_size": 12}


def shape(**changes) -> ModelConfig:
    return ModelConfig(**BASE | {"num_layers": 2} | changes)


def random_model(seed: int = 0, **changes) -> Decoder:
    return model_variants.random_model(shape(**changes), seed)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_heads": 2, "num_kv_heads": 4}, "num_kv_heads"),
        ({"rope_fraction": 0.4}, "rope_fraction"),
        ({"positions": "sinusoidal", "hidden_size": 25}, "hidden_size"),
        ({"attention_pattern": ("sliding",)}, "sliding_window"),
        ({"attention_pattern": ("full", "full", "full")}, "attention_pattern"),
        ({"sliding_window": 4}, "attention_pattern"),
        ({"sink_tokens": 2}, "sink_tokens"),
        ({"norm_bias": True}, "norm_bias"),
        ({"positions": "alibi", "rope_scaling": LINEAR}, "rope_scaling"),
        ({"rope_scaling": LINEAR | {"factor": 0.5}}, "factor"),
        ({"rope_scaling": LINEAR | {"kind": "llama3", "high_freq_factor": 1}}, "high_freq_factor"),
        ({"rope_scaling": LINEAR | {"kind": "yarn", "beta_fast": 1}}, "beta_fast"),
        ({"parallel_block": "shared", "norm_position": "sandwich"}, "parallel_block"),
        ({"head_bias": True}, "head_bias"),
        ({"latent": LATENT}, "head_dim"),
        ({"latent": LATENT, "head_dim": 12}, "num_kv_heads"),
        ({"latent": LATENT, "head_dim": 12, "num_kv_heads": 4, "qkv_bias": True}, "qkv_bias"),
        ({"latent": LATENT | {"rope_head_dim": 3, "nope_head_dim": 9}, "head_dim": 12, "num_kv_heads": 4}, "rope_head"),
        ({"experts": EXPERTS | {"top_k": 5}}, "top_k"),
        ({"experts": EXPERTS | {"num_groups": 3}}, "num_groups"),
        ({"experts": EXPERTS | {"num_groups": 2, "top_groups": 3}}, "top_groups"),
        ({"experts": EXPERTS | {"num_groups": 4}}, "group_score"),
        ({"experts": EXPERTS | {"num_groups": 4, "group_score": "max", "top_k": 2}}, "top_k"),
        ({"experts": EXPERTS | {"dense_layers": (2,)}}, "dense_layers"),
        ({"experts": EXPERTS | {"dense_layers": (0, 0)}}, "dense_layers names a layer twice"),
        ({"experts": EXPERTS | {"dense_layers": (1, 0)}}, "dense_layers names every layer"),
        ({"head_dim": 2, "rope_scaling": LINEAR | {"kind": "dynamic"}}, "rope_scaling.kind"),
        ({"rope_scaling": LINEAR, "sliding_rope_theta": 9.0} | SLIDING, "rope_scaling is for full layers"),
        ({"positions": "none", "sliding_rope_theta": 9.0} | SLIDING, "sliding_rope_theta"),
        ({"positions": "alibi", "rope_fraction": 0.5}, "rope_fraction"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"embedding_scale": math.inf}, "embedding_scale"),
        ({"rope_scaling": LINEAR | {"factor": math.inf}}, "factor"),
        ({"experts": EXPERTS, "mlp_bias": True}, "mlp_bias"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": 3}, "layers"),
    ],
)
def test_impossible_shapes_are_refused_by_field(changes, field):
    with pytest.raises(ValidationError, match=field):
        shape(**changes)


def angles(config: ModelConfig, position: int) -> Rotation:
    return rotations(config, torch.tensor([[position]]), torch.float32)["full"]


def test_rotation_turns_each_pair_by_position_times_its_frequency():
    config = shape(head_dim=4, rope_theta=100.0)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    turned = rotate(x, angles(config, 5)).flatten()
    for pair, angle in ((0, 5.0), (1, 5.0 * 100.0**-0.5)):
        first, second = x.flatten()[pair].item(), x.flatten()[pair + 2].item()
        assert turned[pair].item() == pytest.approx(first * math.cos(angle) - second * math.sin(angle), abs=1e-5)
        assert turned[pair + 2].item() == pytest.approx(second * math.cos(angle) + first * math.sin(angle), abs=1e-5)


def test_rotated_products_depend_on_distance_alone():
    config = shape()
    q, k = (torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    def score(query_at: int, key_at: int) -> float:
        return float((rotate(q, angles(config, query_at)) * rotate(k, angles(config, key_at))).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_shifting_all_positions_changes_nothing():
    model, ids = random_model(), random_ids(2, 9)
    positions = torch.arange(9).expand(2, 9)
    torch.testing.assert_close(model(ids, positions + 17), model(ids), atol=1e-4, rtol=0)
    assert (model(ids, positions * 2) - model(ids)).abs().max() > 1e-2


def test_attention_is_softmax_of_scaled_products():
    spec = AttentionSpec(layer=0, num_heads=4, num_kv_heads=2, head_dim=8, value_dim=8, scale=0.3)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 6, 4, 8, generator=generator)
    k, v = (torch.randn(2, 6, 2, 8, generator=generator) for _ in range(2))
    expected = torch.empty_like(q)
    for batch in range(2):
        for time in range(6):
            for head in range(4):
                keys, values = k[batch, : time + 1, head // 2], v[batch, : time + 1, head // 2]
                weights = torch.softmax(keys @ q[batch, time, head] * 0.3, dim=0)
                expected[batch, time, head] = weights @ values
    torch.testing.assert_close(causal_attention(spec, q, k, v), expected, atol=1e-5, rtol=0)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(masked_attention(spec, q, k, v, mask), expected, atol=1e-5, rtol=0)


def test_attend_is_called_once_per_block_with_the_stated_shapes():
    model, ids = random_model(), random_ids(3, 5)
    seen = []

    def recording(spec, q, k, v):
        seen.append((spec, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return causal_attention(spec, q, k, v)

    assert torch.equal(model(ids, attend=recording), model(ids))
    expected = [(layer, (3, 5, 4, 8), (3, 5, 2, 8), (3, 5, 2, 8)) for layer in range(2)]
    assert [(spec.layer, *shapes) for spec, *shapes in seen] == expected
    assert all(spec.scale == 8**-0.5 and spec.plain and spec.causal and spec.window is None for spec, *_ in seen)


def test_logits_are_the_head_on_hidden_states():
    tied, free = random_model(), random_model(tie_embeddings=False)
    ids = random_ids(1, 4)
    assert torch.equal(tied(ids), tied.hidden_states(ids) @ tied.embedding.weight.T)
    assert torch.equal(free(ids), free.hidden_states(ids) @ free.head.weight.T)
    assert tied(ids).shape == (1, 4, VOCAB)


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (Decoder(shape()).init_weights(seed) for seed in (7, 7, 8))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        assert parameter.dim() == 1 or not torch.equal(parameter, other.get_parameter(name)), name


def test_initial_scales():
    model = Decoder(shape(hidden_size=128, intermediate_size=256, num_layers=8, vocab_size=500)).init_weights(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        residual = name.endswith(("attention.output.weight", "down.weight"))
        assert parameter.std().item() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), name


def test_an_untrained_model_predicts_nearly_uniformly():
    model = Decoder(shape(hidden_size=64)).init_weights(0)
    ids = random_ids(4, 16)
    loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.1)
