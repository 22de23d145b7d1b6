"""`gristmill export`: models for other tools, and variants that have no home there."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from gristmill.errors import GristmillError
from gristmill.quantize.int8 import quantize_rows
from gristmill.weights import exporting
from gristmill.weights.compressed import save_int8
from gristmill.weights.exporting import export_model
from gristmill.weights.hf import save_model
from gristmill.weights.layout import block_matrices, split_tensors
from gristmill.weights.load import load_model

IDS = torch.arange(12)[None]


def test_a_model_is_saved_again_for_transformers(random_model, tokenizer_dir, tmp_path):
    model = random_model(qk_norm="head")
    save_model(model, tmp_path / "m", tokenizer_dir, torch.bfloat16)
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    figures = export_model(tmp_path / "m", tmp_path / "new" / "out")
    written = (tmp_path / "new" / "out" / "model.safetensors").stat().st_size
    assert figures == {
        "format": "hf",
        "family": "qwen3",
        "dtype": "bfloat16",
        "parameters": model.config.num_parameters,
        "bytes": written,
    }
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "new" / "out" / name).read_bytes() == (tmp_path / "m" / name).read_bytes(), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    export_model(tmp_path / "m", tmp_path / "wide", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert theirs.dtype == torch.float32


def test_int8_weights_are_multiplied_out(random_model, tokenizer_dir, tmp_path):
    model = random_model()
    matrices = block_matrices(model.config)
    quantized = {
        name.removesuffix(".weight"): quantize_rows(tensor, name)
        for name, tensor in split_tensors(model)
        if name.removesuffix(".weight") in matrices
    }
    save_int8(model, quantized, tmp_path / "int8", tokenizer_dir)
    export_model(tmp_path / "int8", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")(IDS), load_model(tmp_path / "int8")(IDS))


def test_a_variant_without_a_home_is_named(random_model, tokenizer_dir, tmp_path):
    save_model(random_model(positions="alibi", learned_sinks=True), tmp_path / "m", tokenizer_dir)
    with pytest.raises(GristmillError) as caught:
        export_model(tmp_path / "m", tmp_path / "out")
    for word in ("transformers", "positions = 'alibi'", "learned_sinks = True"):
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_gguf_file(random_model, tokenizer_dir, tmp_path):
    pytest.importorskip("gguf")
    from gristmill.weights.gguf import load_gguf

    save_model(random_model(), tmp_path / "m", tokenizer_dir)
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # as GPT-2's
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": cut, "decoder": cut}))
    figures = export_model(tmp_path / "m", tmp_path / "m.gguf", to="gguf", dtype="f32")
    assert (figures["format"], figures["dtype"]) == ("gguf", "f32")
    with torch.no_grad():
        assert torch.equal(load_gguf(tmp_path / "m.gguf")(IDS), random_model()(IDS))


def test_what_cannot_be_exported_is_named(random_model, tokenizer_dir, tmp_path):
    save_model(random_model(), tmp_path / "m", tokenizer_dir)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for out, options, words in (
        ("out", {"to": "onnx"}, ["hf or gguf", "'onnx'"]),
        ("out", {"dtype": "q8_0"}, ["'q8_0'", "bfloat16"]),
        ("out", {"to": "gguf", "dtype": "int8"}, ["'int8'", "q8_0"]),
        ("full", {}, ["full exists"]),
        ("m", {}, ["m exists"]),
        ("empty", {"to": "gguf"}, ["empty is a directory"]),
    ):
        with pytest.raises(GristmillError) as caught:
            export_model(tmp_path / "m", tmp_path / out, **options)
        for word in words:
            assert word in str(caught.value)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    export_model(tmp_path / "m", tmp_path / "empty")
    assert load_model(tmp_path / "empty").config == random_model().config


@pytest.fixture
def byte_level(random_model, tokenizer_dir, tmp_path):
    """A model directory whose tokenizer cuts as GPT-2's, which GGUF files can say."""
    save_model(random_model(), tmp_path / "m", tokenizer_dir)
    path = tmp_path / "m" / "tokenizer.json"
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": cut, "decoder": cut}))
    return tmp_path / "m"


@pytest.mark.parametrize(("long", "short"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")])
def test_both_names_of_a_type_are_taken(byte_level, tmp_path, long, short):
    pytest.importorskip("gguf")
    for name in (long, short):
        assert export_model(byte_level, tmp_path / f"hf-{name}", dtype=name)["dtype"] == long
        assert export_model(byte_level, tmp_path / f"{name}.gguf", "gguf", name)["dtype"] == short


def test_a_gguf_file_says_name_and_licence(byte_level, tmp_path):
    pytest.importorskip("gguf")
    from gristmill.events import StageLog
    from gristmill.weights.gguf import import_gguf
    from gristmill.weights.gguf_file import GGUFFile
    from gristmill.weights.importing import import_model

    def said(model, file):
        export_model(model, tmp_path / file, "gguf", "f32")
        read = GGUFFile(tmp_path / file)
        return read.get("general.name"), read.get("general.license")

    assert said(byte_level, "first.gguf") == ("m", None)
    import_gguf(tmp_path / "first.gguf", tmp_path / "unstated", torch.float32)
    manifest = import_model(str(tmp_path / "first.gguf"), tmp_path / "artifact", StageLog.silent("import"))
    assert manifest.figures["license"] == "not stated"
    assert said(tmp_path / "artifact", "second.gguf") == ("m", None)
    path = tmp_path / "artifact" / "manifest.json"
    figures = {"figures": {"model": "Small 1B", "license": "apache-2.0"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | figures))
    assert said(tmp_path / "artifact", "third.gguf") == ("Small 1B", "apache-2.0")


def test_an_empty_directory_is_filled_where_one_stands(random_model, tokenizer_dir, tmp_path, monkeypatch):
    save_model(random_model(), tmp_path / "m", tokenizer_dir)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_model(tmp_path / "m", Path("."))
    assert load_model(Path(".")).config == random_model().config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "m"]


def test_a_failed_export_leaves_nothing_behind(random_model, tokenizer_dir, tmp_path, monkeypatch):
    save_model(random_model(), tmp_path / "m", tokenizer_dir)

    def full_disk(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(exporting.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_model(tmp_path / "m", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
