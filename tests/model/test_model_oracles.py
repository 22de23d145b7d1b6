"""Variants without a family of their own in weights/families, against the part of transformers that has them."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from model_variants import VOCAB, random_ids, random_model, variant
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_oss import modeling_gpt_oss

from gristmill.model.attention import alibi_slopes, masked_attention, visible
from gristmill.model.config import ModelConfig, RopeScaling
from gristmill.model.decoder import Decoder
from gristmill.model.feed_forward import ACTIVATIONS
from gristmill.model.positions import attention_factor, rotary_frequencies, sinusoidal
from gristmill.model.self_attention import attention_spec

TOLERANCE = 1e-4


def compare(ours: Decoder, theirs: torch.nn.Module, pairs: dict[str, torch.Tensor], **call) -> None:
    """Logits and the gradients of `pairs`: our parameter's name -> theirs, as a tensor that keeps its gradient."""
    ids = random_ids(2, 13)
    logits, expected = ours(ids), theirs(ids, **call).logits
    assert expected.abs().max() > 0.1
    assert (logits - expected).abs().max() <= TOLERANCE
    for values in (logits, expected):
        values.square().mean().backward()
    for name, other in pairs.items():
        grad = ours.get_parameter(name).grad
        assert other.grad.abs().max() > 0, name
        theirs_grad = other.grad if other.grad.shape == grad.shape else other.grad.T
        assert (grad - theirs_grad).abs().max() <= TOLERANCE, name


def randomize(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1) * 0.7)


def put(ours: Decoder, values: dict[str, torch.Tensor]) -> None:
    """Fill every parameter."""
    assert {name for name, _ in ours.named_parameters()} == set(values)
    with torch.no_grad():
        for name, value in values.items():
            ours.get_parameter(name).copy_(value)


def test_post_norm_is_that_of_the_first_gpt():
    theirs = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(
            vocab_size=VOCAB, n_positions=64, n_embd=24, n_layer=2, n_head=4, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
        )
    )
    randomize(theirs)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=6, intermediate_size=96,
        max_seq_len=64, positions="learned", norm="layernorm", norm_bias=True, norm_position="post", qkv_bias=True,
        output_bias=True, gated=False, activation="gelu_tanh", mlp_bias=True,
    )  # fmt: skip
    ours = Decoder(config)
    found = theirs.state_dict()
    names = {"embedding.weight": "transformer.tokens_embed.weight"}
    names["position_embedding.weight"] = "transformer.positions_embed.weight"
    inside = {
        "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj", "attention_norm": "ln_1",
        "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj", "feed_forward_norm": "ln_2",
    }  # fmt: skip
    for layer in range(2):
        for mine, other in inside.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{mine}.{kind}"] = f"transformer.h.{layer}.{other}.{kind}"
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    conv = {mine for mine in names if mine.endswith(("qkv.weight", "output.weight", "up.weight", "down.weight"))}
    put(ours, {mine: found[other].T if mine in conv else found[other] for mine, other in names.items()})
    assert all(ours.get_parameter(name).shape == shape for name, shape in shapes.items())
    parameters = dict(theirs.named_parameters())
    compare(ours, theirs, {"blocks.0.attention.qkv.weight": parameters["transformer.h.0.attn.c_attn.weight"]})


def test_parallel_block_on_one_norm_is_that_of_phi():
    theirs = transformers.PhiForCausalLM(
        transformers.PhiConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        )
    )  # fmt: skip
    randomize(theirs)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, intermediate_size=40,
        max_seq_len=64, rope_fraction=0.5, norm="layernorm", norm_bias=True, parallel_block="shared", qkv_bias=True,
        output_bias=True, gated=False, activation="gelu_tanh", mlp_bias=True, tie_embeddings=False, head_bias=True,
    )  # fmt: skip
    ours = Decoder(config)
    found = theirs.state_dict()
    values = {
        "embedding.weight": found["model.embed_tokens.weight"],
        "norm.weight": found["model.final_layernorm.weight"], "norm.bias": found["model.final_layernorm.bias"],
        "head.weight": found["lm_head.weight"], "head.bias": found["lm_head.bias"],
    }  # fmt: skip
    for layer in range(2):
        mine, other = f"blocks.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            qkv = [found[f"{other}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            values[f"{mine}.attention.qkv.{kind}"] = torch.cat(qkv)
            values[f"{mine}.attention.output.{kind}"] = found[f"{other}.self_attn.dense.{kind}"]
            values[f"{mine}.attention_norm.{kind}"] = found[f"{other}.input_layernorm.{kind}"]
            values[f"{mine}.feed_forward.up.{kind}"] = found[f"{other}.mlp.fc1.{kind}"]
            values[f"{mine}.feed_forward.down.{kind}"] = found[f"{other}.mlp.fc2.{kind}"]
    put(ours, values)
    parameters = dict(theirs.named_parameters())
    pairs = {"blocks.0.attention_norm.weight": parameters["model.layers.0.input_layernorm.weight"]}
    compare(ours, theirs, pairs | {"blocks.1.feed_forward.up.bias": parameters["model.layers.1.mlp.fc1.bias"]})


def test_a_model_without_positions_is_a_llama_whose_tokens_all_stand_at_zero():
    config = variant("no-positions")
    rotary, plain = random_model(variant("grouped")), Decoder(config)
    plain.load_state_dict(rotary.state_dict())
    ids = random_ids(2, 9)
    torch.testing.assert_close(plain(ids), rotary(ids, torch.zeros_like(ids)), atol=1e-5, rtol=0)
    assert (plain(ids) - rotary(ids)).abs().max() > 1e-2


@pytest.mark.parametrize("window", [None, 3])
def test_learned_sinks_are_those_of_gpt_oss(window):
    config = variant("learned-sinks" if window is None else "sliding-softcap-sinks", attention_softcap=None)
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 7, 4, 8, generator=generator)
    k, v = (torch.randn(2, 7, 2, 8, generator=generator) for _ in range(2))
    sinks = torch.randn(4, generator=generator)
    spec = attention_spec(config, 0)
    spec = type(spec)(**vars(spec) | {"sinks": sinks, "window": window})
    at = torch.arange(7)
    mask = torch.zeros(7, 7).masked_fill(~visible(spec, at, at), float("-inf"))
    module = SimpleNamespace(num_key_value_groups=2, sinks=sinks, training=False)
    expected, _ = modeling_gpt_oss.eager_attention_forward(
        module, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask[None, None], spec.scale
    )
    torch.testing.assert_close(masked_attention(spec, q, k, v), expected, atol=1e-5, rtol=0)


SCALINGS = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn-betas": {"factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    "yarn-mscale": {"factor": 40.0, "mscale": 0.9, "mscale_all_dim": 0.5},
    "yarn-factor": {"factor": 8.0, "attention_factor": 1.3},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "dynamic": {"factor": 3.0},
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [40, 512, 5000])
def test_scaled_frequencies_are_those_of_transformers(name, length):
    kind = name.split("-")[0]
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **SCALINGS[name]}
    if kind != "dynamic":
        rope["original_max_position_embeddings"] = 512
    theirs = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=512, rope_parameters=rope
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=length)
    scaling = RopeScaling(kind=kind, original_max_seq_len=512, **SCALINGS[name])
    found = rotary_frequencies(64, 10_000.0, scaling, length, torch.device("cpu"))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
    assert attention_factor(scaling) == pytest.approx(factor, rel=1e-6)


def test_dynamic_scaling_knows_each_rows_own_length():
    """As in transformers for one row; a neighbour in the batch changes nothing."""
    model, ids = random_model(variant("rope-dynamic")), random_ids(2, 40)
    positions = torch.arange(40).expand(2, 40).clone()
    positions[1] %= 20  # its longest text has 20 tokens
    both = model(ids, positions)
    torch.testing.assert_close(both[:1], model(ids[:1], positions[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:], model(ids[1:], positions[1:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[:1], model(ids[:1]), atol=1e-5, rtol=0)


def test_a_longer_context_moves_the_base_of_dynamic_scaling_for_every_token():
    model, ids = random_model(variant("rope-dynamic")), random_ids(1, 40)
    short = model(ids[:, :16])
    torch.testing.assert_close(model.logits(model.hidden_states(ids[:, :16], context_length=16)), short)
    assert (model(ids)[:, :16] - short).abs().max() > 1e-3
    longer = model.logits(model.hidden_states(ids[:, :16], context_length=40))
    torch.testing.assert_close(longer, model(ids)[:, :16], atol=1e-5, rtol=0)


def test_sinusoidal_positions_are_those_of_transformers():
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

    table = torch.empty(50, 24)
    create_sinusoidal_embeddings(50, 24, table)
    torch.testing.assert_close(sinusoidal(torch.arange(50)[None], 24)[0], table, atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20])
def test_alibi_slopes_are_those_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # [heads, 1, 2]: slope times position
    assert alibi_slopes(heads, torch.device("cpu")).tolist() == pytest.approx(bias[:, 0, 1].tolist())


def test_activations_are_those_of_transformers():
    x = torch.linspace(-4, 4, 101)
    names = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
    assert set(names) == set(ACTIVATIONS)
    for ours, theirs in names.items():
        torch.testing.assert_close(ACTIVATIONS[ours](x), ACT2FN[theirs](x))


def test_soft_caps_bound_scores_and_logits():
    model = random_model(variant("softcap"))
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    logits = model(random_ids(1, 6))
    assert logits.abs().max() <= 3.0
    assert math.isclose(float(logits.detach().abs().max()), 3.0, rel_tol=1e-3)
