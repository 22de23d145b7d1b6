"""Parameters: against the built decoder for shapes of every kind, and against published closed forms."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import evaluated, model_configs
from pydantic import ValidationError

from gristmill.errors import GristmillError
from gristmill.model import counts
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset, preset_names
from gristmill.plan import parameters
from gristmill.plan.model import plan_model


def built_parts(model):
    """The decoder's parameters, sorted by their names into the parts of `counts.parameters_by_part`."""
    parts = {}
    for name, parameter in model.named_parameters():
        if "norm" in name:
            part = "norms"
        elif "router" in name:
            part = "router"
        elif ".attention." in name:
            part = "attention"
        elif ".feed_forward." in name:
            part = "feed_forward"
        else:
            part = {"embedding": "embedding", "position_embedding": "positions", "head": "head"}[name.split(".")[0]]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs())
def test_every_part_is_that_of_the_built_model(config):
    with torch.device("meta"):
        model = Decoder(config)
    assert counts.parameters_by_part(config) == built_parts(model)
    assert parameters.total_params(config) == sum(parameter.numel() for parameter in model.parameters())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs().filter(lambda config: config.experts is not None), st.integers(1, 3))
def test_active_parameters_are_those_of_a_model_with_only_the_chosen_experts(config, more):
    experts = config.experts.model_copy(update={"num_experts": config.experts.top_k})
    alone = config.model_copy(update={"experts": experts})
    router = counts.parameters_by_part(config).get("router", 0) - counts.parameters_by_part(alone).get("router", 0)
    assert parameters.active_params(config) == parameters.total_params(alone) + router
    wider = config.experts.model_copy(update={"num_experts": config.experts.num_experts * (1 + more)})
    assert parameters.active_params(config.model_copy(update={"experts": wider})) == (
        parameters.active_params(config) + more * counts.parameters_by_part(config).get("router", 0)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs())
def test_the_printed_formulas_give_the_counts(config):
    formulas = parameters.formulas(config)
    for part, number in counts.parameters_by_part(config).items():
        if part != "norms":
            assert evaluated(formulas[part], config) == number, formulas[part]


def test_a_dense_layer_named_twice_is_refused_rather_than_counted_twice():
    config = preset("deepseek-v2-lite").model_dump()
    config["experts"]["dense_layers"] = (0, 0)
    with pytest.raises(ValidationError, match="dense_layers"):
        ModelConfig(**config)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs())
def test_matrices_are_what_is_multiplied(config):
    """All matrices of the blocks, and the head, in a model without experts that wait."""
    with torch.device("meta"):
        model = Decoder(config)
    inside = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and name.startswith("blocks."))
    assert parameters.matrix_params(config, active=False) == inside + config.vocab_size * config.hidden_size


def shape(d_model, n_heads, n_layers=1, d_ff=None, vocab_size=1, n_kv_heads=None, **fields):
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_layers=n_layers,
        num_heads=n_heads,
        num_kv_heads=n_kv_heads or n_heads,
        head_dim=d_model // n_heads,
        intermediate_size=d_ff or 4 * d_model,
        max_seq_len=2048,
        **{"tie_embeddings": False} | fields,
    )


LLAMA_7B = shape(4096, 32, 32, 11_008, 32_000)
PARTS = [  # (shape, part, expected): exact counts
    (preset("llama-3-8b"), "embedding", 525_336_576),
    (preset("gpt3-175b"), "embedding", 617_558_016),
    (LLAMA_7B, "embedding", 131_072_000),
    (LLAMA_7B, "head", 131_072_000),
    (LLAMA_7B, "norms", 266_240),
]


@pytest.mark.parametrize(("config", "part", "expected"), PARTS)
def test_published_parts(config, part, expected):
    assert counts.parameters_by_part(config)[part] == expected


def test_published_totals():
    assert parameters.total_params(preset("llama-3-8b")) == 8_030_261_248
    assert parameters.total_params(preset("llama-3-8b").model_copy(update={"tie_embeddings": True})) == 7_504_924_672
    assert parameters.total_params(preset("gpt3-175b")) == 174_604_259_328
    assert parameters.total_params(preset("gpt2-124m")) == 124_439_808


@pytest.mark.parametrize(
    ("layers", "width", "expected"),
    [(32, 4096, 6_442_450_944), (24, 2048, 1_207_959_552), (80, 8192, 64_424_509_440), (96, 12_288, 173_946_175_488)],
)
def test_a_plain_block_has_12_d_squared(layers, width, expected):
    parts = counts.parameters_by_part(shape(width, width // 128, layers, gated=False))
    assert parts["attention"] + parts["feed_forward"] == expected == 12 * layers * width**2


def test_shares_and_ratios_of_published_models():
    llama_3 = preset("llama-3-8b")
    assert (counts.attention(llama_3) + counts.feed_forward(llama_3, 0)) / 4096**2 == 13
    assert counts.feed_forward(LLAMA_7B, 0) == 135_266_304
    relu = counts.feed_forward(shape(4096, 32, d_ff=16_384, gated=False), 0)
    assert counts.feed_forward(shape(4096, 32, d_ff=16_384), 0) / relu == 1.5
    assert counts.feed_forward(LLAMA_7B, 0) / relu == pytest.approx(1.0078125)
    for config, feed_forward, attention in (
        (preset("gpt3-175b"), 0.6641539985, 0.3320769993),
        (llama_3, 0.701987694, 0.167),
        (preset("llama-3-70b"), 0.7989863121, 0.171),
        (LLAMA_7B, 0.6423649081, None),
    ):
        parts, total = counts.parameters_by_part(config), config.num_parameters
        assert parts["feed_forward"] / total == pytest.approx(feed_forward, rel=1e-4)
        assert attention is None or parts["attention"] / total == pytest.approx(attention, rel=0.005)
    norms = counts.parameters_by_part(LLAMA_7B)["norms"] / LLAMA_7B.num_parameters
    assert norms == pytest.approx(3.951077155e-05)


def test_widths_of_published_heads_and_layers():
    gpt_3 = preset("gpt3-175b")
    assert (gpt_3.head_dim, gpt_3.intermediate_size) == (128, 49_152)
    assert preset("gpt2-124m").head_dim == 64
    assert preset("llama-2-7b").head_dim == 128


def test_gpt_3_without_its_biases():
    bare = preset("gpt3-175b").model_copy(update={"qkv_bias": False, "output_bias": False, "mlp_bias": False})
    assert 96 * counts.attention(bare) == 57_982_058_496
    assert 96 * counts.feed_forward(bare, 0) == 115_964_116_992
    assert 96 * (counts.attention(bare) - 12_288**2) == 43_486_543_872


def test_bytes():
    assert parameters.weight_bytes(70_553_706_496, 16) == 141_107_412_992
    assert parameters.weight_bytes(7e9, 4) == 3.5e9
    assert parameters.bits_per_element("bfloat16") == parameters.bits_per_element("bf16") == 16
    with pytest.raises(GristmillError, match="dtype 'bf17' is not known; use one of"):
        parameters.bits_per_element("bf17")


def test_embedding_share():
    assert parameters.embedding_share(preset("gpt2-124m")) == pytest.approx((50_257 + 1024) * 768 / 124_439_808)


@pytest.mark.parametrize("name", preset_names())
def test_the_plan_of_every_preset_is_consistent(name):
    config = preset(name)
    quantities = {quantity.id: quantity for quantity in plan_model(config, min(config.max_seq_len, 4096))}
    parts = counts.parameters_by_part(config)
    assert {part: quantities[f"parameters.{part}"].value for part in parts} == parts
    assert quantities["parameters.total"].value == sum(parts.values())
    assert ("parameters.active" in quantities) == (config.experts is not None)
    assert quantities["flops.backward"].value == 2 * quantities["flops.forward"].value
    assert quantities["weights.bf16"].value == 2 * config.num_parameters
    assert all(quantity.formula and quantity.value >= 0 for quantity in quantities.values())


def test_lengths_that_cannot_be_are_refused():
    with pytest.raises(GristmillError, match=r"seq_len \(2000\) is more than the model's 1024 learned positions"):
        plan_model(preset("gpt2-124m"), 2000)
    with pytest.raises(GristmillError, match="seq_len must be at least 1"):
        plan_model(preset("gpt2-124m"), 0)
