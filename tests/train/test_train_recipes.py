"""Pre-training from a recipe to a model: hidden tokens, turned documents, a mixture in phases, and early refusals."""

import json
import random

import pytest
import torch
from pydantic import ValidationError

import gristmill
from gristmill.align.config import DPOConfig, SFTConfig
from gristmill.errors import GristmillError
from gristmill.events import read_events
from gristmill.tokenizer.store import TokenStore
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.train.config import PretrainConfig, WatchConfig
from gristmill.train.fill_in_middle import GapTokens
from gristmill.weights.encoders import load_encoder
from gristmill.weights.load import load_model

BERT = """
  model:
    {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 16, intermediate_size: 48,
     max_seq_len: 64, causal: false, positions: learned, norm: layernorm, norm_bias: true, norm_position: post,
     embedding_norm: true, activation: gelu, gated: false, qkv_bias: true, output_bias: true, mlp_bias: true}
  objective: masked
  sequence_length: 32
  validation_tokens: 512
  validate_every: 20
  mixture: [{from_step: 0, weights: {books: 1}}, {from_step: 20, weights: {other: 1}}]
  training: {steps: 30, batch_size: 4, learning_rate: 0.01, log_every: 7, checkpoint_every: 8}
"""
DECODER = """
  model:
    {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 16, intermediate_size: 48,
     max_seq_len: 64}
  fim_rate: 1
  sequence_length: 32
  validation_tokens: 512
  training:
    steps: 30
    batch_size: 4
    learning_rate: 0.01
    watch: {sample_every: 12, sample_prompts: [the king], sample_tokens: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("recipes")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 6))) for _ in range(200)]
    words += ["the", "of", "and", "to", "that", "with", "have", "be"] * 15
    for domain in ("books", "other"):
        (home / domain).mkdir()
        for number in range(16):
            lines = [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(30)]
            (home / domain / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return home


def recipe(home, base, tokenizer="special_tokens: ['<|mask|>'], fill_in_the_middle: true"):
    off = "\n".join(f"  {name}: {{enabled: false}}" for name in ("books", "web", "docs", "code"))
    local = "\n".join(f"    - {{path: {home}/{name}, domain: {name}}}" for name in ("books", "other"))
    path = home / "recipe.yaml"
    path.write_text(
        f"name: tiny\nseed: 5\ncollected:\n{off}\n  local:\n{local}\ncorpus: {{min_validation_works: 2}}\n"
        f"tokenizer: {{vocab_size: 320, {tokenizer}}}\ntokens: {{}}\nbase:{base}"
    )
    return path


def test_an_encoder_learns_hidden_tokens_from_the_domains_that_each_phase_names(home):
    directory = home / "run"
    figures = gristmill.run(recipe(home, BERT), directory)["base"].figures
    rows = (len(TokenStore.open(directory / "artifacts/tokens").tokens("train", "books")) - 1) // 32
    assert figures["domain_epochs"]["books"] == pytest.approx(80 / rows, abs=1e-3)  # 20 steps of 4
    assert figures["tokens"] == 30 * 4 * 32
    history = json.loads((directory / "artifacts/base/training.json").read_text())
    measured = {entry["step"]: entry["validation_loss"] for entry in history if "validation_loss" in entry}
    assert set(measured) == {20, 30}
    assert measured[30] == figures["validation_loss"]
    assert load_encoder(directory / "artifacts/base").masked_lm is not None
    assert json.loads((directory / "artifacts/base/config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_a_decoder_learns_the_marks_of_turned_documents_and_its_samples_are_written_down(home):
    directory = home / "run"
    gristmill.run(recipe(home, DECODER), directory)
    base = directory / "artifacts" / "base"
    tokenizer, model = Tokenizer.load(base), load_model(base)
    marks = GapTokens.of(tokenizer)[:3]
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_id, *tokenizer.encode("The of and to")]]))
    share = logits.float().softmax(-1)[..., list(marks)].sum(-1).mean()
    assert share > 4 * 3 / tokenizer.vocab_size  # without turned documents it falls far below 3 / vocab_size
    samples = [event for event in read_events(directory / "events.jsonl") if event["type"] == "sample"]
    assert [event["step"] for event in samples] == [12, 24]


@pytest.mark.parametrize(
    ("base", "tokenizer", "said"),
    [
        (BERT, "fill_in_the_middle: true", r"base.objective: masked .* tokenizer.special_tokens: \['<\|mask\|>'\]"),
        (DECODER, "special_tokens: ['<|mask|>']", "base.fim_rate .* tokenizer.fill_in_the_middle: true"),
    ],
)
def test_a_tokenizer_without_the_marks_is_refused_before_the_corpus_is_made(home, tmp_path, base, tokenizer, said):
    with pytest.raises(GristmillError, match=said):
        gristmill.run(recipe(home, base, tokenizer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_that_read_a_decoder_are_refused_behind_an_encoder(home, tmp_path):
    given = recipe(home, BERT)
    given.write_text(given.read_text() + "inspect: {prompt: the king}\n")
    with pytest.raises(GristmillError, match="makes an encoder, which stage 'inspect' cannot use"):
        gristmill.run(given, tmp_path / "run")


SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
         "intermediate_size": 48, "max_seq_len": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "changes", "tokens", "said"),
    [
        ({"causal": False}, {"objective": "masked"}, 4, "an encoder continues no text"),
        ({}, {}, 64, "leaves no place for a prompt"),
    ],
)
def test_samples_that_cannot_be_made_are_refused(model, changes, tokens, said):
    training = {"steps": 3, "batch_size": 2, "learning_rate": 0.1}
    watch = {"sample_every": 1, "sample_prompts": ("a",), "sample_tokens": tokens}
    given = {"model": SHAPE | model, "sequence_length": 32, "training": training | {"watch": watch}} | changes
    with pytest.raises(ValidationError, match=said):
        PretrainConfig.model_validate(given)


def test_what_would_do_nothing_is_refused():
    with pytest.raises(ValidationError, match="sample_every needs sample_prompts"):
        WatchConfig(sample_every=5)
    training = {"steps": 3, "batch_size": 2, "learning_rate": 0.1}
    sampling = training | {"watch": {"sample_every": 1, "sample_prompts": ("a",)}}
    for config, needed in ((SFTConfig, {"tasks": 9}), (DPOConfig, {"prompts": 9})):
        with pytest.raises(ValidationError, match="sample_every is for stage base"):
            config.model_validate(needed | {"training": sampling})
    with pytest.raises(ValidationError, match="z_loss is for stages base and sft"):
        DPOConfig.model_validate({"prompts": 9, "training": training | {"z_loss": 1e-4}})
