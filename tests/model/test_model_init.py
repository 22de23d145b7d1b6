"""Initialisation: scales of every kind of parameter, independence of order and place, muP's coordinate check."""

import math
import typing

import pytest
import torch
from torch import nn

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gristmill.model.init import init_weights, learning_rate_scales, mup_shape
from gristmill.model.schemes import InitScheme

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 96,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 16,
    "intermediate_size": 192,
    "max_seq_len": 64,
}
EVERYTHING = SHAPE | {
    "qkv_bias": True,
    "output_bias": True,
    "qk_norm": "head",
    "learned_sinks": True,
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "tie_embeddings": False,
    "head_bias": True,
}
EXPERTS = {
    "experts": {
        "num_experts": 6,
        "top_k": 2,
        "intermediate_size": 64,
        "shared_intermediate_size": 96,
        "dense_layers": [0],
        "balance": "bias",
    }
}
LATENT = {
    "num_kv_heads": 6,
    "head_dim": 24,
    "latent": {"kv_rank": 32, "q_rank": 48, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 16},
}
SCHEMES = typing.get_args(InitScheme)


def build(scheme="gpt2", seed=1, **shape):
    return Decoder(ModelConfig(**SHAPE | shape)).init_weights(seed, scheme)


def stds(model):
    return {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() > 1}


def near(std):
    return pytest.approx(std, rel=0.05)


def test_gpt2_scales():
    model = build(**EVERYTHING | EXPERTS)
    for name, std in stds(model).items():
        if name.endswith(("attention.output.weight", "feed_forward.down", ".down.weight")):
            assert std == near(0.02 / math.sqrt(2 * 4)), name
        elif name.endswith("router.weight"):
            assert std == pytest.approx(0.002, rel=0.15), name
        else:
            assert std == near(0.02), name


def test_both_halves_of_an_encoder_decoder_are_scaled_by_their_own_depth():
    config = EncoderDecoderConfig(**SHAPE | {"num_decoder_layers": 1, "relative_buckets": 8, "positions": "none"})
    found = stds(EncoderDecoder(config).init_weights(1))
    assert found["encoder.blocks.0.attention.output.weight"] == near(0.02 / math.sqrt(2 * 4))
    assert found["decoder.blocks.0.cross_attention.output.weight"] == near(0.02 / math.sqrt(2))
    assert found["decoder.relative_bias.weight"] == pytest.approx(0.02, rel=0.3)
    model = EncoderDecoder(config)
    assert learning_rate_scales(model, 24)["encoder.relative_bias.weight"] == 1


def test_depth_scaled_outputs_shrink_with_the_layer():
    found = stds(build("depth_scaled"))
    for layer in range(4):
        for name in ("attention.output.weight", "feed_forward.down.weight"):
            assert found[f"blocks.{layer}.{name}"] == near(0.02 / math.sqrt(2 * (layer + 1)))
        assert found[f"blocks.{layer}.attention.qkv.weight"] == near(0.02)


def test_mup_scales_follow_the_fan_in():
    model = build("mup", **LATENT | EXPERTS | {"tie_embeddings": False, "embedding_scale": 4.0})
    found = stds(model)
    assert found["embedding.weight"] == near(1 / 4)
    assert found["head.weight"] == 0
    for name, fan_in in (("q_down", 96), ("q_up", 48), ("kv_down", 96), ("kv_up", 32)):
        assert found[f"blocks.1.attention.{name}.weight"] == near(1 / math.sqrt(fan_in))
    assert found["blocks.1.feed_forward.gate_up"] == near(1 / math.sqrt(96))
    assert found["blocks.1.feed_forward.down"] == near(1 / math.sqrt(64 * 2 * 4))
    assert found["blocks.1.feed_forward.router.weight"] == pytest.approx(0.1 / math.sqrt(96), rel=0.15)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("offset", [False, True])
def test_vectors_start_as_if_they_were_not_there(scheme, offset):
    """With the norms' gains at one and all else at zero, a norm is just a norm, whatever it adds to its weight."""
    model = build(scheme, **EVERYTHING | EXPERTS | {"norm_unit_offset": offset})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # nothing may be left as the constructors made it
        for buffer in model.buffers():
            buffer.add_(1.0)
    init_weights(model, scheme, 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            norm = name.endswith("norm.weight")
            assert torch.all(parameter == (1.0 if norm and not offset else 0.0)), name
    assert all(torch.all(buffer == 0) for buffer in model.buffers())
    assert any(name.endswith("selection_bias") for name, _ in model.named_buffers())


def test_norms_inside_latent_attention_never_have_the_offset():
    model = build(**LATENT | {"norm_unit_offset": True})
    assert torch.all(model.blocks[0].attention.kv_norm.weight == 1)
    assert torch.all(model.blocks[0].attention_norm.weight == 0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_parameter_depends_on_seed_and_name_alone(scheme):
    model, again = build(scheme), build(scheme)
    more = build(scheme, qkv_bias=True, qk_norm="head", tie_embeddings=False, sliding_window=8,
                 attention_pattern=("sliding", "full"))  # fmt: skip
    other = build(scheme, seed=2)
    others = dict(other.named_parameters())
    richer = dict(more.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])
        if scheme == "mup" and name == "embedding.weight":  # of another scale where it is not the head
            continue
        assert torch.equal(parameter, richer[name])
        assert parameter.dim() == 1 or not torch.equal(parameter, others[name])


def test_no_two_parameters_are_alike():
    seen = {}
    for name, parameter in build(**EXPERTS).named_parameters():
        if parameter.dim() > 1:
            values = (parameter.detach() / parameter.detach().std()).flatten()[:8]
            assert not any(torch.allclose(values, other, atol=1e-3) for other in seen.values()), name
            seen[name] = values


def test_experts_do_not_depend_on_how_many_there_are():
    few = build(**EXPERTS).blocks[1].feed_forward
    many = build(experts=EXPERTS["experts"] | {"num_experts": 9}).blocks[1].feed_forward
    assert torch.equal(few.gate_up, many.gate_up[:6])
    assert torch.equal(few.down, many.down[:6])
    assert not torch.equal(many.down[0], many.down[1])


def test_types_and_places_change_nothing_but_rounding():
    expected = dict(build().named_parameters())
    half = Decoder(ModelConfig(**SHAPE)).to(torch.bfloat16).init_weights(1)
    with torch.device("meta"):
        empty = Decoder(ModelConfig(**SHAPE))
    filled = empty.to_empty(device="cpu").init_weights(1)
    state = torch.get_rng_state()
    filled.init_weights(1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, expected[name].bfloat16())
    for name, parameter in filled.named_parameters():
        assert torch.equal(parameter, expected[name])


def test_mup_shape_changes_what_widths_must_not():
    small = ModelConfig(**SHAPE | {"head_dim": 64})
    assert mup_shape(small, base_width=96) == small
    wide = mup_shape(ModelConfig(**SHAPE | {"head_dim": 128, "hidden_size": 192}), base_width=96)
    assert wide.attention_scale == pytest.approx(8 / 128)
    assert wide.logit_scale == 0.5
    untied = mup_shape(ModelConfig(**SHAPE | {"head_dim": 64, "hidden_size": 192, "tie_embeddings": False}), 96)
    assert untied.logit_scale == 1


def test_learning_rate_scales_name_every_parameter():
    model = build(**EVERYTHING | EXPERTS)
    scales = learning_rate_scales(model, base_width=24)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert scales["embedding.weight"] == scales["position_embedding.weight"] == scales["norm.weight"] == 1
    assert scales["blocks.0.attention.qkv.bias"] == scales["blocks.0.attention.sinks"] == 1
    assert scales["head.weight"] == scales["blocks.1.feed_forward.down"] == 24 / 96
    assert scales["blocks.1.feed_forward.router.weight"] == 24 / 96


def test_the_rates_are_those_of_the_fan_in_where_all_widths_grow_together():
    """base fan_in / fan_in (Yang et al. 2022, table 3) for every matrix, ranks and experts included."""

    def grown(times):
        latent = {"nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 16}
        latent |= {"kv_rank": 8 * times, "q_rank": 12 * times}
        experts = EXPERTS["experts"] | {"intermediate_size": 16 * times, "shared_intermediate_size": 24 * times}
        return Decoder(ModelConfig(**SHAPE | LATENT | {
            "hidden_size": 24 * times, "num_heads": 2 * times, "num_kv_heads": 2 * times, "latent": latent,
            "intermediate_size": 48 * times, "experts": experts, "tie_embeddings": False,
        }))  # fmt: skip

    base, wide = dict(grown(1).named_parameters()), grown(3)
    for name, scale in learning_rate_scales(wide, base_width=24).items():
        if base[name].dim() > 1 and name != "embedding.weight":
            assert scale == base[name].shape[-1] / wide.get_parameter(name).shape[-1] == 1 / 3, name


def stream_after_training(width, scheme, tied, steps=4, base_width=64):
    """Root mean square of the residual stream after the last block and of the logits, after `steps` steps of Adam."""
    shape = {"hidden_size": width, "num_layers": 2, "num_heads": width // 32, "num_kv_heads": width // 32,
             "head_dim": 32, "intermediate_size": 2 * width, "vocab_size": 64, "tie_embeddings": tied}  # fmt: skip
    config = ModelConfig(**SHAPE | shape)
    model = Decoder(mup_shape(config, base_width) if scheme == "mup" else config).init_weights(0, scheme)
    scales = learning_rate_scales(model, base_width) if scheme == "mup" else {}
    groups = [{"params": [p], "lr": 0.01 * scales.get(name, 1.0)} for name, p in model.named_parameters()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        *_, stream = model.residual_stream(ids)
        return [float(x.square().mean().sqrt()) for x in (stream, model(ids))]


@pytest.mark.parametrize("tied", [False, True])
def test_coordinate_check(tied):
    """After a few steps activations are as large at any width under muP (Yang et al. 2022, appendix D.1), and grow with
    it under GPT-2's initialisation."""
    widths = (64, 128, 256, 512)
    mup = [stream_after_training(width, "mup", tied) for width in widths]
    gpt2 = [stream_after_training(width, "gpt2", tied) for width in widths]
    for place in range(2):
        values = [run[place] for run in mup]
        assert max(values) / min(values) < 2
        values = [run[place] for run in gpt2]
        assert values == sorted(values)
        assert values[-1] / values[0] > 3
