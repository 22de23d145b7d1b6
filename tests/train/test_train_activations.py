"""Activation checkpointing: the same gradients to the last bit, under the same names, from less memory."""

import copy

import pytest
import torch
from live_bytes import forward, step_bytes
from torch._dynamo import reset

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.train.activations import checkpoint_activations, group_sizes

MODES = ["sqrt", "block", "selective"]
SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_layers": 5, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
         "intermediate_size": 48, "max_seq_len": 32}  # fmt: skip
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 16, "balance": "aux_loss", "capacity_factor": 1.0}
VARIANTS = {
    "swiglu": {},
    "gelu": {"gated": False, "activation": "gelu", "norm": "layernorm", "norm_bias": True, "positions": "learned"},
    "experts": {"experts": EXPERTS | {"dense_layers": (0,)}},
    "softcap": {"attention_softcap": 5.0, "sliding_window": 4, "attention_pattern": ("sliding", "full")},
}


def decoder(variant):
    return Decoder(ModelConfig.model_validate(SHAPE | VARIANTS[variant])).init_weights(0).train()


def gradients(model, precision):
    ids = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = forward(model, ids, precision)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_the_same_bits(mode, variant, precision):
    model = decoder(variant)
    loss, expected = gradients(model, precision)
    names = list(model.state_dict())
    checkpoint_activations(model, mode)
    again, found = gradients(model, precision)
    assert torch.equal(loss, again)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_too(mode):
    config = EncoderConfig.model_validate(SHAPE | {"masked_lm": True, "num_kv_heads": 4})
    model = Encoder(config).init_weights(0).train()
    ids = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0

    def gradient():
        model.zero_grad()
        model.masked_lm_logits(ids, mask).logsumexp(-1).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradient()
    checkpoint_activations(model, mode)
    found = gradient()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_less_memory_the_more_is_computed_again():
    config = ModelConfig.model_validate(SHAPE | {"hidden_size": 128, "num_layers": 9, "intermediate_size": 384})
    peaks = {mode: step_bytes(config, 16, 32, mode) for mode in ("none", *MODES)}
    assert peaks["block"] < peaks["sqrt"] < peaks["selective"] < peaks["none"]
    assert peaks["block"] < peaks["none"] / 2


def test_another_mode_takes_the_place_of_the_last():
    model = decoder("swiglu")
    plain = dict(model.__dict__), [dict(block.__dict__) for block in model.blocks]
    for mode in (*MODES, "none"):
        checkpoint_activations(model, mode)
    assert (dict(model.__dict__), [dict(block.__dict__) for block in model.blocks]) == plain


def test_passes_without_gradients_and_copies():
    model = decoder("swiglu")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids)
    for mode in MODES:
        checkpoint_activations(model, mode)
        with torch.no_grad():
            assert torch.equal(model(ids), expected)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        with torch.no_grad():
            assert torch.equal(twin(ids), expected), "a copy runs its own blocks"
            for parameter in model.parameters():
                parameter.div_(2.0)


@pytest.mark.parametrize(("layers", "sizes"), [(1, [1]), (5, [3, 2]), (9, [3, 3, 3]), (30, [6, 6, 6, 6, 6])])
def test_groups(layers, sizes):
    assert group_sizes(layers) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled(mode):
    """Traced whole by the compiler, without its slow code generation."""
    model = decoder("swiglu")
    _, expected = gradients(model, "fp32")
    checkpoint_activations(model, mode)
    reset()
    model.hidden_states = torch.compile(model.hidden_states, backend="aot_eager_decomp_partition", fullgraph=True)
    _, found = gradients(model, "fp32")
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
