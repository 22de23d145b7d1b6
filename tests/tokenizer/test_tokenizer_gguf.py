"""Tokenizers inside GGUF files: what is written is read back to the same ids, and what cannot be said is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hard_text import HARD_TEXTS
from test_tokenizer_formats_sentencepiece import MODELS, train
from test_tokenizer_kinds import NAMED, TEMPLATE, trained
from tokenizer_rooms import example_shards

from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.formats import export_tokenizer, import_tokenizer
from gristmill.tokenizer.formats.gguf import add_tokenizer, write_tokenizer
from gristmill.tokenizer.formats.huggingface import write_directory
from gristmill.tokenizer.formats.sentencepiece import read_model
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts
from gristmill.weights.gguf_file import GGUFFile

gguf = pytest.importorskip("gguf")


def written(directory: Path, file: Path, vocab_size: int) -> GGUFFile:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    add_tokenizer(writer, directory, vocab_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(file)


def round_trip(directory: Path, root: Path, vocab_size: int) -> tuple[Tokenizer, dict[str, Any]]:
    """What comes back, and the metadata. A second round must write the same."""
    rounds: list[dict[str, Any]] = []
    for name in ("once", "twice"):
        (root / name).mkdir()
        source = written(directory, root / f"{name}.gguf", vocab_size)
        write_tokenizer(source.get, source.path, vocab_size, root / name)
        rounds.append({key: source.get(key) for key in source.fields if key.startswith("tokenizer.")})
        directory = root / name
    assert rounds[0] == rounds[1]
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (root / "once" / file).read_bytes() == (root / "twice" / file).read_bytes()
    return Tokenizer.load(root / "once"), rounds[0]


def test_byte_level_tokenizers_come_back(any_directory: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(any_directory)
    again, metadata = round_trip(any_directory, tmp_path, ours.vocab_size + 3)
    assert [again.encode(text) for text in HARD_TEXTS] == [ours.encode(text) for text in HARD_TEXTS]
    assert (again.bos_id, again.eos_id, again.pad_id, again.stop_ids, again.special_ids) == (
        ours.bos_id, ours.eos_id, ours.pad_id, ours.stop_ids, ours.special_ids,
    )  # fmt: skip
    assert again.vocab_size == ours.vocab_size
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] in ("gpt-2", "llama-bpe", "qwen2")
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD642]"
    assert metadata["tokenizer.ggml.token_type"][-4:] == [1, 5, 5, 5]
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "水 <|im_end|>"}]
    assert again.chat_ids_with_mask(messages) == ours.chat_ids_with_mask(messages)


@pytest.mark.parametrize(
    ("name", "known"), [("gpt2", "gpt-2"), ("gpt4", "llama-bpe"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")]
)
def test_both_rooms_mean_the_same_pretokenizers(name: str, known: str, directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    tokenizer.backend.pre_tokenizer = build_pretokenizer(name)
    write_directory(tokenizer.backend, {"eos_token": "<|eos|>"}, [], None, tmp_path / "t")
    source = written(tmp_path / "t", tmp_path / "t.gguf", tokenizer.vocab_size)
    assert source.get("tokenizer.ggml.pre") == known


@pytest.mark.parametrize("kind", ["sentencepiece", "never"])
def test_sentencepiece_tokenizers_come_back(kind: str, tmp_path: Path) -> None:
    write_directory(trained(kind), NAMED, [], TEMPLATE, tmp_path / "t")
    ours = Tokenizer.load(tmp_path / "t")
    again, metadata = round_trip(tmp_path / "t", tmp_path, ours.vocab_size)
    for text in HARD_TEXTS:
        assert again.encode(text) == ours.encode(text), text
        assert again.decode(again.encode(text)) == ours.decode(ours.encode(text))
    assert (again.kind, again.lossless, again.dummy_prefix) == (ours.kind, ours.lossless, ours.dummy_prefix)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is (kind == "sentencepiece")
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 2, 6]


def test_the_stages_own_sentencepiece_kind_comes_back(tmp_path: Path) -> None:
    """Its pre-tokenizer, which a GGUF file cannot say, must not matter."""
    texts = [row["text"] for shard in example_shards() for row in shard]
    train_on_texts(TokenizerConfig(kind="sentencepiece", vocab_size=600), texts, tmp_path / "t")
    ours = Tokenizer.load(tmp_path / "t")
    again, _ = round_trip(tmp_path / "t", tmp_path, ours.vocab_size)
    for text in HARD_TEXTS:
        assert again.encode(text) == ours.encode(text), text


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_scores_of_a_sentencepiece_model_mean_its_merges(name: str, tmp_path: Path) -> None:
    """Runs of spaces of equal scores too, as Llama's; the order of scores is the model's own."""
    path = train(tmp_path / "m.model", **MODELS[name])
    if name == "llama":
        proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(path.read_bytes())
        for size in (2, 4, 5, 3):
            proto.pieces.add(piece="▁" * size, score=-1e9)
        path.write_bytes(proto.SerializeToString())
    ours = import_tokenizer(path, tmp_path / "t")
    again, metadata = round_trip(tmp_path / "t", tmp_path, ours.vocab_size)
    for text in [*HARD_TEXTS, *(f"a{' ' * count}b" for count in range(30))]:
        assert again.encode(text) == ours.encode(text), text
    tokens, scores, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    found = {tokens[i]: scores[i] for i in range(ours.vocab_size) if kinds[i] == 1 and len(tokens[i]) > 1}
    own = {piece.text: piece.score for piece in read_model(path).pieces if piece.type == 1 and len(piece.text) > 1}
    assert sorted(found, key=lambda token: -found[token]) == sorted(own, key=lambda token: -own[token])
    assert kinds == [piece.type for piece in read_model(path).pieces]


def test_bos_before_a_text(directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    export_tokenizer(tokenizer, "huggingface", tmp_path / "t")
    state = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    first, text = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
    }
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(state))
    _, metadata = round_trip(tmp_path / "t", tmp_path, tokenizer.vocab_size)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    again = json.loads((tmp_path / "twice" / "tokenizer.json").read_text())
    assert again["post_processor"] == state["post_processor"]


def set_path(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


DIGITS = {"type": "Digits", "individual_digits": False}


def test_special_tokens_behind_the_models_rows_are_left_out(
    directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "t")
    path, rows = tmp_path / "t" / "tokenizer.json", tokenizer.vocab_size
    state = json.loads(path.read_text())
    state["added_tokens"].append(state["added_tokens"][-1] | {"id": rows, "content": "<image>"})
    path.write_text(json.dumps(state))
    files = [written(place, tmp_path / f"{place.name}.gguf", rows) for place in (directory, tmp_path / "t")]
    assert files[0].get("tokenizer.ggml.tokens") == files[1].get("tokenizer.ggml.tokens")
    state["added_tokens"][-1]["special"] = False
    path.write_text(json.dumps(state))
    with pytest.raises(GristmillError, match=f"holds id {rows}"):
        written(tmp_path / "t", tmp_path / "x.gguf", rows)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (set_path("normalizer", value={"type": "NFC"}), "its normalizer cannot be written into a GGUF file"),
        (set_path("pre_tokenizer", "pretokenizers", 0, value=DIGITS), "llama.cpp has no name for its pre-tokenizer"),
        (set_path("model", "type", value="Unigram"), "a model of type Unigram is not written into GGUF files"),
        (
            set_path("model", value={"type": "BPE", "vocab": {}}),
            r"is not a whole tokenizer\.json: KeyError\('merges'\)",
        ),
        (set_path("added_tokens", 0, "id", value=700), "holds id 700, the model's vocab_size is 640"),
        (set_path("added_tokens", 1, "content", value="<x>"), r"has no token '<\|eos\|>', the eos_token of"),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    change: Callable[[dict[str, Any]], None], cause: str, directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export_tokenizer(tokenizer, "huggingface", tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    state = json.loads(path.read_text())
    if "vocab" in state["model"]:
        state["model"]["vocab"].pop("<|eos|>")
    change(state)
    path.write_text(json.dumps(state))
    with pytest.raises(GristmillError, match=cause):
        add_tokenizer(gguf.GGUFWriter(tmp_path / "x.gguf", "llama"), tmp_path / "t", tokenizer.vocab_size)


def test_gpt2_with_single_digits_is_smollms(directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    tokenizer.backend.pre_tokenizer = build_pretokenizer("gpt2", 1)
    write_directory(tokenizer.backend, {"eos_token": "<|eos|>"}, [], None, tmp_path / "t")
    ours = Tokenizer.load(tmp_path / "t")
    again, metadata = round_trip(tmp_path / "t", tmp_path, ours.vocab_size)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert [again.encode(text) for text in HARD_TEXTS] == [ours.encode(text) for text in HARD_TEXTS]


def test_a_piece_with_nul_is_refused(tmp_path: Path) -> None:
    """llama.cpp reads strings up to a NUL, and takes the byte's token for one in a text."""
    train_on_texts(TokenizerConfig(kind="sentencepiece", vocab_size=368), ["a\0b " * 400 + "the mill " * 90], tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"]["\0"] = 368
    path.write_text(json.dumps(state))
    with pytest.raises(GristmillError, match=r"tokenizer\.json: its token '\\x00' holds the character NUL"):
        add_tokenizer(gguf.GGUFWriter(tmp_path / "x.gguf", "llama"), tmp_path, 369)


def test_names_and_templates_are_found_where_loading_finds_them(
    directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Names in special_tokens_map.json alone, and templates as a list."""
    export_tokenizer(tokenizer, "huggingface", tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").unlink()
    templates = [{"name": "tools", "template": "none"}, {"name": "default", "template": "{{ eos_token }}"}]
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    source = written(tmp_path / "t", tmp_path / "t.gguf", tokenizer.vocab_size)
    assert source.get("tokenizer.ggml.eos_token_id") == tokenizer.eos_id
    assert source.get("tokenizer.ggml.bos_token_id") == tokenizer.bos_id
    assert source.get("tokenizer.chat_template") == "{{ eos_token }}"


def test_merges_that_scores_cannot_say_are_refused(tmp_path: Path) -> None:
    write_directory(trained("never"), NAMED, [], None, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["merges"].reverse()
    path.write_text(json.dumps(state))
    with pytest.raises(
        GristmillError, match=r"tokenizer\.json: its merges are not what scores of its tokens could give"
    ):
        written(tmp_path / "t", tmp_path / "t.gguf", 586)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("scores", [0.0], "tokenizer.ggml.scores holds 1 entries for 586 tokens"),
        ("token_type", [1] * 586, "tokenizer.ggml.token_type marks 0 tokens of bytes, not 256"),
        ("tokens", ["a"] * 586, "tokenizer.ggml.tokens holds 1 distinct tokens, the embedding 586 rows"),
        ("bos_token_id", 5000, "tokenizer.ggml.bos_token_id 5000 is outside the 586 tokens"),
        ("model", "bert", "tokenizer.ggml.model 'bert' is not supported"),
    ],
)
def test_damaged_keys_are_named(key: str, value: Any, complaint: str, tmp_path: Path) -> None:
    write_directory(trained("never"), NAMED, [], None, tmp_path / "t")
    source = written(tmp_path / "t", tmp_path / "t.gguf", 586)

    def get(name: str, default: Any = None) -> Any:
        return value if name == f"tokenizer.ggml.{key}" else source.get(name, default)

    with pytest.raises(GristmillError, match=complaint):
        write_tokenizer(get, source.path, 586, tmp_path)
