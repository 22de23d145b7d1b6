"""What a family reads out of `config.json`, what it refuses, and which family a model is saved as."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from family_shapes import BASE, EXPERTS, NAMES, SHAPES, config_of, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.presets import preset, preset_names
from gristmill.weights.families import family_of, home_of, read_config, write_config
from gristmill.weights.families.own import OWN
from gristmill.weights.hf import save_model
from gristmill.weights.load import load_model

PATH = Path("config.json")


@pytest.mark.parametrize("name", NAMES)
def test_each_family_is_the_home_of_its_shape(name):
    config = config_of(name)
    family = family_of(config)
    assert family.model_type == name
    values = json.loads(json.dumps(write_config(family, config)))
    assert "gristmill" not in values
    assert read_config(values, PATH) == (family, config)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_the_same_from_the_files(name, random_model, tokenizer_dir, tmp_path):
    model = random_model(**SHAPES[name])
    save_model(model, tmp_path, tokenizer_dir)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.model_type == name
    assert type(theirs).__name__ == home_of(model.config).architecture
    ids = torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs.eval()(ids).logits - model(ids)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", preset_names())
def test_published_shapes_have_the_home_they_come_from(name):
    home = family_of(preset(name)).model_type
    published = {"smollm2-135m": "llama", "gemma-3-270m": "gemma3_text", "mixtral-8x7b": "mixtral"}
    published |= {"qwen3-30b-a3b": "qwen3_moe", "deepseek-v2-lite": "deepseek_v2", "deepseek-v3": "deepseek_v3"}
    prefixes = {"gpt": "gpt2", "llama": "llama", "mistral": "mistral", "gemma-2": "gemma2", "qwen3": "qwen3"}
    prefixes |= {"gristmill": "qwen3"}
    expected = published.get(name) or next(family for start, family in prefixes.items() if name.startswith(start))
    assert home == expected
    assert "gristmill" not in write_config(family_of(preset(name)), preset(name))


SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0, "truncate": False},
    "llama3": {"factor": 4.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_both_forms_of_rotary_parameters_mean_the_same(kind):
    """transformers 4: `rope_theta` and `rope_scaling` (with `type`, later `rope_type`); 5: `rope_parameters`."""
    bare = settings_of("llama")
    for key in ("rope_theta", "rope_parameters"):
        del bare[key]
    scaling = SCALINGS[kind]
    forms = [
        {"rope_theta": 77.0, "rope_scaling": {"type": kind, **scaling}},
        {"rope_theta": 77.0, "rope_scaling": {"rope_type": kind, **scaling}},
        {"rope_parameters": {"rope_type": kind, "rope_theta": 77.0, **scaling}},
        {"rope_theta": 77.0, "rope_parameters": {"rope_type": kind, **scaling}},
    ]
    configs = [read_config(bare | form, PATH)[1] for form in forms]
    assert configs[0].rope_theta == 77.0
    assert configs[0].rope_scaling.kind == kind
    assert configs[0].rope_scaling.factor == 4.0
    if "original_max_position_embeddings" in scaling:
        assert configs[0].rope_scaling.original_max_seq_len == 16
    assert all(config == configs[0] for config in configs)


def test_dynamic_scaling_reads_further_than_the_trained_length():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config = read_config(settings_of("llama", rope_parameters=rope), PATH)[1]
    assert (config.rope_scaling.original_max_seq_len, config.max_seq_len) == (64, 256)
    values = write_config(family_of(config), config)
    assert values["max_position_embeddings"] == 64
    shorter = config.model_copy(update={"max_seq_len": 100})
    values = write_config(family_of(shorter), shorter)
    assert (values["max_position_embeddings"], values["gristmill"]) == (64, {"max_seq_len": 100})
    assert read_config(values, PATH)[1] == shorter


def test_gemma3_reads_the_form_of_transformers_4():
    values = settings_of("gemma3_text")
    for key in ("rope_parameters", "layer_types", "rope_scaling"):
        values.pop(key, None)
    values |= {"rope_theta": 5e5, "rope_local_base_freq": 123.0, "sliding_window_pattern": 2, "num_hidden_layers": 5}
    config = read_config(values | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, PATH)[1]
    assert (config.rope_theta, config.sliding_rope_theta) == (5e5, 123.0)
    assert config.layer_kinds == ("sliding", "full", "sliding", "full", "sliding")
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 8.0)
    theirs = transformers.Gemma3TextConfig(**{key: value for key, value in values.items() if key != "architectures"})
    assert [kind.removesuffix("_attention") for kind in theirs.layer_types] == list(config.layer_kinds)


def test_windows_that_are_switched_off_are_none():
    values = settings_of("qwen2", use_sliding_window=False, sliding_window=5, max_window_layers=0, layer_types=None)
    assert read_config(values, PATH)[1].sliding_window is None
    values = settings_of("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1, layer_types=None)
    assert read_config(values, PATH)[1].layer_kinds == ("full", "sliding")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "alibi"}, ["llama", "positions = 'alibi'"]),
        ({"positions": "alibi", "norm_position": "post"}, ["positions = 'alibi'", "norm_position = 'post'"]),
        ({"learned_sinks": True}, ["learned_sinks = True"]),
        ({"sink_tokens": 2, "sliding_window": 4, "attention_pattern": ("sliding",)}, ["mistral", "sink_tokens = 2"]),
        ({"causal": False}, ["causal = False"]),
        ({"hidden_size": 36, "num_heads": 8, "activation": "gelu", "qkv_bias": True, "output_bias": True},
         ["llama", "hidden_size (36) is not a multiple of num_heads (8)"]),
        (SHAPES["mixtral"] | {"experts": EXPERTS | {"routed_scale": 2.0}}, ["mixtral", "experts.routed_scale = 2.0"]),
        (SHAPES["deepseek_v3"] | {"learned_sinks": True}, ["deepseek_v3", "learned_sinks = True"]),
    ],
)  # fmt: skip
def test_a_variant_without_a_home_says_so_by_name(changes, words):
    config = ModelConfig(**BASE | changes)
    with pytest.raises(GristmillError) as caught:
        family_of(config)
    for word in ("no family of transformers", *words):
        assert word in str(caught.value), str(caught.value)
    assert home_of(config) is OWN


def test_a_shape_that_no_family_can_even_say_is_still_saved():
    """Odd heads cannot rotate, and GPT-2 and MPT know no heads that do not divide the width."""
    config = ModelConfig(**BASE | {"positions": "none", "head_dim": 7, "num_heads": 6})
    with pytest.raises(GristmillError, match="no family of transformers"):
        family_of(config)
    values = write_config(home_of(config), config)
    assert read_config(values, PATH) == (OWN, config)


@pytest.mark.parametrize("scale", [0.3, 1 / 3, 72**-0.5, 0.1234567890123])
def test_scales_that_are_written_as_roots_come_back_exactly(scale):
    config = config_of("gemma2", attention_scale=scale)
    family = family_of(config)
    assert family.model_type == "gemma2"
    assert read_config(json.loads(json.dumps(write_config(family, config))), PATH)[1] == config


def test_heads_that_do_not_divide_the_width_move_to_a_family_that_takes_them():
    config = ModelConfig(**BASE | {"hidden_size": 36, "num_heads": 8, "num_kv_heads": 2})
    with pytest.raises(Exception, match="not a multiple"):
        transformers.LlamaConfig(hidden_size=36, num_attention_heads=8, head_dim=8)
    assert family_of(config).model_type == "mistral"


def test_fields_of_training_alone_come_back(random_model, tokenizer_dir, tmp_path):
    experts = EXPERTS | {"z_loss_weight": 0.25, "bias_rate": 0.5, "capacity_factor": 1.5, "balance": "none"}
    model = random_model(experts=experts | {"aux_loss_weight": 0.125}, intermediate_size=44)
    save_model(model, tmp_path, tokenizer_dir)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "mixtral"
    assert load_model(tmp_path).config == model.config
    assert values["gristmill"]["experts"]["z_loss_weight"] == 0.25
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_without_a_home_is_saved_in_our_own_format(random_model, tokenizer_dir, tmp_path):
    model = random_model(positions="alibi", learned_sinks=True)
    save_model(model, tmp_path, tokenizer_dir)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["positions"], values["learned_sinks"]) == ("gristmill", "alibi", True)
    assert "blocks.0.attention.sinks" in load_file(tmp_path / "model.safetensors")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids), model(ids))
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_kv_heads": 3}))
    with pytest.raises(GristmillError, match=r"config\.json.*num_kv_heads \(3\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"hidden_size": "x"}))
    with pytest.raises(GristmillError, match=r"config\.json: hidden_size"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "deepseek_v3"])
def test_a_checkpoint_of_the_bare_model_is_read(name, random_model, tokenizer_dir, tmp_path):
    """Without the prefix, as GPT-2 itself is published, and with the buffers that older writers add."""
    model = random_model(**SHAPES[name])
    family = family_of(model.config)
    save_model(model, tmp_path, tokenizer_dir)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix(family.prefix): tensor for key, tensor in tensors.items()}
    assert set(bare).isdisjoint(tensors)
    extra = {
        "gpt2": {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)},
        "gpt_neox": {"layers.0.attention.bias": torch.ones(1), "layers.1.attention.rotary_emb.inv_freq": torch.ones(4)},
        "llama": {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        "deepseek_v3": {"layers.2.self_attn.o_proj.weight": torch.ones(3)},  # predicts a further token
    }[name]
    save_file(bare | extra, tmp_path / "model.safetensors")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids), model(ids))
    save_file(bare | {"h.0.attn.c_attn.extra": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(GristmillError, match=r"c_attn\.extra has no place"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_misshapen_tensors_are_named_in_every_family(name, random_model, tokenizer_dir, tmp_path):
    model = random_model(**SHAPES[name])
    save_model(model, tmp_path, tokenizer_dir)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in list(tensors)[:: max(1, len(tensors) // 3)]:
        rest = {other: tensor for other, tensor in tensors.items() if other != key}
        save_file(rest, tmp_path / "model.safetensors")
        with pytest.raises(GristmillError, match=rf"{key} is missing"):
            load_model(tmp_path)
        save_file(rest | {key: torch.ones(1, 2, 3)}, tmp_path / "model.safetensors")
        with pytest.raises(GristmillError, match=rf"{key} has shape \[1, 2, 3\]"):
            load_model(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_comes_back_from_the_keys_it_is_written_as(data):
    """Whatever the home: reading what was written gives the configuration itself."""
    fields = dict(BASE, num_layers=data.draw(st.integers(1, 4)))
    fields |= data.draw(st.sampled_from(list(SHAPES.values())))
    choices = {
        "rope_theta": st.sampled_from([1e4, 123.0]),
        "norm_eps": st.sampled_from([1e-5, 1e-6]),
        "activation": st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"]),
        "tie_embeddings": st.booleans(),
        "qkv_bias": st.booleans(),
        "output_bias": st.booleans(),
        "qk_norm": st.sampled_from(["none", "head", "projection"]),
        "attention_scale": st.sampled_from([None, 0.3]),
        "logit_softcap": st.sampled_from([None, 30.0]),
        "attention_softcap": st.sampled_from([None, 50.0]),
        "rope_fraction": st.sampled_from([1.0, 0.5]),
        "max_seq_len": st.integers(8, 100),
    }
    for field in data.draw(st.sets(st.sampled_from(sorted(choices)), max_size=4)):
        fields[field] = data.draw(choices[field])
    if data.draw(st.booleans()):
        kind = data.draw(st.sampled_from(["linear", "dynamic", "yarn", "llama3"]))
        fields["rope_scaling"] = {"kind": kind, "factor": 3.0, "original_max_seq_len": data.draw(st.integers(4, 40))}
    try:
        config = ModelConfig(**fields)
    except ValueError:
        return
    values = json.loads(json.dumps(write_config(home_of(config), config)))
    assert read_config(values, PATH) == (home_of(config), config)
