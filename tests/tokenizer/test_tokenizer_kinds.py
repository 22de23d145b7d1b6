"""Unigram, WordPiece and SentencePiece-style BPE: what the libraries make of the same directory, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hard_text import HARD_TEXTS, hard_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import example_shards, turn
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from gristmill.errors import GristmillError
from gristmill.tokenizer.formats.huggingface import write_directory
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.tokenizer_files import special_token_ids

SPECIALS = ["<s>", "</s>", "<unk>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KINDS = ("unigram", "wordpiece", "sentencepiece", "never", "first")
SIZE = 330


def trained(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer as the `tokenizers` library trains it. `never` and `first` are SentencePiece-style BPE that
    puts no space before a text, and one before the text's beginning only."""
    texts = [row["text"] for row in example_shards()[0]]
    options: dict[str, Any] = {"vocab_size": SIZE, "special_tokens": SPECIALS, "show_progress": False}
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        backend.train_from_iterator(texts, trainers.UnigramTrainer(unk_token="<unk>", **options))
        return backend
    if kind == "wordpiece":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.train_from_iterator(texts, trainers.WordPieceTrainer(**options))
        return backend
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(texts, trainers.BpeTrainer(**options))
    model = json.loads(learner.to_str())["model"]
    vocab = {token: i if i < 3 else i + 256 for token, i in model["vocab"].items()}
    vocab |= {token: i + 3 for i, token in enumerate(BYTES)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "sentencepiece":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "never":
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(steps if kind == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return backend


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_directory(trained(kind), NAMED, [], TEMPLATE, root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.load(directory) for kind, directory in directories.items()}


@pytest.fixture(scope="module")
def library(directories: dict[str, Path]) -> dict[str, tokenizers.Tokenizer]:
    found = {}
    for kind, directory in directories.items():
        found[kind] = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return found


def test_what_they_are(loaded: dict[str, Tokenizer]) -> None:
    found = {kind: (t.kind, t.lossless, t.dummy_prefix) for kind, t in loaded.items()}
    assert found == {
        "unigram": ("unigram", False, True),
        "wordpiece": ("wordpiece", False, False),
        "sentencepiece": ("sentencepiece", True, True),
        "never": ("sentencepiece", True, False),
        "first": ("sentencepiece", False, True),
    }
    assert {(t.bos_id, t.eos_id, t.pad_id, t.stop_ids) for t in loaded.values()} == {(0, 1, 1, (1,))}
    files = {kind: {path.name for path in loaded[kind].files} for kind in KINDS}
    assert "vocab.txt" in files["wordpiece"]
    assert {"vocab.json", "merges.txt"} <= files["sentencepiece"]
    assert {"vocab.json", "vocab.txt"}.isdisjoint(files["unigram"])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_of_hard_texts(
    kind: str, loaded: dict[str, Tokenizer], library: dict[str, tokenizers.Tokenizer]
) -> None:
    ours, theirs = loaded[kind], library[kind]
    texts = [text for text in HARD_TEXTS if not any(special in text for special in SPECIALS)]
    if kind == "unigram":  # has no piece for bytes, but the library would find the letters <0x41> among its pieces
        assert not set(BYTES) & set(theirs.get_vocab())
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, SIZE - 1), max_size=12), kind=st.sampled_from(KINDS), skip=st.booleans())
def test_decode_equals_the_library(
    loaded: dict[str, Tokenizer], library: dict[str, tokenizers.Tokenizer], ids: list[int], kind: str, skip: bool
) -> None:
    ids = [i for i in ids if library[kind].id_to_token(i) not in BYTES]  # broken bytes are told apart below
    found = loaded[kind].decode(ids, skip_special_tokens=skip)
    assert found == library[kind].decode(ids, skip_special_tokens=skip)
    stream = loaded[kind].stream(skip_special_tokens=skip)
    assert "".join(stream.push(i) for i in ids) + stream.finish() == found


@settings(deadline=None)
@given(text=hard_text(), kind=st.sampled_from(["sentencepiece", "never"]))
def test_lossless_kinds_keep_every_text(loaded: dict[str, Tokenizer], text: str, kind: str) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode(text)
    kept = text.replace("▁", " ")
    assert tokenizer.decode(ids) == kept
    prefix = 1 if tokenizer.dummy_prefix and text else 0
    assert tokenizer.token_bytes[ids].sum() == len(kept.encode()) + prefix
    stream = tokenizer.stream()
    emitted = ""
    for i in ids:
        emitted += stream.push(i)
        assert kept.startswith(emitted)
    assert emitted + stream.finish() == kept


@pytest.mark.parametrize("kind", ["unigram", "first"])
def test_lossy_kinds_are_lossy(kind: str, loaded: dict[str, Tokenizer]) -> None:
    assert loaded[kind].decode(loaded[kind].encode(" The mill")) == "The mill"


def test_broken_bytes_lose_nothing_around_them(loaded: dict[str, Tokenizer]) -> None:
    """The library writes U+FFFD for every byte of a run that is no UTF-8, also for what is whole in it."""
    tokenizer = loaded["never"]
    ids = [3 + byte for byte in b"\xffa\xe6\xb0\xb4\xe6\xb0"]
    assert tokenizer.decode(ids) == "\ufffda水\ufffd"
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["\ufffd", "a", "", "", "水", "", ""]
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_letters_of_special_tokens_are_letters(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    for text in ("</s>", "a</s>b", "a </s> <s>", "<unk>"):
        assert tokenizer.eos_id not in tokenizer.encode(text), text
        assert tokenizer.bos_id not in tokenizer.encode(text), text
    assert tokenizer.decode(tokenizer.encode("x</s>y")).replace(" ", "") == "x</s>y"


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_with_a_text_keeps_its_space(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode("The miller waits")
    for cut in range(1, len(ids)):
        parts = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:], continues=True)
        assert "".join(parts) == tokenizer.decode(ids)
        stream = tokenizer.stream(continues=True)
        assert "".join(stream.push(i) for i in ids[cut:]) + stream.finish() == parts[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside_a_model", [False, True])
def test_transformers_gives_the_same_ids(
    kind: str, beside_a_model: bool, directories: dict[str, Path], tmp_path: Path
) -> None:
    ours = Tokenizer.load(directories[kind])
    for path in ours.files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if beside_a_model:
        (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in HARD_TEXTS if not any(special in text for special in SPECIALS)]
    ids = [ours.encode(text) for text in texts]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ids
    assert theirs.batch_decode(ids, skip_special_tokens=True) == [ours.decode(row) for row in ids]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    messages = [turn("user", " What is 17?"), turn("assistant", "A prime 水車 number."), turn("user", "Thanks")]
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.chat_ids(messages) == expected["input_ids"]
    assert ours.chat_ids_with_mask(messages) == (expected["input_ids"], expected["assistant_masks"])
    assert 0 < sum(expected["assistant_masks"]) < len(expected["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_config_takes_its_ids_from_any_kind(kind: str, directories: dict[str, Path]) -> None:
    assert special_token_ids(directories[kind], 600) == {"bos": 0, "eos": 1, "turn_end": 1}
    with pytest.raises(GristmillError, match="the tokenizer belongs to another model"):
        special_token_ids(directories[kind], 100)
