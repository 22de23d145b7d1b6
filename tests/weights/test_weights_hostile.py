"""Model directories that are damaged or hostile: each is refused in one line, before memory is spent on it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.quantize.int8 import quantize_rows
from gristmill.weights import safetensors_writer
from gristmill.weights.compressed import save_int8
from gristmill.weights.encoders import load_encoder
from gristmill.weights.hf import save_model
from gristmill.weights.layout import block_matrices, split_tensors
from gristmill.weights.load import load_model
from gristmill.weights.safetensors_writer import StoredTensor, write_weights
from gristmill.weights.tensor_files import TensorFiles

DEEP = "[" * 200_000


def refused(path: Path, *words: str, read=load_model) -> None:
    with pytest.raises(GristmillError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message, message


@pytest.fixture
def directory(random_model, tokenizer_dir, tmp_path) -> Path:
    save_model(random_model(), tmp_path / "m", tokenizer_dir)
    return tmp_path / "m"


@pytest.fixture
def int8(random_model, tokenizer_dir, tmp_path) -> Path:
    model = random_model()
    matrices = block_matrices(model.config)
    quantized = {
        name.removesuffix(".weight"): quantize_rows(tensor, name)
        for name, tensor in split_tensors(model)
        if name.removesuffix(".weight") in matrices
    }
    save_int8(model, quantized, tmp_path / "int8", tokenizer_dir)
    return tmp_path / "int8"


def change(directory: Path, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("text", "word"),
    [(DEEP, "nested"), ('{"vocab_size": ' + "1" * 5000 + "}", "digits"), ("[1]", "object"), ('{"a": "\\ud8', "JSON")],
)
def test_json_that_cannot_be_read(directory, text, word):
    (directory / "config.json").write_text(text)
    refused(directory, "config.json", word)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_json_of_the_tokenizer_that_cannot_be_read(random_model, directory, name, tmp_path):
    (directory / name).write_text(DEEP)
    refused(directory, name, "nested", read=lambda path: save_model(random_model(), tmp_path / "new", path))
    assert not (tmp_path / "new").exists()


def test_an_index_that_cannot_be_read(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(DEEP)
    refused(directory, "index.json", "nested")


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rms_norm_eps": INFINITE}, ["rms_norm_eps", "finite"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps"]),
        ({"rope_theta": float("nan"), "rope_parameters": None}, ["rope_theta"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 1e308}}, ["factor"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": INFINITE}}, ["factor", "finite"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e308}}, ["factor"]),
        ({"vocab_size": 10**20}, ["vocab_size"]),
        ({"vocab_size": 2**30, "hidden_size": 2**30}, ["parameters"]),
        ({"hidden_act": ["silu"] * 1000}, ["hidden_act"]),
        ({"model_type": "x" * 5000}, ["model_type"]),
    ],
)
def test_numbers_beyond_every_size(directory, values, words):
    change(directory, **values)
    refused(directory, "config.json", *words)


@pytest.mark.parametrize(
    "values", [{"vocab_size": 10**20}, {"vocab_size": 2**30, "hidden_size": 2**30}, {"num_heads": 10**4000}]
)
def test_numbers_beyond_every_size_in_our_own_format(random_model, tokenizer_dir, tmp_path, values):
    save_model(random_model(positions="alibi"), tmp_path / "own", tokenizer_dir)
    change(tmp_path / "own", **values)
    refused(tmp_path / "own", "config.json")


def test_a_type_that_is_no_name(directory, tmp_path):
    from gristmill.weights.exporting import export_model

    change(directory, dtype=["x"])
    refused(directory, "dtype", "['x']", read=lambda path: export_model(path, tmp_path / "out"))


@pytest.fixture
def bert(tmp_path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 44}
    transformers.BertModel(transformers.BertConfig(vocab_size=40, **sizes)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_bert_is_not_built_before_its_shapes_are_checked(bert):
    for value in (10**20, 2**30):
        change(bert, vocab_size=value)
        refused(bert, "vocab_size" if value > 2**31 else "word_embeddings", read=load_encoder)


@pytest.mark.parametrize("name", ["../evil", "", "..", "a/b", "/tmp", 5, None])
def test_modules_stand_beside_their_list(bert, name, tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    module = {"type": "sentence_transformers.models.Pooling", "path": name}
    (bert / "modules.json").write_text(json.dumps([module]))
    refused(bert, "modules.json", "path", read=load_encoder)


@pytest.mark.parametrize(
    ("tensor", "make", "word"),
    [
        ("model.norm.weight", lambda old: old * float("nan"), "NaN"),
        ("model.norm.weight", lambda old: old.long(), "int64"),
        ("model.layers.0.mlp.down_proj.weight_scale", lambda old: old * float("nan"), "NaN"),
        ("model.layers.0.mlp.down_proj.weight_scale", lambda old: old.long() + 1, "int64"),
        ("model.layers.0.mlp.down_proj.weight_scale", lambda old: old * 0 + 3e38, "cannot"),
    ],
)
def test_int8_weights_are_finite_floats_too(int8, tensor, make, word):
    tensors = load_file(int8 / "model.safetensors")
    save_file(tensors | {tensor: make(tensors[tensor])}, int8 / "model.safetensors")
    refused(int8, tensor.removesuffix("_scale"), word)


def test_int8_takes_a_tied_head_beside_its_embedding(int8):
    expected = load_model(int8).state_dict()
    tensors = load_file(int8 / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, int8 / "model.safetensors")
    found = load_model(int8).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, int8 / "model.safetensors")
    refused(int8, "lm_head.weight differs")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"config_groups": [1]}, "config_groups"),
        ({"config_groups": {"g": None}}, "config_groups.g"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": [1]}}}, "config_groups.g.weights"),
        ({"quant_method": "fp8"}, "bfloat16"),
    ],
)
def test_schemes_of_a_wrong_form(int8, values, word):
    settings = json.loads((int8 / "config.json").read_text())["quantization_config"]
    change(int8, quantization_config=settings | values)
    refused(int8, "quantization_config", word)


def test_an_empty_scheme_is_none(directory):
    change(directory, quantization_config={})
    assert load_model(directory)
    change(directory, quantization_config=[1])
    refused(directory, "quantization_config", "object")


def test_values_beyond_the_range_of_the_type(random_model, tokenizer_dir, tmp_path):
    model = random_model()
    with torch.no_grad():
        model.norm.weight[0] = 1e5
    save_model(model, tmp_path / "wide", tokenizer_dir)
    refused(tmp_path / "wide", "model.norm.weight", "float16", read=lambda path: load_model(path, torch.float16))
    assert load_model(tmp_path / "wide", torch.bfloat16)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", [10**9, 100, 40])
@pytest.mark.parametrize("new", [10**9, 100, 40])
def test_a_killed_save_leaves_one_models_weights_or_none(old, new, tmp_path, monkeypatch):
    """Kills at every move and every removal; limits of 100 and 40 bytes make two and four shards."""

    def save(value: float, limit: int) -> None:
        make = [StoredTensor(f"t{i}", (8,), torch.float32, lambda: torch.full((8,), value)) for i in range(4)]
        write_weights(make, tmp_path / "m", limit)

    def found() -> set[float] | None:
        try:
            files = TensorFiles(tmp_path / "m")
        except GristmillError as error:
            return None if "holds no weights" in str(error) else {0.0}
        assert files.names() == {"t0", "t1", "t2", "t3"}
        return {float(value) for name in files.names() for value in files.read(name)}

    steps = 0
    while True:
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        (tmp_path / "m").mkdir()
        save(1.0, old)
        left = steps

        def counted(function):
            def call(*arguments, **options):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(safetensors_writer.os, "replace", counted(os.replace))
            patched.setattr(Path, "unlink", counted(Path.unlink))
            try:
                save(2.0, new)
            except Killed:
                finished = False
            else:
                finished = True
        values = found()
        if finished:
            assert values == {2.0}
            break
        assert values in ({1.0}, {2.0}) or (values is None and old == new < 10**9), (steps, values)
        steps += 1
    assert steps >= 1
    save(3.0, new)
    assert found() == {3.0}
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert len(names) == {10**9: 1, 100: 3, 40: 5}[new]
