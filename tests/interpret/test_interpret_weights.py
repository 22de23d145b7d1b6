"""The tables of weights for models that are not saved as a Llama."""

import pytest
import torch

from gristmill.interpret.weights import norm_table, parameters_by_part, weight_table
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

BASE = {"vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8}
BASE |= {"intermediate_size": 44, "max_seq_len": 64}
LAYERNORM = {"norm": "layernorm", "norm_bias": True, "positions": "learned", "gated": False, "activation": "gelu_tanh"}
LAYERNORM |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
EXPERTS = {"experts": {"num_experts": 4, "top_k": 2, "intermediate_size": 8}, "qk_norm": "head"}
MODELS = {
    "gpt2": (LAYERNORM, {"transformer.h.0.ln_1.weight", "transformer.ln_f.weight"}, {"positions"}),
    "qwen3_moe": (EXPERTS, {"model.layers.1.self_attn.k_norm.weight", "model.norm.weight"}, {"router"}),
    "without a home": ({"positions": "alibi"}, {"blocks.1.feed_forward_norm.weight", "norm.weight"}, set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_tables_know_every_family(name) -> None:
    changes, norms, parts = MODELS[name]
    model = Decoder(ModelConfig(**BASE | changes)).init_weights(0)
    rows = weight_table(model, {})
    assert sum(row["parameters"] for row in rows) == model.config.num_parameters
    assert len({row["name"] for row in rows}) == len(rows)
    found = {row["name"]: row for row in norm_table(model)}
    assert norms <= set(found)
    assert not any(key.endswith("bias") for key in found)
    assert all(row["mean"] == 1.0 for row in found.values())
    counted = parameters_by_part(model)
    assert set(counted) == {"embedding", "attention", "feed_forward", "norms"} | parts
    assert sum(counted.values()) == model.config.num_parameters
    assert sum(tensor.numel() for tensor in model.parameters()) == model.config.num_parameters
    assert torch.isfinite(torch.tensor([row["norm"] for row in rows])).all()
