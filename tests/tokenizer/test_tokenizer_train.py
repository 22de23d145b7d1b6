"""The tokenizer stage: what it writes, what other libraries make of it, which text it learns from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from pydantic import ValidationError
from tokenizer_rooms import HARD_TEXTS, VOCAB_SIZE, WEIGHTS, example_shards, files_of, stage_run, write_corpus
from transformers import AutoTokenizer

from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.sample import Sample
from gristmill.tokenizer.special import specials_of
from gristmill.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from gristmill.tokenizer.train import train_on_texts, train_tokenizer
from gristmill.tokenizer.training import train


def test_files_and_special_tokens(directory: Path, tokenizer: Tokenizer) -> None:
    names = [name for name in TOKENIZER_FILES if name != "vocab.txt"]
    assert sorted(files_of(directory)) == sorted(names)
    assert [path.name for path in tokenizer.files] == names
    vocabulary = json.loads((directory / "vocab.json").read_text())
    specials = specials_of(TokenizerConfig()).tokens
    assert specials[:5] == ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
    assert [vocabulary[token] for token in specials] == list(range(len(specials)))
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.im_start_id, tokenizer.im_end_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.stop_ids == (1, 4)
    assert tokenizer.vocab_size == len(vocabulary) == VOCAB_SIZE
    merges = [line for line in (directory / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    assert len(merges) == VOCAB_SIZE - 256 - len(specials)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pretokenizer": "gpt2"},
        {"pretokenizer": "llama3", "min_frequency": 5, "vocab_size": 400},
        {"pretokenizer": "gpt2", "digits": 2, "special_tokens": ("<|more|>",), "fill_in_the_middle": True},
        {"max_token_bytes": 4, "reserved": 3},
        {"sample_bytes": 20_000, "vocab_size": 300},
    ],
)
def test_what_is_learned_is_what_the_library_learns(options: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(**{"vocab_size": VOCAB_SIZE, **options})
    train_tokenizer(config, stage_run(tmp_path, corpus=corpus))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = build_pretokenizer(config.pretokenizer, config.digits)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        max_token_length=None if config.max_token_bytes is None else config.max_token_bytes + 1,
        special_tokens=list(specials_of(config).tokens),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = Sample(corpus, "train", WEIGHTS, config.sample_bytes, seed=7)
    theirs.train_from_iterator((text for _, text in sample.texts()), trainer)
    assert (tmp_path / "tokenizer.json").read_text() == theirs.to_str(pretty=True)


def test_every_byte_has_an_id(tokenizer: Tokenizer) -> None:
    first = len(specials_of(TokenizerConfig()).tokens)
    alone = [tokenizer._id_to_bytes[id] for id in range(first, first + 256)]
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


def test_too_little_text_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"tokenizer\.vocab_size is 60000, but the \d+ bytes"):
        train_tokenizer(TokenizerConfig(vocab_size=60_000), stage_run(tmp_path, corpus=corpus))


def test_no_training_text_is_refused(tmp_path: Path) -> None:
    rows = [{"domain": "a", "split": "validation", "text": "only held out"}]
    directory = write_corpus(tmp_path / "c", [rows], {"a": 1.0})
    with pytest.raises(GristmillError, match="no training text"):
        train_tokenizer(TokenizerConfig(), stage_run(tmp_path / "out", corpus=directory))


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(corpus: Path, tmp_path: Path) -> None:
    least = 256 + len(specials_of(TokenizerConfig()).tokens)
    with pytest.raises(GristmillError, match=rf"vocab_size is 256, but .* 256 bytes are {least} tokens"):
        train_tokenizer(TokenizerConfig(vocab_size=256), stage_run(tmp_path / "a", corpus=corpus))
    train_tokenizer(TokenizerConfig(vocab_size=least), stage_run(tmp_path / "b", corpus=corpus))
    assert Tokenizer.load(tmp_path / "b").vocab_size == least


def test_a_special_token_that_is_learned_from_text_is_refused(tmp_path: Path) -> None:
    texts = [pa.array(["a<_>b"] * 10)]
    train(TokenizerConfig(vocab_size=259), texts, ["<|eos|>"], tmp_path)
    with pytest.raises(GristmillError, match="'<_>' stands in the text so often"):
        train(TokenizerConfig(vocab_size=260), texts, ["<|eos|>", "<_>"], tmp_path)


def test_reserved_tokens_and_padding(corpus: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=600, reserved=2, pad_to_multiple=64)
    figures = train_tokenizer(config, stage_run(tmp_path, corpus=corpus))
    assert figures["vocab_size"] == 640
    ours = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size == 640
    specials = [f"<|reserved_{number}|>" for number in range(2 + 40)]
    first = specials_of(config).tokens.index("<|reserved_0|>")
    ids = [first, first + 1, *range(600, 640)]
    assert theirs.convert_tokens_to_ids(specials) == [ours.backend.token_to_id(token) for token in specials] == ids
    assert set(ids) <= set(theirs.all_special_ids) & ours.special_ids


def test_texts_in_memory(tmp_path: Path) -> None:
    texts = ["the miller and the river", "the mill"] * 20
    train_on_texts(TokenizerConfig(vocab_size=280), texts, tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert [loaded.decode(loaded.encode(text)) for text in texts] == texts
    assert loaded.vocab_size == 280
    assert loaded.template is not None


@pytest.mark.parametrize(
    "bad",
    [
        {"vocab_size": 255},
        {"vocab_size": 1_000_001},
        {"pretokenizer": "t5"},
        {"min_frequency": 0},
        {"kind": "words"},
        {"digits": 4},
        {"max_token_bytes": 1},
        {"memory_bytes": 1000},
    ],
)
def test_config_bounds(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        TokenizerConfig(**bad)
