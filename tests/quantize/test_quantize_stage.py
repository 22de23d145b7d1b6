"""Stage `int8` on a tiny model: the files, what they say, and that they are what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from document_tables import write_corpus
from gristmill.artifact import StageRun, write_json
from gristmill.errors import GristmillError
from gristmill.evaluate.bpb import bits_per_byte
from gristmill.events import StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.quantize.config import QuantizeConfig
from gristmill.quantize.stage import quantize
from gristmill.tokenizer.config import TokenizerConfig, TokensConfig
from gristmill.tokenizer.pack import pack
from gristmill.tokenizer.store import TokenStore
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts
from gristmill.weights.hf import save_model
from gristmill.weights.layout import block_matrices
from gristmill.weights.load import load_model

DOCUMENTS = {
    "books": [f"In the year {year} the river rose, and the mill stood still." for year in range(1700, 1712)],
    "code": [f"def f{number}(x):\n    return x * {number}\n" for number in range(6)],
}


def stage_run(out: Path, **inputs: Path) -> StageRun:
    (out / "_scratch").mkdir(parents=True, exist_ok=True)
    return StageRun(out=out, scratch=out / "_scratch", inputs=inputs, seed=0, log=StageLog.silent())


def write_tokens(root: Path, tokenizer: Path) -> Path:
    """The documents, each in both splits, as corpus and tokens."""
    write_corpus(root / "corpus", DOCUMENTS)
    write_json(root / "corpus" / "report.json", {"weights": dict.fromkeys(DOCUMENTS, 0.5)})
    pack(TokensConfig(), stage_run(root / "tokens", corpus=root / "corpus", tokenizer=tokenizer))
    return root / "tokens"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantize")
    (root / "tokenizer").mkdir()
    texts = [text for texts in DOCUMENTS.values() for text in texts]
    train_on_texts(TokenizerConfig(vocab_size=305), texts * 3, root / "tokenizer")
    config = ModelConfig(
        vocab_size=Tokenizer.load(root / "tokenizer").vocab_size, hidden_size=32, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, intermediate_size=50, max_seq_len=64,
    )  # fmt: skip
    model = Decoder(config).init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 if parameter.dim() == 1 else 8)
    save_model(model, root / "dpo", root / "tokenizer")
    return {"dpo": root / "dpo", "tokens": write_tokens(root, root / "tokenizer")}


SETTINGS = QuantizeConfig(window=32, tokens_per_domain=200)


def measured(directory: Path, inputs: dict[str, Path]) -> float:
    store, tokenizer = TokenStore.open(inputs["tokens"]), Tokenizer.load(inputs["dpo"])
    bits = size = 0
    for domain in store.domains:
        token_ids = np.asarray(store.tokens("validation", domain)[:200])
        part = bits_per_byte(load_model(directory), token_ids, tokenizer.token_bytes, window=32, stride=32)
        bits, size = bits + part.bits, size + part.bytes
    return bits / size


def test_files_and_figures_speak_of_the_same_model(inputs, tmp_path):
    figures = quantize(SETTINGS, stage_run(tmp_path, **inputs))
    report = json.loads((tmp_path / "quantization.json").read_text())
    assert figures["bits_per_byte_before"] == pytest.approx(measured(inputs["dpo"], inputs), abs=1e-5)
    assert figures["bits_per_byte_after"] == pytest.approx(measured(tmp_path, inputs), abs=1e-5)
    assert figures["bits_per_byte_before"] != figures["bits_per_byte_after"]
    assert figures["bits_per_byte_after"] == pytest.approx(figures["bits_per_byte_before"], rel=0.05)
    assert figures["bytes_after"] == (tmp_path / "model.safetensors").stat().st_size
    ratio = figures["bytes_before"] / figures["bytes_after"]
    assert ratio > 1
    assert figures["compression"] == pytest.approx(ratio, abs=1e-3)
    assert {key: figures[key] for key in report if key in figures} == {
        key: report[key] for key in report if key in figures
    }
    assert not any("seconds" in key for key in report)  # the file must be the same on another day

    layers = {layer["name"]: layer for layer in report["layers"]}
    assert set(layers) == set(block_matrices(load_model(tmp_path).config))
    assert all(0 < layer["relative_error"] < 0.02 for layer in layers.values())
    assert figures["max_relative_error"] == max(layer["relative_error"] for layer in layers.values())
    before, after = load_model(inputs["dpo"]), load_model(tmp_path)
    wanted = before.blocks[1].feed_forward.down.weight
    error = (after.blocks[1].feed_forward.down.weight - wanted).norm() / wanted.norm()
    assert layers["model.layers.1.mlp.down_proj"]["relative_error"] == pytest.approx(error.item(), rel=1e-3)


def test_what_is_not_quantized_is_untouched(inputs, tmp_path):
    quantize(SETTINGS, stage_run(tmp_path, **inputs))
    before, after = (dict(load_model(path).named_parameters()) for path in (inputs["dpo"], tmp_path))
    for name, weight in before.items():
        untouched = weight.dim() == 1 or name.startswith("embedding")
        assert torch.equal(after[name], weight) == untouched, name


def test_the_artifact_loads_in_transformers(inputs, tmp_path):
    quantize(SETTINGS, stage_run(tmp_path, **inputs))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert (theirs.eval()(ids).logits - load_model(tmp_path)(ids)).abs().max() <= 1e-4
    assert Tokenizer.load(tmp_path).hash == Tokenizer.load(inputs["dpo"]).hash


def test_a_cut_run_ends_in_the_same_bytes(inputs, tmp_path):
    quantize(SETTINGS, stage_run(tmp_path / "whole", **inputs))
    cut = stage_run(tmp_path / "cut", **inputs)
    (cut.out / "config.json").write_text("{}")
    (cut.out / "model.safetensors").write_bytes(b"half a file")
    quantize(SETTINGS, cut)
    for file in sorted((tmp_path / "whole").iterdir()):
        if file.is_file():
            assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


def test_auto_keeps_the_type_of_the_input(inputs, tmp_path):
    save_model(load_model(inputs["dpo"]), tmp_path / "dpo", inputs["dpo"], torch.bfloat16)
    half = quantize(SETTINGS, stage_run(tmp_path / "half", dpo=tmp_path / "dpo", tokens=inputs["tokens"]))
    full = quantize(SETTINGS, stage_run(tmp_path / "full", **inputs))
    asked = quantize(SETTINGS.model_copy(update={"dtype": "float16"}), stage_run(tmp_path / "asked", **inputs))
    assert half["bytes_after"] < full["bytes_after"]
    assert asked["bytes_after"] < full["bytes_after"]
    stated = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("half", "full", "asked")]
    assert stated == ["bfloat16", "float32", "float16"]


def test_without_tokens_the_model_is_only_quantized(inputs, tmp_path):
    figures = quantize(SETTINGS, stage_run(tmp_path / "alone", dpo=inputs["dpo"]))
    quantize(SETTINGS, stage_run(tmp_path / "measured", **inputs))
    assert not any("bits_per_byte" in key for key in figures)
    alone, whole = (tmp_path / name / "model.safetensors" for name in ("alone", "measured"))
    assert alone.read_bytes() == whole.read_bytes()
    with pytest.raises(GristmillError, match="quantized already"):
        quantize(SETTINGS, stage_run(tmp_path / "again", dpo=tmp_path / "alone"))


def test_mistakes_are_named(inputs, tmp_path):
    with pytest.raises(GristmillError, match=r"int8\.window \(65\)"):
        quantize(QuantizeConfig(window=65), stage_run(tmp_path / "window", **inputs))

    other = tmp_path / "other"
    other.mkdir()
    train_on_texts(TokenizerConfig(vocab_size=270), ["another text"] * 5, other)
    save_model(load_model(inputs["dpo"]), tmp_path / "model", other)
    with pytest.raises(GristmillError, match="another tokenizer"):
        quantize(SETTINGS, stage_run(tmp_path / "tokenizer", dpo=tmp_path / "model", tokens=inputs["tokens"]))

    model = load_model(inputs["dpo"])
    save_model(model, tmp_path / "broken", inputs["dpo"])
    data = bytearray((tmp_path / "broken" / "model.safetensors").read_bytes())
    data[-4:] = np.float32("nan").tobytes()  # the last weight of the file
    (tmp_path / "broken" / "model.safetensors").write_bytes(data)
    with pytest.raises(GristmillError, match=r"model\.\S+ holds NaN"):
        quantize(SETTINGS, stage_run(tmp_path / "nan", dpo=tmp_path / "broken", tokens=inputs["tokens"]))
