"""Damaged and foreign model directories: every error is one line that names what is wrong."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.weights.hf import save_model
from gristmill.weights.load import load_model
from gristmill.weights.locate import locate_model


@pytest.fixture
def saved(random_model, tokenizer_dir, tmp_path) -> Path:
    directory = tmp_path / "model"
    save_model(random_model(), directory, tokenizer_dir)
    return directory


def change_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def refused(directory: Path, *words: str) -> None:
    with pytest.raises(GristmillError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


Q = "model.layers.1.self_attn.q_proj.weight"


def test_a_missing_tensor_is_named(saved):
    change_tensors(saved, lambda tensors: tensors.pop(Q))
    refused(saved, Q, "missing")


def test_an_extra_tensor_is_named(saved):
    change_tensors(saved, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}))
    refused(saved, "q_proj.bias")


def test_a_tensor_of_another_shape_is_named(saved):
    change_tensors(saved, lambda tensors: tensors.update({Q: torch.zeros(30, 32)}))
    refused(saved, Q, "[30, 32]", "[32, 32]")


def test_whole_numbers_are_not_weights(saved):
    change_tensors(saved, lambda tensors: tensors.update({Q: torch.zeros(32, 32, dtype=torch.int8)}))
    refused(saved, Q, "int8")


def test_harmless_extras_are_taken(saved, random_model):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    change_tensors(saved, add)
    assert load_model(saved).config.tie_embeddings
    change_tensors(saved, lambda tensors: tensors["lm_head.weight"].add_(1))
    refused(saved, "lm_head.weight", "tie_word_embeddings")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_file_is_named(saved, keep):
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[:keep])
    refused(saved, "model.safetensors", "not a whole safetensors file")


def test_garbage_is_named(saved):
    (saved / "model.safetensors").write_bytes(b"\xff" * 4096)
    refused(saved, "model.safetensors", "not a whole safetensors file")


class Bomb:
    """What a pickle can do: run code when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was unpickled",))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "model.pkl", "model.pickle"]
)
@pytest.mark.parametrize("named_as_safetensors", [False, True])
def test_a_pickle_is_refused_by_name_and_never_read(name, named_as_safetensors, saved):
    (saved / "model.safetensors").unlink()
    if named_as_safetensors:
        (saved / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
        refused(saved, "model.safetensors", "not a whole safetensors file")
        return
    (saved / name).write_bytes(pickle.dumps(Bomb()))
    refused(saved, name, "pickle")


def test_an_index_that_names_pickles_is_refused(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    refused(saved, "pytorch_model.bin", "must be a .safetensors file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value, saved):
    change_tensors(saved, lambda tensors: tensors[Q].__setitem__((3, 5), value))
    refused(saved, Q, "NaN or infinity")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2**40, 2**20], [0, 2**62]),
        ([2**62, 4], [0, 2**64 - 1]),
        ([2**40], [0, 2**42]),
        ([10], [0, 4]),
        ([1], [10**30, 10**30 + 4]),
    ],
)
def test_a_header_that_claims_more_than_the_file_holds_is_refused(shape, offsets, saved):
    header = json.dumps({Q: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4096))
    refused(saved, "model.safetensors", "not a whole safetensors file")


def test_a_header_longer_than_the_file_is_refused(saved):
    (saved / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}" + bytes(64))
    refused(saved, "model.safetensors", "not a whole safetensors file")


def test_a_tensor_in_two_shards_is_named(saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    save_file(tensors, saved / "one.safetensors")
    save_file({Q: tensors[Q] + 1}, saved / "two.safetensors")
    homes = dict.fromkeys(tensors, "one.safetensors") | {"other": "two.safetensors"}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    refused(saved, Q, "one.safetensors", "two.safetensors")


def test_absent_weights_say_what_was_looked_for(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, ["../model.safetensors", "beside the index"]),
        ({"weight_map": {"a": "/etc/model.safetensors"}}, ["/etc/model.safetensors", "beside the index"]),
        ({"weight_map": {"a": 5}}, ["5", "beside the index"]),
        ({"weight_map": {}}, ["no shards"]),
        ({"weight_map": {"a": "part-1.safetensors"}}, ["part-1.safetensors", "missing"]),
        ({"weights": {}}, ["not an index"]),
        ([], ["not an index"]),
    ],
)
def test_a_wrong_index_is_named(saved, index, words):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(saved, "model.safetensors.index.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "rwkv"}, ["model_type", "rwkv"]),
        ({"model_type": None}, ["model_type"]),
        ({"hidden_act": "mish"}, ["hidden_act", "mish"]),
        ({"attention_bias": True}, ["q_proj.bias", "missing"]),
        ({"mlp_bias": True}, ["gate_proj.bias", "missing"]),
        ({"tie_word_embeddings": False}, ["lm_head.weight", "missing"]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, ["rope_scaling.rope_type", "longrope"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
        ({"num_hidden_layers": "two"}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "at most 10000"]),
        ({"num_hidden_layers": 500}, ["num_hidden_layers", "20 tensors"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quant_method", "gptq"]),
        ({"intermediate_size": 45}, ["gate_proj", "[45, 32]"]),
    ],
)
def test_what_the_config_says_is_checked_by_key(saved, changes, words):
    change_config(saved, **changes)
    refused(saved, *words)


def test_a_broken_config_is_named(saved):
    (saved / "config.json").write_text("{")
    refused(saved, "config.json", "not JSON")
    (saved / "config.json").write_text("[]")
    refused(saved, "config.json", "object")


def test_a_loaded_model_does_not_hang_on_the_file(saved):
    model = load_model(saved)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    size = (saved / "model.safetensors").stat().st_size
    with open(saved / "model.safetensors", "r+b") as file:  # the same file, not a new one in its place
        file.write(b"\x01" * size)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_loaded_model_can_be_trained(saved):
    model = load_model(saved)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_locating_a_model_and_a_run(saved, tmp_path):
    assert locate_model(saved) == saved
    run = tmp_path / "run"
    for stage in ("base", "sft", "dpo", "int8"):
        directory = run / "artifacts" / stage
        directory.mkdir(parents=True)
        (directory / "config.json").write_text((saved / "config.json").read_text())
        (directory / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
        assert locate_model(run).name == ("dpo" if stage == "int8" else stage)
    assert load_model(run).config == load_model(saved).config


def test_locating_nothing_says_what_was_looked_for(tmp_path):
    (tmp_path / "run" / "artifacts").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"")
    for path, words in {
        "run": ["artifacts/dpo", "artifacts/sft", "artifacts/base"],
        "empty": ["config.json", "artifacts/"],
        "nowhere": ["does not exist"],
        "a.gguf": ["is a file"],
    }.items():
        with pytest.raises(GristmillError) as caught:
            locate_model(tmp_path / path)
        for word in (path, *words):
            assert word in str(caught.value)
