"""The decoder against transformers' Llama with the same weights: logits and gradients."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.weights.layout import layout, split_tensors

TOLERANCE = 1e-4
SHAPES = {
    "grouped": {},
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 4},
    "untied": {"tie_embeddings": False},
    "narrow-heads": {"head_dim": 4},
    "wide-heads": {"head_dim": 14, "tie_embeddings": False},
    "one-head": {"num_heads": 1, "num_kv_heads": 1, "head_dim": 32},
    "rope-and-eps": {"rope_theta": 100_000.0, "norm_eps": 1e-3},
}


def pair(changes) -> tuple[Decoder, torch.nn.Module]:
    """Our decoder with random weights, and transformers' with the same."""
    base = {
        "vocab_size": 41,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 44,
        "max_seq_len": 64,
    }
    config = ModelConfig(**base | changes)
    torch.manual_seed(0)
    ours = Decoder(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1))
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    problems = theirs.load_state_dict(dict(split_tensors(ours)), strict=False)
    assert problems.unexpected_keys == []
    assert problems.missing_keys == (["lm_head.weight"] if config.tie_embeddings else [])
    return ours, theirs


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_agree(name):
    ours, theirs = pair(SHAPES[name])
    ids = torch.randint(41, (2, 23), generator=torch.Generator().manual_seed(1))
    our_logits, their_logits = ours(ids), theirs(ids).logits
    assert their_logits.abs().max() > 0.1
    assert (our_logits - their_logits).abs().max() <= TOLERANCE

    for logits in (our_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = {key: value.grad for key, value in theirs.named_parameters()}
    for key, parts in layout(ours.config).items():
        expected = torch.cat([gradients[part] for part in parts])
        assert expected.abs().max() > 0, key
        assert (ours.get_parameter(key).grad - expected).abs().max() <= TOLERANCE, key


def test_positions_given_by_the_caller_agree():
    ours, theirs = pair({})
    ids = torch.randint(41, (1, 9), generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([[0, 1, 2, 3, 10, 11, 12, 30, 31]])
    expected = theirs(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    assert (ours(ids, positions) - expected).abs().max() <= TOLERANCE
