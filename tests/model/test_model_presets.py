"""Presets: parameter counts against published figures and against transformers' models, built without memory."""

import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset, preset_names
from gristmill.weights.families import home_of

PUBLISHED = {  # exact counts of the published weights
    "gpt2-124m": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "smollm2-135m": 134_515_008,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "deepseek-v2-lite": 15_706_484_224,
}
SIZES = {"m": 1e6, "b": 1e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    assert preset(name).num_parameters == PUBLISHED[name]


def test_active_counts_of_mixtures_of_experts():
    assert preset("mixtral-8x7b").num_active_parameters == 12_879_925_248
    # Published as 671B and 37B; the 14,848 numbers that steer its router are no parameters here.
    deepseek = preset("deepseek-v3")
    assert deepseek.num_parameters == 671_026_419_200 - 58 * 256
    assert deepseek.num_active_parameters == 37_552_297_472 - 58 * 256
    assert round(preset("qwen3-30b-a3b").num_active_parameters / 1e9, 1) == 3.4  # 3.3B with one embedding counted


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("gristmill-")])
def test_our_own_shapes_have_the_size_they_are_named_by(name):
    size = name.removeprefix("gristmill-")
    shape = preset(name)
    assert shape.num_parameters == pytest.approx(float(size[:-1]) * SIZES[size[-1]], rel=0.03)
    assert 32 <= shape.hidden_size / shape.num_layers <= 128
    assert shape.num_heads * shape.head_dim == shape.hidden_size
    assert shape.tie_embeddings == (shape.num_parameters < 2e9)


def test_our_own_shapes_grow():
    counts = [preset(name).num_parameters for name in preset_names() if name.startswith("gristmill-")]
    assert counts == sorted(counts)


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(GristmillError, match="'lama-3-8b'; did you mean 'llama-3-8b'"):
        preset("lama-3-8b")
    with pytest.raises(GristmillError, match=r"known are gristmill-5m, .*deepseek-v3"):
        preset("x")


def llama(shape, **settings):
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tie_embeddings,
    } | settings


def deepseek(shape, **settings):
    latent, experts = shape.latent, shape.experts
    return {
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.nope_head_dim,
        "qk_rope_head_dim": latent.rope_head_dim,
        "v_head_dim": latent.value_head_dim,
        "n_routed_experts": experts.num_experts,
        "n_shared_experts": experts.shared_intermediate_size // experts.intermediate_size,
        "moe_intermediate_size": experts.intermediate_size,
        "num_experts_per_tok": experts.top_k,
        "first_k_dense_replace": len(experts.dense_layers),
    } | {key: value for key, value in llama(shape).items() if key != "head_dim"} | settings  # fmt: skip


def theirs(name):
    """transformers' (config class, model class, settings) for a preset."""
    shape = preset(name)
    if name.startswith("gpt"):
        sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
        return "GPT2Config", "GPT2LMHeadModel", sizes | {"n_positions": shape.max_seq_len}
    if name.startswith("mixtral"):
        return "MixtralConfig", "MixtralForCausalLM", llama(shape, num_local_experts=shape.experts.num_experts)
    if name == "qwen3-30b-a3b":
        experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        return "Qwen3MoeConfig", "Qwen3MoeForCausalLM", llama(shape, **experts)
    if name.startswith(("qwen3", "gristmill")):
        return "Qwen3Config", "Qwen3ForCausalLM", llama(shape)
    if name.startswith("gemma-2"):
        return "Gemma2Config", "Gemma2ForCausalLM", llama(shape)
    if name.startswith("gemma-3"):
        return "Gemma3TextConfig", "Gemma3ForCausalLM", llama(shape)
    if name == "deepseek-v2-lite":
        return "DeepseekV2Config", "DeepseekV2ForCausalLM", deepseek(shape)
    if name == "deepseek-v3":
        return "DeepseekV3Config", "DeepseekV3ForCausalLM", deepseek(shape)
    if name.startswith("mistral"):
        return "MistralConfig", "MistralForCausalLM", llama(shape)
    return "LlamaConfig", "LlamaForCausalLM", llama(shape)


@pytest.mark.parametrize("name", preset_names())
def test_transformers_and_the_decoder_have_as_many_parameters(name):
    transformers = pytest.importorskip("transformers")
    config_class, model_class, settings = theirs(name)
    with torch.device("meta"):
        reference = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
        built = Decoder(preset(name))
    count = preset(name).num_parameters
    assert sum(parameter.numel() for parameter in built.parameters()) == count
    assert sum(parameter.numel() for parameter in reference.parameters()) == count


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_saved_as_a_model_of_transformers(name):
    assert home_of(preset(name)).architecture == theirs(name)[1]
