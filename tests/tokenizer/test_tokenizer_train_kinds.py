"""Kinds unigram, sentencepiece and wordpiece: what is learned, whether it is the same every time, what others make of
it."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import HARD_TEXTS, example_shards
from transformers import AutoTokenizer

from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.kinds import CUTS
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts
from gristmill.tokenizer.training import unigram
from gristmill.tokenizer.training.models import _alphabet
from gristmill.tokenizer.training.unigram import _digamma, _expected, _Pieces, _seeds, _Words, learn_pieces

KINDS = ["unigram", "sentencepiece", "wordpiece"]
VOCAB_SIZE = 700
TEXTS = [row["text"] for shard in example_shards() for row in shard]
HARD = [*HARD_TEXTS[:-1], "the byte <0x41> in letters", "☃ is rare, 🦊 too", "\t\ttabs\r\n\r\n  and breaks"]


@pytest.fixture(scope="module", params=KINDS)
def kind_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    train_on_texts(TokenizerConfig(kind=request.param, vocab_size=VOCAB_SIZE, pad_to_multiple=8), TEXTS, out)
    return out


def test_transformers_gives_the_same_ids(kind_directory: Path) -> None:
    ours = Tokenizer.load(kind_directory)
    theirs = AutoTokenizer.from_pretrained(kind_directory)
    assert ours.kind == kind_directory.name[:-1]
    assert len(theirs) == ours.vocab_size == 704
    for text in HARD:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
    assert theirs.bos_token_id == ours.bos_id == 0


def test_texts_decode_to_themselves(kind_directory: Path) -> None:
    ours = Tokenizer.load(kind_directory)
    assert ours.lossless == (ours.kind != "wordpiece")
    unknown = ours.backend.token_to_id("<|unk|>")
    for text in HARD:
        ids = ours.encode(text)
        if ours.lossless:
            assert ours.decode(ids) == text
            assert unknown not in ids
    if not ours.lossless:
        assert ours.encode("☃ and 🦊").count(unknown) == 2
        assert ours.encode("the  mill\n") == ours.encode(" the mill")
    assert ours.decode(ours.encode("The miller turns the wheel")) == "The miller turns the wheel"


def test_another_process_trains_the_same(kind_directory: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tokenizer_rooms import example_shards\n"
        "from gristmill.tokenizer.config import TokenizerConfig\n"
        "from gristmill.tokenizer.train import train_on_texts\n"
        f"config = TokenizerConfig(kind=sys.argv[1], vocab_size={VOCAB_SIZE}, pad_to_multiple=8)\n"
        "texts = [row['text'] for shard in example_shards() for row in shard]\n"
        "train_on_texts(config, texts, Path(sys.argv[2]))"
    )
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": "1",
        "PYTHONHASHSEED": "5",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
    }
    command = [sys.executable, "-c", script, kind_directory.name[:-1], str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "tokenizer.json").read_bytes() == (kind_directory / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(kind: str, tmp_path: Path) -> None:
    many = "".join(map(chr, range(0xAC00, 0xAE00))) * 50
    with pytest.raises(GristmillError, match=rf"vocab_size is 300, but the .* characters .* kind {kind}"):
        train_on_texts(TokenizerConfig(kind=kind, vocab_size=300), [*TEXTS, many], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_text_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"vocab_size is 20000, but the \d+ bytes"):
        train_on_texts(TokenizerConfig(kind=kind, vocab_size=20_000), TEXTS, tmp_path)


def test_no_piece_holds_a_cut(kind_directory: Path) -> None:
    """Then programs that know pieces only, and do not cut, find the same ones."""
    ours = Tokenizer.load(kind_directory)
    if ours.kind == "wordpiece":
        return
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(CUTS), "isolated")
    pieces = [
        token.replace("▁", " ")
        for token, id in ours.backend.get_vocab(with_added_tokens=False).items()
        if id > ours.backend.token_to_id("<0xFF>")
    ]
    assert len(pieces) > 300
    assert [piece for piece in pieces if len(cut.pre_tokenize_str(piece)) != 1] == []


def test_the_alphabet_covers_the_text() -> None:
    text = "a" * 10_000 + "é" * 10 + "水" * 9 + "☃" * 2
    characters, size = _alphabet([[text, " " * 50]], without=" ")
    assert size == len(text.encode()) + 50
    assert {"a", "é", "水"} < set(characters)
    assert not {" ", "☃"} & set(characters)
    assert characters == sorted(characters)


# Unigram


def ways(word: str, pieces: list[str]) -> list[list[str]]:
    """All ways to cut a word into pieces."""
    if not word:
        return [[]]
    return [[piece, *rest] for piece in pieces if word.startswith(piece) for rest in ways(word[len(piece) :], pieces)]


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=7), st.integers(1, 5), min_size=1, max_size=5),
    st.sets(st.text("ab", min_size=2, max_size=4), max_size=6),
    st.randoms(use_true_random=False),
)
def test_expected_counts_are_those_of_all_ways_to_cut(counts: dict[str, int], longer: set[str], rng: object) -> None:
    spelled = ["a", "b", *sorted(longer)]
    offsets = np.cumsum([0, *map(len, spelled)], dtype=np.int64)
    pieces = _Pieces(np.array(["ab".index(c) for c in "".join(spelled)], np.int32), offsets)
    scores = np.array([-rng.random() * 5 - 0.1 for _ in spelled])  # type: ignore[attr-defined]
    score_of = dict(zip(spelled, scores, strict=True))
    expected: Counter[str] = Counter()
    for word, count in counts.items():
        likely = [(math.exp(sum(score_of[piece] for piece in way)), way) for way in ways(word, spelled)]
        total = sum(likelihood for likelihood, _ in likely)
        for likelihood, way in likely:
            for piece in way:
                expected[piece] += count * likelihood / total
    found = _expected(_Words.of(counts, "ab"), pieces, scores)
    assert found == pytest.approx([expected[piece] for piece in spelled], rel=1e-9, abs=1e-12)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 5), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_seeds_are_the_frequent_substrings(counts: dict[str, int]) -> None:
    substrings: Counter[str] = Counter()
    for word, count in counts.items():
        for start, end in itertools.combinations(range(len(word) + 1), 2):
            substrings[word[start:end]] += count
    pieces, frequency = _seeds(_Words.of(counts, "abc"), 3)
    found = dict(zip(pieces.spelled("abc"), frequency.tolist(), strict=True))
    wanted = {text: count for text, count in substrings.items() if len(text) > 1 and count >= 2}
    assert found == wanted | {letter: max(substrings[letter], 0.5) for letter in "abc"}


def test_seeds_that_cover_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "MOST_SEEDS", 2)
    pieces, _ = _seeds(_Words.of({"abcb": 5, "ab": 9}, "abc"), 3)
    assert pieces.spelled("abc") == ["a", "b", "c", "ab", "abcb"]  # 2 x 14 and 4 x 5 bytes


def test_digamma_is_torchs() -> None:
    import torch

    values = np.concatenate([np.linspace(0.5, 20, 100), [1e3, 1e9]])
    assert _digamma(values) == pytest.approx(torch.special.digamma(torch.tensor(values)).numpy(), rel=1e-9, abs=1e-9)


def test_pieces_are_as_good_as_the_librarys(tmp_path: Path) -> None:
    """The library drops other pieces now and then; the text must not cost more."""
    train_on_texts(TokenizerConfig(kind="unigram", vocab_size=VOCAB_SIZE), TEXTS, tmp_path)
    ours = Tokenizer.load(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    first = ours.backend.token_to_id("<0xFF>") + 1
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    theirs.pre_tokenizer = ours.backend.pre_tokenizer
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=len(model["vocab"]) - first + 1, special_tokens=["?"], unk_token="?", show_progress=False
    )
    theirs.train_from_iterator(TEXTS[:-16], trainer)
    cost = [sum(len(tokenizer.encode(text).ids) for text in TEXTS[:-16]) for tokenizer in (ours.backend, theirs)]
    assert cost[0] <= 1.02 * cost[1]


def test_pieces_are_sorted_and_hold_the_alphabet() -> None:
    found = learn_pieces({"▁mill": 9, "▁miller": 5, "mill": 2}, sorted("▁milerz"), 9)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert set("▁milerz") < {piece for piece, _ in found}
    assert len(found) == 9
    assert {piece for piece, _ in found if len(piece) > 1} & {"▁mill", "mill"}
