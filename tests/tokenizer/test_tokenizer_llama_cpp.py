"""llama.cpp itself gives the ids of tokenizers that are written into GGUF files. Needs its program `llama-tokenize`.

Two differences are known (docs/vocabularies.md): characters younger than Unicode 15.1, and the contraction "'ſ".
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from hard_text import HARD_TEXTS, hard_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import example_shards
from tokenizers import AddedToken, decoders, models

from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.encoder import byte_letters
from gristmill.tokenizer.formats.gguf import add_tokenizer
from gristmill.tokenizer.formats.huggingface import write_directory
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts

gguf = pytest.importorskip("gguf")
PROGRAM = shutil.which("llama-tokenize")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="llama.cpp's program llama-tokenize is not installed")

CONFIGS = {
    "gpt2": TokenizerConfig(vocab_size=640, pretokenizer="gpt2"),
    "gpt2, digits 1": TokenizerConfig(vocab_size=640, pretokenizer="gpt2", digits=1),
    "gpt4": TokenizerConfig(vocab_size=640, pretokenizer="gpt4"),
    "llama3": TokenizerConfig(vocab_size=640, pretokenizer="llama3"),
    "qwen2": TokenizerConfig(vocab_size=640, pretokenizer="qwen2"),
    "qwen2, digits 3": TokenizerConfig(vocab_size=640, pretokenizer="qwen2", digits=3),
    "sentencepiece": TokenizerConfig(vocab_size=700, pad_to_multiple=8, kind="sentencepiece"),
}
CUTS = {"gpt2": ("gpt2", None), "gpt2, digits 1": ("gpt2", 1), "gpt4": ("gpt4", None), "qwen2": ("qwen2", None)}
END = "<|eos|>"


class Both(NamedTuple):
    """A tokenizer of ours and the GGUF file with its vocabulary, and no weights."""

    ours: Tokenizer
    file: Path

    def ids(self, text: str, *options: str) -> list[int]:
        """llama.cpp's, special tokens being found in the text unless `options` say otherwise."""
        command = [PROGRAM, "-m", self.file, "--ids", "--no-bos", "--no-escape", "--stdin", "--log-disable", *options]
        ran = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, check=True)  # type: ignore[arg-type]
        ids: list[int] = json.loads(ran.stdout)
        return ids

    def ids_of_each(self, texts: Sequence[str]) -> list[list[int]]:
        """llama.cpp's for texts without the letters of special tokens, by one call: parted by one."""
        assert not any(END in text for text in texts)
        found: list[list[int]] = [[]]
        for token_id in self.ids(END.join(texts)):
            if token_id == self.ours.eos_id:
                found.append([])
            else:
                found[-1].append(token_id)
        return found


def written(directory: Path) -> Both:
    ours = Tokenizer.load(directory)
    writer = gguf.GGUFWriter(directory / "vocabulary.gguf", "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(64)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, directory, ours.vocab_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Both(ours, directory / "vocabulary.gguf")


@pytest.fixture(scope="module", params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    directory = tmp_path_factory.mktemp("trained")
    texts = [row["text"] for shard in example_shards() for row in shard]
    train_on_texts(CONFIGS[request.param], texts, directory)
    return written(directory)


@pytest.fixture(scope="module", params=CUTS)
def every_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A vocabulary in which any two neighbouring bytes merge, so that almost every cut shows in the ids."""
    letters = list(byte_letters())
    pairs = [(left, right) for left in letters for right in letters]
    tokens = [*letters, *(left + right for left, right in pairs), END]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = build_pretokenizer(*CUTS[request.param])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    directory = tmp_path_factory.mktemp("pairs")
    write_directory(backend, {"eos_token": END}, [], None, directory)
    return written(directory)


def known_to_both(text: str) -> bool:
    """Whether no difference is expected. Python 3.11 to 3.13 know of no characters younger than Unicode 15.1."""
    return "'ſ" not in text and all(unicodedata.category(character) != "Cn" for character in text)


MIXED = st.lists(hard_text().filter(lambda text: known_to_both(text) and "<" not in text), min_size=9, max_size=40)


def test_ids_of_hard_text(both: Both) -> None:
    texts = [*HARD_TEXTS, "<0x41> a<0x4<0x41>1>", "a▁b ▁▁ x▁", *(f"a{' ' * count}b" for count in range(1, 20))]
    with_special = [text for text in texts if "<|" in text]
    for text in with_special:
        assert both.ids(text, "--no-parse-special") == both.ours.encode(text), text
    others = [text for text in texts if text not in with_special]
    for text, ids in zip(others, both.ids_of_each(others), strict=True):
        assert ids == both.ours.encode(text), text


def test_a_chats_special_tokens_are_found(both: Both) -> None:
    chat = "<|im_start|>user\nHi  there<|im_end|>\n<|im_start|>assistant\n"
    parts = re.split(r"(<\|im_\w+\|>)", chat)
    specials = {"<|im_start|>": both.ours.im_start_id, "<|im_end|>": both.ours.im_end_id}
    wanted = [[specials[part]] if part in specials else both.ours.encode(part) for part in parts]
    assert both.ids(chat) == [token_id for ids in wanted for token_id in ids]


@settings(deadline=None, max_examples=6)
@given(texts=MIXED)
def test_ids_of_mixed_text(both: Both, texts: list[str]) -> None:
    assert both.ids_of_each(texts) == [both.ours.encode(text) for text in texts]


@settings(deadline=None, max_examples=6)
@given(texts=MIXED)
def test_cuts_of_mixed_text(every_pair: Both, texts: list[str]) -> None:
    assert every_pair.ids_of_each(texts) == [every_pair.ours.encode(text) for text in texts]


def test_cuts_of_hard_text(every_pair: Both) -> None:
    texts = [text for text in HARD_TEXTS if END not in text and known_to_both(text)]
    assert len(texts) > len(HARD_TEXTS) - 10
    for text, ids in zip(texts, every_pair.ids_of_each(texts), strict=True):
        assert ids == every_pair.ours.encode(text), text


@pytest.mark.slow
def test_cuts_at_every_character(every_pair: Both) -> None:
    """Between letters, digits, signs and white space; of the large blocks of scripts every 64th."""
    for text in _in_contexts(_characters()):
        ids, ours = every_pair.ids(text, "--no-parse-special"), every_pair.ours.encode(text)
        if ids != ours:
            first = next(i for i, (theirs, own) in enumerate(zip(ids, ours, strict=False)) if theirs != own)
            pytest.fail(f"behind {every_pair.ours.decode(ours[:first])[-9:]!r}")


def _characters() -> list[str]:
    large = [range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xE000, 0xF900), range(0x17000, 0x18D00)]
    large += [range(0x20000, 0x32000), range(0xF0000, 0x110000)]
    rare = {code for block in large for code in block if code % 64 and code != block[-1]}
    codes = (code for code in range(0x110000) if code not in rare and not 0xD800 <= code < 0xE000)
    return [character for character in map(chr, codes) if known_to_both(character)]


def _in_contexts(characters: list[str]) -> Iterator[str]:
    for start in range(0, len(characters), 8192):
        yield "".join(f"a{c}b 1{c}1 .{c}.\n{c} '{c}s {c}{c}\t" for c in characters[start : start + 8192] if c != "ſ")
