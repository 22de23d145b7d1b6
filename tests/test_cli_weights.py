"""`gristmill import` and `gristmill export`, there and back."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from command_line import call
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.weights.hf import save_model
from gristmill.weights.load import load_model

SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
         "intermediate_size": 64, "max_seq_len": 64}  # fmt: skip
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
                "pad_token": "<|pad|>"}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def saved(path, tokenizer_dir, **changes):
    model = Decoder(ModelConfig(**SHAPE | changes)).init_weights(1)
    save_model(model, path, tokenizer_dir)
    return model


def test_export_to_hugging_face_and_import_again(monkeypatch, capsys, tmp_path, tokenizer_dir):
    model = saved(tmp_path / "model", tokenizer_dir)
    out = tmp_path / "exported"
    code, said, err = call(monkeypatch, capsys, "export", tmp_path / "model", "--to", "hf", "--out", out)
    assert code == 0, err
    assert f"{out}: llama, float32, {model.config.num_parameters:,} parameters" in said
    code, _, err = call(monkeypatch, capsys, "import", out, "--out", tmp_path / "back", "--dtype", "bfloat16")
    assert code == 0, err
    back = dict(load_model(tmp_path / "back").named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(back[name], parameter.bfloat16().float())


def test_export_to_gguf_and_import_again(monkeypatch, capsys, tmp_path, tokenizer_dir):
    pytest.importorskip("gguf")
    model = saved(tmp_path / "model", tokenizer_dir)
    monkeypatch.chdir(tmp_path)
    code, said, err = call(monkeypatch, capsys, "export", "model", "--to", "gguf", "--dtype", "f32", "--json")
    assert code == 0, err
    file = tmp_path / "exports" / "model.gguf"
    assert json.loads(said) == {
        "path": "exports/model.gguf", "format": "gguf", "family": "gguf", "dtype": "f32",
        "parameters": model.config.num_parameters, "bytes": file.stat().st_size}  # fmt: skip
    code, _, err = call(monkeypatch, capsys, "import", file, "--out", tmp_path / "back", "--dtype", "float32")
    assert code == 0, err
    ids = torch.arange(20)[None]
    assert torch.allclose(load_model(tmp_path / "back")(ids), model(ids), atol=1e-5)


def test_a_variant_without_a_home_is_refused_by_its_fields(monkeypatch, capsys, tmp_path, tokenizer_dir):
    saved(tmp_path / "odd", tokenizer_dir, sink_tokens=2, sliding_window=8, attention_pattern=("sliding",))
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "odd", "--to", "hf", "--out", tmp_path / "out")
    assert code == 1
    assert "sink_tokens = 2" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, tokenizer_dir):
    saved(tmp_path / "model", tokenizer_dir)
    for arguments, expected in (
        (["none", "--to", "hf"], "none does not exist"),
        ([tmp_path / "model", "--to", "onnx"], "for '--to': 'onnx' is not one of 'hf', 'gguf'"),
        ([tmp_path / "model", tmp_path / "a", "--to", "hf", "--out", tmp_path / "b"], "give one of them"),
        ([tmp_path / "model", tmp_path / "model", "--to", "hf"], "exists"),
        ([tmp_path / "model"], "Missing option '--to'"),
        ([tmp_path / "model", "--to", "hf", "--dtype", "q8_0", "--out", tmp_path / "a"], "dtype 'q8_0' is not one of"),
        ([tmp_path / "model", "--to", "hf", "--out", tmp_path / "model"], "exists"),
    ):
        code, _, err = call(monkeypatch, capsys, "export", *arguments)
        assert code == 1
        assert expected in err
        assert err.count("\n") == 1


def test_the_place_to_write_may_be_an_argument(monkeypatch, capsys, tmp_path, tokenizer_dir):
    saved(tmp_path / "model", tokenizer_dir)
    code, said, err = call(monkeypatch, capsys, "export", tmp_path / "model", tmp_path / "a", "--to", "hf")
    assert code == 0, err
    assert said.startswith(f"{tmp_path / 'a'}: llama")
    assert (tmp_path / "a" / "model.safetensors").is_file()


def test_help_says_what_becomes_of_what_is_there(monkeypatch, capsys):
    for verb, said in (("export", "which must not exist yet"), ("import", "an artifact that is there is replaced")):
        assert said in " ".join(call(monkeypatch, capsys, verb, "--help")[1].split())
