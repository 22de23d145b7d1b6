"""Logit lens, embeddings, weight tables, the picture, and the stage as a whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from interpret_models import tiny_model
from safetensors.torch import load_file

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import StageLog
from gristmill.interpret.config import InspectConfig
from gristmill.interpret.embeddings import frequent_tokens, nearest_tokens, spread, word_tokens
from gristmill.interpret.figure import draw_attention
from gristmill.interpret.lens import lens_logits, logit_lens
from gristmill.interpret.stage import inspect, repeated_sequence
from gristmill.interpret.weights import norm_table, parameters_by_part, stored_dtypes, weight_table
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.load import load_model

IDS = [0, 7, 9, 30, 7, 9, 31, 12]
FILES = ["attention.png", "embedding_neighbours.json", "logit_lens.json", "report.json", "weights.json"]


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_the_lens_ends_where_the_model_does(tie_embeddings: bool) -> None:
    model = tiny_model(40, tie_embeddings)
    logits = lens_logits(model, IDS)
    assert logits.shape == (4, 8, 40)
    with torch.no_grad():
        torch.testing.assert_close(logits[-1], model(torch.tensor([IDS]))[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[0], model.logits(model.norm(model.embedding(torch.tensor(IDS)))))


def test_the_lens_reports_probabilities_and_agreement(model_directory: Path) -> None:
    tokenizer, model = Tokenizer.load(model_directory), load_model(model_directory)
    ids = [tokenizer.bos_id, *tokenizer.encode("The king said")]
    logits = lens_logits(model, ids)
    layers = logit_lens(logits, ids, tokenizer, top=3)
    assert [layer["after"] for layer in layers] == ["embedding", "layer 0", "layer 1", "layer 2"]
    assert layers[-1]["agrees_with_last"] == 1.0
    assert layers[0]["agrees_with_last"] == pytest.approx((logits[0].argmax(-1) == logits[3].argmax(-1)).float().mean())
    best = layers[-1]["positions"][-1]["predictions"][0]
    probabilities = logits[-1, -1].softmax(-1)
    assert best["id"] == int(probabilities.argmax())
    assert best["probability"] == pytest.approx(float(probabilities.max()))
    expected = -sum(logits[2, t].log_softmax(-1)[ids[t + 1]].item() for t in range(len(ids) - 1))
    assert layers[2]["bits_per_token"] == pytest.approx(expected / (len(ids) - 1) / 0.6931472, rel=1e-4)


def test_nearest_tokens_by_angle_not_by_length() -> None:
    table = torch.tensor([[1.0, 0.0], [9.0, 0.9], [0.5, 0.5], [-1.0, 0.0], [1.0, 0.001]])
    cosines, ids = nearest_tokens(table, [0], torch.tensor([True, True, True, True, False]), 8)
    assert ids.tolist() == [[1, 2, 3]]  # itself and the token that is not allowed are missing
    assert cosines[0].tolist() == pytest.approx([9 / (81 + 0.81) ** 0.5, 0.5**0.5, -1.0])


def test_spread_is_the_mean_over_all_pairs() -> None:
    table = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)) + 0.7
    unit = table / table.norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert spread(table)["mean_cosine"] == pytest.approx(float(pairs.mean()), abs=1e-6)
    assert spread(table)["max_norm"] == pytest.approx(float(table.norm(dim=1).max()), rel=1e-6)


def test_words_are_looked_up_as_they_stand_in_a_sentence(model_directory: Path) -> None:
    tokenizer = Tokenizer.load(model_directory)
    found = word_tokens(tokenizer, ["king", "unheard-of"])
    assert list(found) == ["king"]
    assert tokenizer.decode([found["king"]]) == " king"
    frequent = frequent_tokens(tokenizer, 5)
    assert len(frequent) == 5
    assert frequent == sorted(frequent)
    assert all(tokenizer.decode([token])[1:].isalpha() for token in frequent)


def test_weight_table_describes_the_file(model_directory: Path) -> None:
    """The oracle is the safetensors file itself, read by its own library."""
    model, stored = load_model(model_directory), load_file(model_directory / "model.safetensors")
    rows = {row["name"]: row for row in weight_table(model, stored_dtypes(model_directory))}
    assert set(rows) == set(stored)
    assert sum(row["parameters"] for row in rows.values()) == model.config.num_parameters
    assert sum(parameters_by_part(model).values()) == model.config.num_parameters
    for name, tensor in stored.items():
        assert rows[name]["shape"] == list(tensor.shape)
        assert rows[name]["dtype"] == "float32"
        assert rows[name]["norm"] == pytest.approx(float(tensor.pow(2).sum().sqrt()), rel=1e-5)
        assert rows[name]["std"] == pytest.approx(float(tensor.std(correction=0)), rel=1e-4)
        assert (rows[name]["min"], rows[name]["max"]) == (float(tensor.min()), float(tensor.max()))
    norms = {row["name"]: row for row in norm_table(model)}
    assert set(norms) == {name for name, tensor in stored.items() if tensor.dim() == 1}
    gain = stored["model.norm.weight"]
    assert norms["model.norm.weight"]["largest_channels"] == gain.topk(5).indices.tolist()


def test_the_picture_is_a_png_and_repeats_to_the_byte(tmp_path: Path) -> None:
    patterns = torch.eye(4).repeat(1, 2, 1, 1)
    for name in ("a.png", "b.png"):
        draw_attention(patterns, ["<|bos|>", " $x", "\n", "_$"], tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in data
    assert b"tIME" not in data


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GristmillError, match=r"pip install 'gristmill\[page\]'"):
        draw_attention(torch.eye(2)[None, None], ["a", "b"], tmp_path / "a.png")


def stage_run(tmp_path: Path, inputs: dict[str, Path]) -> StageRun:
    scratch = tmp_path / "_scratch"
    scratch.mkdir(parents=True)
    return StageRun(out=tmp_path, scratch=scratch, inputs=inputs, seed=3, log=StageLog.silent())


def test_stage_writes_the_same_files_twice(tmp_path: Path, model_directory: Path) -> None:
    config = InspectConfig(prompt="The king said to the people", repeated_tokens=20, frequent_tokens=6)
    runs = [stage_run(tmp_path / name, {"dpo": model_directory}) for name in ("first", "second")]
    figures = [inspect(config, run) for run in runs]
    assert sorted(path.name for path in runs[0].out.iterdir() if path.is_file()) == FILES
    for name in FILES:
        assert (runs[0].out / name).read_bytes() == (runs[1].out / name).read_bytes(), name
    assert figures[0] == figures[1]
    report = json.loads((runs[0].out / "report.json").read_text())
    assert report["parameters"] == load_model(model_directory).config.num_parameters
    assert len(report["heads"]) == 12
    assert report["strongest_heads"]["induction"]["value"] == max(head["induction"] for head in report["heads"])
    neighbours = json.loads((runs[0].out / "embedding_neighbours.json").read_text())
    assert "king" in [entry["token"].strip() for entry in neighbours["words"]]
    assert "file" in neighbours["words_of_several_tokens"]
    assert len(neighbours["frequent"]) == 6


def test_stage_takes_the_last_model_of_a_shorter_recipe(tmp_path: Path, model_directory: Path) -> None:
    run = stage_run(tmp_path, {"base": Path("nowhere"), "sft": model_directory})
    inspect(InspectConfig(prompt="The king", repeated_tokens=20), run)
    assert (tmp_path / "report.json").exists()


def test_stage_names_the_option_that_does_not_fit(tmp_path: Path, model_directory: Path) -> None:
    for number, (config, option) in enumerate(
        (
            (InspectConfig(prompt="The king said " * 60), "inspect.prompt"),
            (InspectConfig(repeated_tokens=64), "inspect.repeated_tokens"),
        )
    ):
        with pytest.raises(GristmillError, match=option):
            inspect(config, stage_run(tmp_path / str(number), {"dpo": model_directory}))
    with pytest.raises(GristmillError, match="dpo, sft, base"):
        inspect(InspectConfig(), stage_run(tmp_path / "none", {}))


def test_the_repeated_sequence_repeats(model_directory: Path) -> None:
    tokenizer = Tokenizer.load(model_directory)
    sequence = repeated_sequence(tokenizer, 10, seed=1)
    assert sequence[0] == tokenizer.bos_id
    assert sequence[1:11] == sequence[11:]
    assert all(tokenizer.token_bytes[token] for token in sequence[1:])
    assert sequence != repeated_sequence(tokenizer, 10, seed=2)
