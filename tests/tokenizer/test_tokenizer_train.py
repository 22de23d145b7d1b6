"""The tokenizer stage: what it writes, what other libraries make of it, which text it learns from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizer_rooms import HARD_TEXTS, VOCAB_SIZE, WEIGHTS, example_shards, files_of, stage_run, write_corpus
from transformers import AutoTokenizer

from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.sample import Sample, share_out
from gristmill.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from gristmill.tokenizer.train import train_tokenizer


def test_files_and_special_tokens(directory: Path, tokenizer: Tokenizer) -> None:
    assert sorted(files_of(directory)) == sorted(TOKENIZER_FILES)
    assert [path.name for path in tokenizer.files] == list(TOKENIZER_FILES)
    vocabulary = json.loads((directory / "vocab.json").read_text())
    specials = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert [vocabulary[token] for token in specials] == [0, 1, 2, 3, 4]
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.im_start_id, tokenizer.im_end_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.stop_ids == (1, 4)
    assert tokenizer.vocab_size == len(vocabulary) == VOCAB_SIZE
    merges = [line for line in (directory / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    assert len(merges) == VOCAB_SIZE - 256 - len(specials)


def test_every_byte_has_an_id(tokenizer: Tokenizer) -> None:
    alone = [tokenizer._id_to_bytes[id] for id in range(5, 5 + 256)]
    assert sorted(alone) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_transformers_gives_the_same_ids(any_directory: Path, beside_a_model: bool, tmp_path: Path) -> None:
    ours = Tokenizer.load(any_directory)
    for path in ours.files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if beside_a_model:  # a model type must not bring in a tokenizer class that rebuilds the vocabulary its own way
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in HARD_TEXTS if "<|" not in text]  # transformers parses special tokens out of text
    assert theirs(texts)["input_ids"] == [ours.encode(text) for text in texts]
    assert [theirs.decode(ours.encode(text)) for text in texts] == texts
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == ours.vocab_size


def test_tokenizers_gives_the_same_ids(any_directory: Path) -> None:
    ours = Tokenizer.load(any_directory)
    theirs = tokenizers.Tokenizer.from_file(str(any_directory / "tokenizer.json"))
    for text in HARD_TEXTS[:-1]:
        assert theirs.encode(text).ids == ours.encode(text), text
    rebuilt = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(any_directory / "vocab.json"), str(any_directory / "merges.txt"))
    )
    rebuilt.pre_tokenizer = theirs.pre_tokenizer
    for text in HARD_TEXTS:
        assert rebuilt.encode(text).ids == ours.encode(text), text


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt2", ["a", " 12345", "!", "\n ", " I", "'ll", "'", "S"]),
        ("gpt4", ["a", " ", "123", "45", "!\n", " ", " I", "'ll", "'S"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "5", "!\n", " ", " I", "'ll", "'S"]),
    ],
)
def test_pretokenizers_cut_as_published(name: str, pieces: list[str]) -> None:
    text = "a 12345!\n  I'll'S"
    spans = [span for _, span in build_pretokenizer(name).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == pieces


def test_training_twice_gives_the_same_bytes(corpus: Path, directory: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=VOCAB_SIZE), stage_run(tmp_path / "again", corpus=corpus))
    assert files_of(tmp_path / "again") == files_of(directory)


def test_training_on_one_thread_gives_the_same_bytes(corpus: Path, directory: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tokenizer_rooms import stage_run\n"
        "from gristmill.tokenizer.config import TokenizerConfig\n"
        "from gristmill.tokenizer.train import train_tokenizer\n"
        "config = TokenizerConfig(vocab_size=int(sys.argv[3]))\n"
        "train_tokenizer(config, stage_run(Path(sys.argv[1]), corpus=Path(sys.argv[2])))"
    )
    environment = {
        **os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(corpus), str(VOCAB_SIZE)]
    subprocess.run(command, check=True, env=environment)
    assert files_of(tmp_path / "out") == files_of(directory)


def test_a_rerun_over_half_written_files_ends_the_same(corpus: Path, directory: Path, tmp_path: Path) -> None:
    run = stage_run(tmp_path / "out", corpus=corpus)
    for name in ("tokenizer.json", "vocab.json", ".tokenizer.json.writing"):
        (run.out / name).write_text("{")
    train_tokenizer(TokenizerConfig(vocab_size=VOCAB_SIZE), run)
    assert files_of(run.out) == files_of(directory)


def test_figures(trained: tuple[Path, dict[str, Any]], tokenizer: Tokenizer) -> None:
    figures = trained[1]
    rows = [row for shard in example_shards() for row in shard]
    sizes = dict.fromkeys(WEIGHTS, 0)
    for row in rows:
        if row["split"] == "train":
            sizes[row["domain"]] += len(row["text"].encode())
    assert figures["sampled_bytes"] == sizes  # the whole corpus is smaller than sample_bytes
    books = [row["text"] for row in rows if row["domain"] == "books" and row["split"] == "validation"]
    tokens = sum(len(tokenizer.encode(text)) for text in books)
    words = sum(len(text.split()) for text in books)
    assert figures["tokens_per_word"]["books"] == pytest.approx(tokens / words, abs=1e-4)
    assert figures["bytes_per_token"]["books"] == pytest.approx(sum(len(t.encode()) for t in books) / tokens, abs=1e-4)
    json.dumps(figures)


@settings(deadline=None)
@given(
    st.integers(0, 10**9),
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.integers(0, 10**9), st.one_of(st.just(0.0), st.floats(1e-6, 1))),
        max_size=6,
    ),
)
def test_share_out_follows_the_weights(budget: int, domains: dict[str, tuple[int, float]]) -> None:
    available = {name: size for name, (size, _) in domains.items()}
    weights = {name: weight for name, (_, weight) in domains.items()}
    quota = share_out(budget, available, weights)
    assert sum(quota.values()) <= budget
    assert all(0 <= quota[name] <= available[name] for name in available)
    assert all(quota[name] == 0 for name in available if weights[name] == 0)
    short = [name for name in available if quota[name] < available[name] and weights[name] > 0]
    if short:  # then the budget was spent, and nobody who got less than all got less than by the weight of another
        assert sum(quota.values()) >= budget - len(short)
        rate = min((quota[name] + 1) / weights[name] for name in short)
        assert all(quota[name] <= rate * weights[name] * (1 + 1e-9) + 1 for name in available if weights[name] > 0)


def test_sample_is_bounded_spread_and_weighted(tmp_path: Path) -> None:
    rows = [
        {"domain": name, "split": "train", "text": f"{name} {i:03d} " + "é" * 46} for i in range(200) for name in "ab"
    ]
    held_out = [{"domain": "a", "split": "validation", "text": "held out"}] * 50
    directory = write_corpus(tmp_path / "c", [rows + held_out], {"a": 0.75, "b": 0.25})
    sample = Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=1)
    texts = list(sample.texts())
    by_domain = {name: [text for domain, text in texts if domain == name] for name in "ab"}
    assert sample.quota == {"a": 3000, "b": 1000}
    assert {name: sum(len(text.encode()) for text in by_domain[name]) for name in "ab"} in (
        {"a": 3000, "b": 1000}, {"a": 2999, "b": 1000}, {"a": 3000, "b": 999}, {"a": 2999, "b": 999},
    )  # a document that is cut short is cut between two characters  # fmt: skip
    assert "held out" not in [text for _, text in texts]
    numbers = [int(text.split()[1]) for text in by_domain["a"]]
    assert numbers == sorted(numbers)
    assert max(numbers) > 100
    assert texts == list(Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=1).texts())
    assert texts != list(Sample(directory, "train", {"a": 0.75, "b": 0.25}, 4001, seed=2).texts())


def test_too_little_text_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"tokenizer\.vocab_size is 60000, but the \d+ bytes"):
        train_tokenizer(TokenizerConfig(vocab_size=60_000), stage_run(tmp_path, corpus=corpus))


def test_no_training_text_is_refused(tmp_path: Path) -> None:
    rows = [{"domain": "a", "split": "validation", "text": "only held out"}]
    directory = write_corpus(tmp_path / "c", [rows], {"a": 1.0})
    with pytest.raises(GristmillError, match="no training text"):
        train_tokenizer(TokenizerConfig(), stage_run(tmp_path / "out", corpus=directory))


def test_a_directory_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"holds no part-\*\.parquet"):
        Sample(tmp_path, "train", {"a": 1.0}, 1000, seed=0)


def test_a_corrupt_shard_is_refused(tmp_path: Path) -> None:
    directory = write_corpus(tmp_path / "c", example_shards(), WEIGHTS)
    shard = directory / "documents" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(GristmillError, match=r"part-00001\.parquet is not a readable"):
        Sample(directory, "train", WEIGHTS, 1000, seed=0)


@pytest.mark.parametrize(
    "bad", [{"vocab_size": 299}, {"vocab_size": 65_537}, {"pretokenizer": "t5"}, {"min_frequency": 0}]
)
def test_config_bounds(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        TokenizerConfig(**bad)
