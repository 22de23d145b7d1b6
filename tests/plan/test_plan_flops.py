"""FLOPs against a count of the products that the built decoder does, and of the keys that its masks leave."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import model_configs
from torch.utils.flop_counter import FlopCounterMode

from gristmill.model.attention import AttentionSpec, visible
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.plan import flops
from gristmill.plan.parameters import matrix_params


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs(), st.integers(1, 24))
def test_keys_per_token_are_those_the_masks_leave(config, seq_len):
    at = torch.arange(seq_len)
    for kind in set(config.layer_kinds):
        slides = kind == "sliding"
        spec = AttentionSpec(0, 1, 1, 2, 1.0, 2, causal=config.causal,
                             window=config.sliding_window if slides else None,
                             sink_tokens=config.sink_tokens if slides else 0)  # fmt: skip
        allowed = visible(spec, at, at)
        seen = seq_len**2 if allowed is None else int(allowed.sum())
        assert flops.keys_per_token(config, kind, seq_len) == pytest.approx(seen / seq_len)
        assert flops.keys_per_token(config, kind, seq_len, causal_half=False) >= seen / seq_len


def test_more_sinks_than_tokens_are_the_tokens():
    config = preset("gpt2-124m").model_copy(
        update={"causal": False, "sliding_window": 1, "sink_tokens": 3, "attention_pattern": ("sliding",)}
    )
    assert flops.keys_per_token(config, "sliding", 2) == 2.0


def counted(config, seq_len, backward):
    """FLOPs of the matrix products that torch sees, for one sequence; attention in its plain form, over all keys."""
    torch.manual_seed(0)
    model = Decoder(config).init_weights(0)
    ids = torch.zeros(1, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, attend=products)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def products(spec, q_BTHD, k_BTKD, v_BTKE):
    """Attention as two products, over every key."""
    repeat = q_BTHD.shape[2] // k_BTKD.shape[2]
    q, k, v = q_BTHD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKE.transpose(1, 2)
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)


def plain(config):
    """Without what torch's counter or this plain attention would see otherwise: experts are grouped products of
    sizes that the router decides, and windows are masks here."""
    fields = config.model_dump() | {"experts": None, "sliding_window": None, "sink_tokens": 0,
                                    "attention_pattern": ("full",), "sliding_rope_theta": None}  # fmt: skip
    return type(config).model_validate(fields)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs().map(plain), st.integers(2, 6), st.booleans())
def test_products_are_those_that_torch_counts(config, seq_len, backward):
    seq_len = min(seq_len, config.max_seq_len)
    expected = flops.flops_per_token_forward(config, seq_len, causal_half=False)
    if backward:
        expected = flops.flops_per_token_training(config, seq_len, causal_half=False)
    assert counted(config, seq_len, backward) == seq_len * expected


def test_forward_pass_of_gpt_3():
    """Twice the tokens are 2.027 times the FLOPs of a forward pass, and 4 times those of attention."""
    gpt_3 = preset("gpt3-175b")

    def whole(seq_len):
        return seq_len * flops.flops_per_token_forward(gpt_3, seq_len)

    def attention(seq_len):
        return seq_len * flops.attention_flops_per_token(gpt_3, seq_len)

    assert whole(4096) / whole(2048) == pytest.approx(2.027295409, rel=0.001)
    assert attention(4096) / attention(2048) == pytest.approx(4, rel=0.001)
    # 2 L d s per token at half of the keys, as the closed form has it.
    assert flops.attention_flops_per_token(gpt_3, 2048) == pytest.approx(2 * 96 * 12_288 * 2048, rel=0.001)
    assert flops.flops_per_token_training(gpt_3, 2048) == pytest.approx(6 * 174_604_259_328, rel=0.02)


def test_only_the_chosen_experts_work():
    mixtral = preset("mixtral-8x7b")
    dense = 2 * (mixtral.num_active_parameters - mixtral.vocab_size * 4096)  # without the input table
    assert flops.flops_per_token_forward(mixtral, 1) == pytest.approx(dense, rel=1e-3)


def test_decoding_sees_the_context_or_the_window():
    llama, mistral = preset("llama-3-8b"), preset("mistral-7b")
    per_key = 4 * 32 * 128 * 32
    assert flops.flops_per_token_decode(llama, 8192) == 2 * matrix_params(llama) + per_key * 8192
    assert flops.flops_per_token_decode(mistral, 8192) == 2 * matrix_params(mistral) + per_key * 4096


def test_latent_attention_decodes_in_its_absorbed_form():
    """Per key and head 2 (kv_rank + rope) for the score and 2 kv_rank for the sum; queries and outputs meet kv_up."""
    lite = preset("deepseek-v2-lite")
    per_key = 27 * 16 * (2 * (512 + 64) + 2 * 512)
    assert flops.flops_per_token_decode(lite, 1000) == 2 * matrix_params(lite) + 1000 * per_key
