"""Damaged and hostile GGUF files: always one clear error or a model that runs, never anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_weights_gguf_architectures import CASES, VOCAB, byte_level_dir, random_model  # noqa: F401 - a fixture

from gristmill.errors import GristmillError
from gristmill.tokenizer.formats.gguf import write_tokenizer
from gristmill.weights.gguf import import_gguf, load_gguf
from gristmill.weights.gguf_export import export_gguf
from gristmill.weights.gguf_file import GGUFFile

SMALL = {"hidden_size": 8, "num_layers": 1, "head_dim": 4, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 8}
FUZZED = {
    "llama": {},
    "gemma3": {"embedding_scale": 8**0.5, "num_layers": 7},
    "deepseek v3": {"head_dim": 12, "num_kv_heads": 2, "num_layers": 2},
    "gpt2": {"num_kv_heads": 2},
}


@pytest.fixture(scope="session")
def whole_files(byte_level_dir, tmp_path_factory) -> dict[str, bytes]:  # noqa: F811 - the fixture
    directory = tmp_path_factory.mktemp("whole")
    for name, changes in FUZZED.items():
        export_gguf(random_model(**CASES[name][1] | SMALL | changes), byte_level_dir, directory / name, "f16")
    return {name: (directory / name).read_bytes() for name in FUZZED}


def head_of(data: bytes) -> bytes:
    """What stands before the tokens, where most keys are."""
    return data[: data.index(b"tokenizer.ggml.tokens")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_an_error_or_a_model(data, whole_files, tmp_path):
    whole = whole_files[data.draw(st.sampled_from(list(FUZZED)))]
    changed = bytearray(whole)
    directory = whole.index(b"token_embd.weight") - 8
    places = st.one_of(
        st.integers(0, len(head_of(whole)) - 1),
        st.integers(directory, directory + 600),
        st.integers(len(head_of(whole)), len(whole) - 1),
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(places)
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from(HOSTILE)))
        changed[at : at + len(new)] = new
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    (tmp_path / "m.gguf").write_bytes(changed)
    try:
        model = load_gguf(tmp_path / "m.gguf")
    except GristmillError:
        return
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, model.config.vocab_size)


HOSTILE = [struct.pack("<Q", 2**31), struct.pack("<Q", 2**63), struct.pack("<q", -1), struct.pack("<f", np.nan),
           struct.pack("<f", np.inf), struct.pack("<f", -1.0), struct.pack("<I", 0), struct.pack("<I", 12)]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_tokenizers_give_an_error_or_a_directory(data, whole_files, tmp_path):
    whole = whole_files["llama"]
    changed = bytearray(whole)
    keys = [key for key in TOKENIZER_KEYS if key.encode() in whole]
    at = whole.index(data.draw(st.sampled_from(keys)).encode()) + data.draw(st.integers(0, 90))
    new = data.draw(st.one_of(st.binary(min_size=1, max_size=2), st.sampled_from(HOSTILE)))
    changed[at : at + len(new)] = new
    (tmp_path / "m.gguf").write_bytes(changed)
    try:
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", torch.float32)
    except GristmillError:
        return
    assert (tmp_path / "out" / "tokenizer.json").is_file()


TOKENIZER_KEYS = [
    f"tokenizer.{key}"
    for key in ("ggml.model", "ggml.pre", "ggml.merges", "ggml.tokens", "ggml.token_type", "ggml.bos_token_id",
                "ggml.add_bos_token", "ggml.padding_token_id", "chat_template")
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", 7),
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.token_type", "normal"),
        ("tokenizer.ggml.token_type", [0.5] * VOCAB),
        ("tokenizer.ggml.merges", [1, 2]),
        ("tokenizer.ggml.merges", "a b"),
        ("tokenizer.ggml.model", 3),
        ("tokenizer.ggml.pre", ["gpt-2"]),
        ("tokenizer.ggml.bos_token_id", 1.0),
        ("tokenizer.ggml.eos_token_id", "eos"),
        ("tokenizer.ggml.add_bos_token", [True]),
        ("tokenizer.chat_template", 3),
        ("general.architecture", 3),
        ("general.architecture", ["llama"]),
        ("split.count", "two"),
        ("llama.block_count", "2"),
        ("llama.block_count", True),
        ("llama.attention.head_count", [2, 1]),
        ("llama.rope.freq_base", "high"),
        ("llama.rope.scaling.type", [1]),
        ("general.alignment", 24),
        ("general.alignment", 2**30),
    ],
)
def test_values_of_another_type_are_refused_by_key(key, value, whole_files, tmp_path):
    (tmp_path / "whole.gguf").write_bytes(whole_files["llama"])
    source = GGUFFile(tmp_path / "whole.gguf")
    rewrite(source, source.fields | {key: value}, tmp_path / "m.gguf")
    with pytest.raises(GristmillError, match=rf"m\.gguf.*{key}"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", torch.float32)


def rewrite(source: GGUFFile, fields: dict, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    for key, value in fields.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name in source.tensors:
        writer.add_tensor(name, source.read(name).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def entry(name: str, sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    packed = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return struct.pack("<Q", len(name)) + name.encode() + packed


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("wide", [2**63, 2**63])], "wide.*beyond the end"),
        ([entry("wide", [2**32, 2**32])], "wide.*beyond the end"),
        ([entry("empty", [0, 4])], r"empty.*dimensions \[0, 4\]"),
        ([entry("many", [1, 1, 1, 1, 1])], "many.*5 dimensions"),
        ([entry("none", [])], "none.*0 dimensions"),
        ([entry("odd", [4], kind=99)], "odd.*unknown type 99"),
        ([entry("cut", [33], kind=8)], r"cut.*Q8_0.*dimensions \[33\]"),
        ([entry("far", [4], offset=2**40)], "far.*beyond the end"),
        ([entry("crooked", [4], offset=3)], "crooked.*odd place"),
        ([entry("one", [16]), entry("two", [4], offset=32)], "two overlaps"),
        ([entry("twin", [4]), entry("twin", [4], offset=32)], "twin stands twice"),
    ],
)
def test_absurd_entries_are_refused_before_anything_is_allocated(entries, words, tmp_path):
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), 0)
    (tmp_path / "m.gguf").write_bytes(head + b"".join(entries) + b"\0" * 256)
    with pytest.raises(GristmillError, match=rf"m\.gguf is not a whole GGUF file \(.*{words}"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (struct.pack("<4sIQQ", b"GGML", 3, 0, 0), "does not begin with GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), ""),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), ""),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**62), ""),
        (b"", ""),
        (b"GGUF", ""),
    ],
)
def test_absurd_heads_are_refused(head, words, tmp_path):
    (tmp_path / "m.gguf").write_bytes(head)
    with pytest.raises(GristmillError, match=rf"m\.gguf is not a whole GGUF file \(.*{words}"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", 7),
        ("tokens", ["a", 1]),
        ("merges", [1]),
        ("token_type", ["1"]),
        ("scores", "1.0"),
        ("bos_token_id", "0"),
        ("add_bos_token", 1),
        ("model", ["gpt2"]),
    ],
)
def test_a_tokenizer_of_wrong_types_is_refused(key, value, tmp_path):
    """Also where only the vocabulary is read, and not by `GGUFFile`."""
    fields = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "token_type": [1, 1], "merges": []} | {key: value}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    with pytest.raises(GristmillError, match=rf"m\.gguf: metadata key tokenizer\.ggml\.{key}"):
        write_tokenizer(metadata.get, Path("m.gguf"), 2, tmp_path)
