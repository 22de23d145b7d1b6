"""Presets and initialisation in a recipe, and the parameter groups that follow."""

import pytest
import torch
import yaml

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.recipe import dump_recipe, load_recipe
from gristmill.train.config import PretrainConfig, TrainingConfig
from gristmill.train.data import TokenBatch
from gristmill.train.groups import parameter_groups
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss
from gristmill.train.pretrain import new_model

TRAINING = {"steps": 1, "batch_size": 1, "learning_rate": 0.01}
TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "max_seq_len": 32}  # fmt: skip


def recipe(tmp_path, model, overrides=(), **base):
    path = tmp_path / "recipe.yaml"
    base = {"model": model, "sequence_length": 32, "training": TRAINING} | base
    sections = {"name": "small", "collected": {}, "corpus": {}, "tokenizer": {"vocab_size": 512}, "tokens": {}}
    path.write_text(yaml.safe_dump(sections | {"base": base}, sort_keys=False))
    return load_recipe(path, overrides)


def pretraining(**changes):
    return PretrainConfig(**{"model": TINY, "sequence_length": 32, "training": TrainingConfig(**TRAINING)} | changes)


def test_a_preset_gives_every_field_but_the_vocabulary(tmp_path):
    found = recipe(tmp_path, {"preset": "gemma-2-2b"}).base.model
    expected = preset("gemma-2-2b").model_dump()
    del expected["vocab_size"]
    assert found.model_dump() == expected


def test_other_keys_change_the_preset_also_inside_objects(tmp_path):
    model = {"preset": "deepseek-v2-lite", "num_layers": 3, "experts": {"top_k": 4}, "rope_scaling": None}
    found = recipe(tmp_path, model).base.model
    expected = preset("deepseek-v2-lite")
    assert found.num_layers == 3
    assert found.experts == expected.experts.model_copy(update={"top_k": 4})
    assert found.rope_scaling is None
    assert found.latent == expected.latent


def test_the_resolved_recipe_spells_the_shape_out_and_means_the_same(tmp_path):
    found = recipe(tmp_path, {"preset": "gristmill-5m", "num_layers": 2})
    text = dump_recipe(found)
    written = yaml.safe_load(text)["base"]["model"]
    assert "preset" not in written
    assert written["hidden_size"] == 128
    assert written["num_layers"] == 2
    (tmp_path / "resolved.yaml").write_text(text)
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again == found
    spelled = {key: value for key, value in written.items() if value is not None}
    assert recipe(tmp_path, spelled) == found  # so a preset makes no other artifact than its fields do


@pytest.mark.parametrize(
    ("model", "base", "overrides", "said"),
    [
        ({"preset": "gristmill-6m"}, {}, [], r"recipe.yaml:\d+: base.model: preset: no model shape is called "
                                            r"'gristmill-6m'; did you mean 'gristmill-60m'"),
        ({"preset": "gristmill-5m", "num_layer": 2}, {}, [], "base.model.num_layer: unknown key; did you mean "
                                                             "'num_layers'"),
        ({"presets": "gristmill-5m"}, {}, [], "base.model.presets: unknown key; did you mean 'preset'"),
        ({"preset": "gristmill-5m", "vocab_size": 7}, {}, [], "base.model.vocab_size: unknown key"),
        ({"preset": "mixtral-8x7b", "experts": {"topk": 2}}, {}, [], "experts.topk: unknown key; did you mean 'top_k'"),
        ({"preset": 5}, {}, [], "base.model: preset: expected the name of a shape, not 5"),
        ({"preset": "gristmill-5m", "num_kv_heads": 3}, {}, [], r"num_kv_heads \(3\) is more than num_heads \(2\)"),
        ({"preset": "gristmill-5m", "causal": False}, {}, [], "model.causal is false, but objective is causal"),
        (TINY, {"init": "mup"}, [], "init: mup and mup_base_width belong together"),
        (TINY, {"mup_base_width": 8}, [], "init: mup and mup_base_width belong together"),
        (TINY, {"init": "gtp2"}, [], "base.init: input should be 'gpt2', 'depth_scaled' or 'mup', not 'gtp2'"),
        (TINY, {}, ["base.model.preset=llama-3-9b"], "did you mean 'llama-3-8b'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, model, base, overrides, said):
    with pytest.raises(GristmillError, match=said):
        recipe(tmp_path, model, overrides, **base)


def test_a_preset_may_come_from_the_command_line(tmp_path):
    model = {"preset": "gristmill-5m"}
    assert recipe(tmp_path, model, ["base.model.preset=gristmill-15m"]).base.model.hidden_size == 256
    assert recipe(tmp_path, model, ["base.model.num_layers=3"]).base.model.num_layers == 3


def test_the_new_model_is_drawn_by_the_recipes_scheme():
    plain = new_model(pretraining(), 50, seed=1)
    assert torch.equal(
        plain.embedding.weight, Decoder(ModelConfig(vocab_size=50, **TINY)).init_weights(1).embedding.weight
    )
    deep = new_model(pretraining(init="depth_scaled"), 50, seed=1)
    assert torch.equal(deep.blocks[0].attention.output.weight, plain.blocks[0].attention.output.weight)  # one layer
    wide = new_model(pretraining(init="mup", mup_base_width=16), 50, seed=1)
    assert wide.config.logit_scale == 0.5
    assert wide.config.attention_scale == pytest.approx(8 / 16)
    assert float(wide.blocks[0].attention.qkv.weight.detach().std()) == pytest.approx(32**-0.5, rel=0.1)


def test_groups_hold_every_parameter_once_and_decay_matrices():
    model = Decoder(ModelConfig(vocab_size=50, **TINY | {"qkv_bias": True}))
    groups = parameter_groups(model, weight_decay=0.1)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    assert all(parameter.dim() >= 2 for parameter in groups[0]["params"])
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_mup_groups_learn_slower_and_shrink_alike():
    model = Decoder(ModelConfig(vocab_size=50, **TINY))
    groups = parameter_groups(model, weight_decay=0.1, mup_base_width=8)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.embedding.weight)] == 1
    assert scale[id(model.blocks[0].attention.qkv.weight)] == 8 / 32
    for group in groups:
        decayed = group["params"][0].dim() >= 2
        assert group["lr_scale"] * group["weight_decay"] == pytest.approx(0.1 if decayed else 0.0)


def test_the_loop_moves_each_group_at_its_own_rate(tmp_path):
    """Adam's first step is the learning rate itself, up or down, wherever there is a gradient."""
    model = Decoder(ModelConfig(vocab_size=50, **TINY)).init_weights(1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], torch.ones(2, 8), None)
    training = TrainingConfig(**TRAINING | {"weight_decay": 0, "device": "cpu", "precision": "fp32"})
    (tmp_path / "scratch").mkdir()
    run = StageRun(tmp_path, tmp_path / "scratch", {}, 1, StageLog(EventLog(None), "base"))
    result = train(model, lambda step, shard: batch, next_token_loss, training, run, mup_base_width=8)
    assert result.history[-1]["learning_rate"] == pytest.approx(0.01)
    for name, scale in (("embedding", 1.0), ("blocks.0.attention_norm", 1.0), ("blocks.0.attention.qkv", 8 / 32)):
        moved = model.get_submodule(name).weight.detach() - before[f"{name}.weight"]
        assert float(moved.abs().max()) == pytest.approx(0.01 * scale, rel=1e-3)
