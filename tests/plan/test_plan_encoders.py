"""Encoders, encoder-decoders and every preset: parts against the built models, FLOPs against the products they do."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import evaluated, model_configs
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from gristmill.model import encoder_decoder as encoder_decoder_module
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gristmill.model.presets import preset, preset_names
from gristmill.plan import encoder_decoder, flops, parameters
from gristmill.plan.model import plan_model

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}


def part_of(name):
    """The part that a parameter of a built model belongs to, by its name."""
    if name.startswith("masked_lm."):
        return "masked_lm"
    if "norm" in name:
        return "norms"
    for part in ("router", "cross_attention", "relative_bias"):
        if part in name:
            return part
    if ".attention." in name or ".feed_forward." in name:
        return "attention" if ".attention." in name else "feed_forward"
    tables = {"embedding": "embedding", "position_embedding": "positions", "token_type_embedding": "token_types",
              "head": "head", "pooler": "pooler", "classifier": "classifier"}  # fmt: skip
    return tables[name.rsplit(".", 1)[0].split(".")[-1]]


def built_parts(model):
    parts = {}
    for name, parameter in model.named_parameters():
        parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    return parts


@st.composite
def encoders(draw):
    fields = draw(model_configs()).model_dump()
    dropped = {"tie_embeddings": True, "head_bias": False, "logit_scale": 1.0, "logit_softcap": None}
    heads = {"token_types": draw(st.integers(0, 3)), "pooler": draw(st.booleans()), "masked_lm": draw(st.booleans()),
             "num_labels": draw(st.integers(0, 4))}  # fmt: skip
    return EncoderConfig.model_validate(fields | dropped | heads)


@st.composite
def encoder_decoders(draw):
    fields = draw(model_configs().filter(lambda config: config.latent is None and config.experts is None)).model_dump()
    plain = {"causal": False, "learned_sinks": False, "qk_norm": "none", "parallel_block": "none"}
    layers = max(draw(st.integers(1, 4)), len(fields["attention_pattern"]))
    buckets = draw(st.sampled_from([0, 4, 6])) if fields["positions"] == "none" else 0
    more = {"num_decoder_layers": layers, "relative_buckets": buckets}
    try:
        return EncoderDecoderConfig.model_validate(fields | plain | more)
    except ValidationError:
        return EncoderDecoderConfig.model_validate(fields | plain | more | {"relative_buckets": 0})


def check(config, model):
    expected = built_parts(model)
    assert config.parameters_by_part() == expected
    assert config.num_parameters == parameters.total_params(config) == sum(expected.values())
    quantities = plan_model(config, 4)
    found = {quantity.id: quantity.value for quantity in quantities}
    assert {part: found[f"parameters.{part}"] for part in expected} == expected
    assert found["parameters.total"] == sum(expected.values())
    assert found["weights.bf16"] == 2 * sum(expected.values())
    assert all(quantity.value >= 0 and quantity.formula for quantity in quantities)
    formulas = parameters.formulas(config)
    for part, number in expected.items():
        if part != "norms":
            assert evaluated(formulas[part], config) == number, formulas[part]


@settings(max_examples=80, **SLOW)
@given(encoders())
def test_every_part_of_an_encoder(config):
    with torch.device("meta"):
        check(config, Encoder(config))


@settings(max_examples=80, **SLOW)
@given(encoder_decoders())
def test_every_part_of_an_encoder_decoder(config):
    with torch.device("meta"):
        check(config, EncoderDecoder(config))


@pytest.mark.parametrize("name", preset_names())
def test_every_part_of_every_preset(name):
    config = preset(name)
    with torch.device("meta"):
        model = Decoder(config)
    assert config.parameters_by_part() == built_parts(model)


def products(spec, q_BTHD, k_BTKD, v_BTKE):
    """Attention as two products, over every key."""
    repeat = q_BTHD.shape[2] // k_BTKD.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKE))
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)


SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6,
         "intermediate_size": 24, "max_seq_len": 32}  # fmt: skip


@pytest.mark.parametrize("fields", [{}, {"gated": False, "activation": "gelu"}, {"tie_embeddings": False}])
def test_flops_of_an_encoder_decoder_are_those_of_its_products(monkeypatch, fields):
    config = EncoderDecoderConfig(**SHAPE, num_decoder_layers=3, **fields)
    monkeypatch.setattr(encoder_decoder_module, "causal_attention", products)
    model, read, written = EncoderDecoder(config).init_weights(0), 7, 5
    with FlopCounterMode(display=False) as counter:
        memory = model.read(torch.zeros(1, read, dtype=torch.long))
    assert counter.get_total_flops() == read * encoder_decoder.flops_per_token_read(config, read, causal_half=False)
    with FlopCounterMode(display=False) as counter:
        ids = torch.zeros(1, written, dtype=torch.long)
        model.logits(model.decode(ids, memory, attend=products, cross_attend=products))
    expected = encoder_decoder.flops_per_token_written(config, written, read, causal_half=False)
    assert counter.get_total_flops() == written * expected


def test_flops_of_an_encoder_are_those_of_its_products():
    config = EncoderConfig(**SHAPE, masked_lm=True, pooler=True, num_labels=3, pooling="cls")
    model, length = Encoder(config).init_weights(0), 9
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden_states(ids, attend=products)
        model.masked_lm(hidden, model.embedding.weight)
    assert counter.get_total_flops() == length * flops.flops_per_token_forward(config, length)
    with FlopCounterMode(display=False) as counter:
        model.classifier(model.pooler_output(hidden))
    assert counter.get_total_flops() == encoder_decoder.text_flops(config)
    bare = EncoderConfig(**SHAPE)
    with FlopCounterMode(display=False) as counter:
        Encoder(bare).init_weights(0).hidden_states(ids, attend=products)
    assert counter.get_total_flops() == length * flops.flops_per_token_forward(bare, length), "no head"


def test_bert_and_t5_as_published():
    """bert-base-uncased with its pooler, 109,482,240; t5-small, 60,506,624."""
    bert = EncoderConfig(vocab_size=30_522, hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64,
                         intermediate_size=3072, max_seq_len=512, token_types=2, positions="learned", norm="layernorm",
                         norm_bias=True, norm_position="post", embedding_norm=True, gated=False, activation="gelu",
                         qkv_bias=True, output_bias=True, mlp_bias=True, pooler=True)  # fmt: skip
    assert bert.num_parameters == 109_482_240
    t5 = EncoderDecoderConfig(vocab_size=32_128, hidden_size=512, num_layers=6, num_decoder_layers=6, num_heads=8,
                              num_kv_heads=8, head_dim=64, intermediate_size=2048, max_seq_len=512, positions="none",
                              relative_buckets=32, activation="relu", gated=False)  # fmt: skip
    assert t5.num_parameters == 60_506_624
    found = {quantity.id: quantity.value for quantity in plan_model(t5, 512)}
    assert found["kv_cache.per_token_read"] == 6 * 2 * 8 * 64 * 2
    assert found["flops.training"] == 3 * found["flops.forward"]
