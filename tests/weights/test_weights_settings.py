"""Keys of `config.json`: none that has a say is overlooked, and no value that is not computed is taken."""

import random
from pathlib import Path

import pytest
import transformers
from family_shapes import BASE, NAMES, settings_of

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.weights.families import FAMILIES, read_config, write_config
from gristmill.weights.families.own import OWN
from gristmill.weights.families.settings import Settings

PATH = Path("config.json")


def refused(values: dict, *words: str) -> None:
    with pytest.raises(GristmillError) as caught:
        read_config(values, PATH)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("config.json", *words):
        assert word in message, message


# Keys of transformers' configurations that say nothing of what is computed: tokens, dropout, first weights, what is
# handed back, and how rather than what.
WITHOUT_SAY = {
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range", "attention_dropout",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "emb_pdrop", "hidden_dropout", "classifier_dropout",
    "attn_config.attn_pdrop", "attn_config.attn_impl", "embedding_fraction", "init_device", "pretraining_tp",
    "output_router_logits", "is_decoder", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj",
    "qk_head_dim",  # the sum of two keys that are read
    "_sliding_window_pattern",  # from which transformers made the layer_types beside it
    "learned_pos_emb",  # MPT has none beside ALiBi, whatever this says
    "num_nextn_predict_layers",  # layers for further tokens, not part of the model
}  # fmt: skip
UNUSED = {("gpt_neox", "num_key_value_heads")}  # a general key that this family does not have


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_transformers_that_has_a_say_is_looked_at(name):
    family = next(family for family in FAMILIES if family.model_type == name)
    config = transformers.AutoConfig.for_model(**settings_of(name))
    values = config.to_dict()
    keys = set(values) - set(transformers.PreTrainedConfig().to_dict()) - {"model_type", "transformers_version"}
    nested = values.get("attn_config") or {}
    keys |= {f"attn_config.{key}" for key in set(nested) - set(transformers.PreTrainedConfig().to_dict())}
    keys -= {"attn_config.model_type"}
    looking = Settings(values, PATH)
    family.read(looking)
    overlooked = {key for key in keys - looking.seen - WITHOUT_SAY if (name, key) not in UNUSED}
    assert not overlooked


REFUSED = [
    ("llama", {"hidden_act": "mish"}, ["hidden_act", "'mish'", "silu"]),
    ("llama", {"hidden_size": None}, ["hidden_size"]),
    ("llama", {"hidden_size": "wide"}, ["hidden_size", "'wide'"]),
    ("llama", {"num_attention_heads": 0}, ["num_attention_heads"]),
    ("llama", {"num_hidden_layers": True}, ["num_hidden_layers"]),
    ("llama", {"num_attention_heads": 5, "head_dim": None}, ["num_attention_heads", "hidden_size (32)"]),
    ("llama", {"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)"]),
    ("llama", {"num_key_value_heads": 8}, ["num_key_value_heads (8) is more than num_attention_heads (4)"]),
    ("llama", {"head_dim": 7}, ["head_dim", "(7)", "even"]),
    ("llama", {"rms_norm_eps": -1.0}, ["rms_norm_eps"]),
    ("llama", {"attention_bias": "yes"}, ["attention_bias", "true or false"]),
    ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, ["rope_scaling.rope_type", "longrope"]),
    ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, ["rope_scaling.type", "'su'"]),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters.factor", "missing"]),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, ["rope_parameters.factor", "0.5"]),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0}},
     ["low_freq_factor", "high_freq_factor"]),
    ("llama", {"rope_parameters": [1]}, ["rope_parameters", "an object"]),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
    ("mistral", {"sliding_window": 0}, ["sliding_window"]),
    ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling", "sliding"]),
    ("ministral", {"layer_types": ["full_attention"]}, ["layer_types", "a list of 2"]),
    ("ministral", {"layer_types": ["chunked_attention"] * 2}, ["layer_types", "chunked_attention"]),
    ("ministral", {"sliding_window": None}, ["layer_types", "sliding_window"]),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
     ["layer_types", "sliding_window"]),
    ("qwen3_moe", {"mlp_only_layers": ["first"]}, ["mlp_only_layers"]),
    ("qwen3_moe", {"num_experts_per_tok": 9}, ["num_experts_per_tok (9)", "num_experts (4)"]),
    ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
    ("gemma2", {"hidden_activation": "relu6"}, ["hidden_activation", "relu6"]),
    ("gemma2", {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar"]),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0"]),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, ["rope_parameters", "full_attention"]),
    ("gemma3_text",
     {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     ["rope_parameters.sliding_attention.rope_type", "linear"]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"]),
    ("gpt2", {"add_cross_attention": True}, ["add_cross_attention"]),
    ("gpt2", {"n_head": 5}, ["n_embd", "n_head (5)"]),
    ("gpt_neox", {"num_attention_heads": 5}, ["hidden_size", "num_attention_heads (5)"]),
    ("gpt_neox", {"rope_parameters": None, "partial_rotary_factor": None, "rotary_pct": 0.4}, ["head_dim", "(3)"]),
    ("mpt", {"expansion_ratio": 3}, ["expansion_ratio", "3"]),
    ("mpt", {"attn_config": {"alibi": False}}, ["attn_config.alibi", "False"]),
    ("mpt", {"attn_config": {"clip_qkv": 8.0}}, ["attn_config.clip_qkv", "8.0"]),
    ("mpt", {"norm_type": "rmsnorm"}, ["norm_type", "rmsnorm"]),
    ("deepseek_v2", {"attention_bias": True}, ["attention_bias"]),
    ("deepseek_v2", {"norm_topk_prob": True}, ["norm_topk_prob"]),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, ["topk_method", "noaux_tc"]),
    ("deepseek_v2", {"qk_rope_head_dim": 5}, ["qk_rope_head_dim (5)", "even"]),
    ("deepseek_v2", {"num_key_value_heads": 2}, ["num_key_value_heads", "num_attention_heads (4)"]),
    ("deepseek_v3", {"scoring_func": "softmax"}, ["scoring_func", "softmax"]),
    ("deepseek_v3", {"rope_interleave": False}, ["rope_interleave"]),
    ("deepseek_v3", {"n_group": 3}, ["n_group (3)", "n_routed_experts (4)"]),
    ("deepseek_v3", {"moe_layer_freq": 2}, ["moe_layer_freq"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED)
def test_what_is_not_computed_is_refused_by_key(name, changes, words):
    refused(settings_of(name, **changes), *words)


ODD = [
    None, True, False, 0, 1, -1, 3, 7, 10**9, 2**70, 0.0, 0.5, -2.5, 1e308, float("nan"), float("inf"), "", "x", [],
    [1], ["full_attention"] * 2, [None, None], {}, {"a": 1}, {"rope_type": 5}, {"rope_type": "yarn"},
    {"rope_type": "yarn", "factor": "x"}, {"rope_type": "linear", "factor": None}, {"full_attention": 5},
    {"rope_type": "linear", "factor": float("inf")}, {"rope_type": "dynamic", "factor": 1e300},
    {"full_attention": {"rope_type": "yarn"}},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
]  # fmt: skip
OPTIONAL = [
    "layer_types", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers",
    "sliding_window_pattern", "attn_config", "partial_rotary_factor", "gristmill", "original_max_position_embeddings",
    "text_config", "mlp_only_layers", "decoder_sparse_step", "aux_loss_alpha",
]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "gristmill"])
def test_odd_values_are_computed_or_refused_in_one_line(name):
    """Never another error, and never a table as long as a number in the file says."""
    config = ModelConfig(**BASE, positions="alibi")
    values = write_config(OWN, config) if name == "gristmill" else settings_of(name)
    draw = random.Random(name)
    keys = [*values, *OPTIONAL]
    messages = []
    for _ in range(120):
        changes = {draw.choice(keys): draw.choice(ODD) for _ in range(draw.choice((1, 1, 2)))}
        try:
            read_config(values | changes, PATH)
        except GristmillError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)


def test_other_model_types_are_refused_by_name():
    refused({"model_type": "mamba"}, "model_type 'mamba'", "llama", "deepseek_v3")
    refused({"model_type": None}, "model_type None")
    refused({"model_type": ["llama"]}, "model_type ['llama']")
    refused({"model_type": "gemma3", "text_config": settings_of("gemma3_text")}, "'gemma3'", "text_config")


def test_our_own_key_may_not_change_what_is_computed():
    refused(settings_of("llama", gristmill={"rope_theta": 5.0}), "gristmill says rope_theta = 5.0", "contradicts")
    refused(settings_of("llama", gristmill={"no_such": 5.0}), "no_such")
    refused(settings_of("llama", gristmill=[1]), "gristmill must be an object")


@pytest.mark.parametrize(
    ("published", "scaling", "longest"),
    [
        (32_768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),  # Qwen 2.5
        (40_960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),  # Qwen 3
        (163_840, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163_840),  # DeepSeek
        (200_000, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 200_000),
        (131_072, {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}, 131_072),
    ],
)
def test_yarn_reaches_as_far_as_its_factor(published, scaling, longest):
    family, config = read_config(
        settings_of("qwen2", max_position_embeddings=published, rope_scaling=scaling, rope_parameters=None), PATH
    )
    assert config.max_seq_len == longest
    assert read_config(write_config(family, config), PATH) == (family, config)


def test_a_shorter_context_than_yarn_would_reach_is_kept():
    scaling = {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 32}
    config = ModelConfig(**BASE | {"max_seq_len": 64, "rope_scaling": scaling})
    settings = write_config(FAMILIES[0], config)
    assert settings["max_position_embeddings"] == 64
    assert read_config(settings, PATH)[1] == config
