"""The tokenizer that every later stage uses: text and chats to ids, and ids to text.

It reads a Hugging Face directory: those that the tokenizer stage writes, and any other byte-level BPE tokenizer
(GPT-2, Llama 3, Qwen, SmolLM). It adds no special token by itself and finds none in text: they come in by `chat_ids`
or by the caller's hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, processors

from ..errors import GristmillError
from .chat import ChatTemplate, Message, Rendering
from .special import FOREIGN_STOPS, IM_END, IM_START
from .stream import TokenStream, bytes_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A byte-level BPE tokenizer with its chat template; made by `Tokenizer.load`.

    `vocab_size`: one more than the largest id. `bos_id`, `eos_id`, `pad_id`: a tokenizer from elsewhere that names no
    bos or pad token uses its eos token there. `im_start_id`, `im_end_id`: None where the vocabulary lacks them.
    `stop_ids`: the ids that end a text or a turn. `hash`: sha256 over `tokenizer.json` and the chat template, by which
    stages check that they mean the same tokens. `files`: the directory's tokenizer files, to be copied beside a model.
    """

    def __init__(self, directory: Path, backend: tokenizers.Tokenizer, named: dict[str, str], template: str | None):
        self.directory = directory
        self.backend = backend
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        specials = [token for token in added.values() if token.special]
        self._special_to_id = {token.content: id for id, token in added.items() if token.special}
        self.special_ids = frozenset(self._special_to_id.values())
        self._id_to_bytes = _byte_table(backend, added)
        self.vocab_size = len(self._id_to_bytes)

        if "eos_token" not in named:
            raise GristmillError(f"{directory / 'tokenizer_config.json'} names no eos_token; add one")
        for name, content in named.items():
            if content not in self._special_to_id:
                raise GristmillError(f"{directory}: {name} is {content!r}, which is no special token of tokenizer.json")
        ids = {name: self._special_to_id[content] for name, content in named.items()}
        self.eos_id: int = ids["eos_token"]
        self.bos_id: int = ids.get("bos_token", self.eos_id)
        self.pad_id: int = ids.get("pad_token", self.eos_id)
        self.im_start_id = self._special_to_id.get(IM_START)
        self.im_end_id = self._special_to_id.get(IM_END)
        stops = {self._special_to_id[token] for token in (IM_END, *FOREIGN_STOPS) if token in self._special_to_id}
        self.stop_ids: tuple[int, ...] = tuple(sorted(stops | {self.eos_id}))

        self.files = [directory / name for name in TOKENIZER_FILES if (directory / name).exists()]
        self.template = None
        if template is not None:
            origin = f"the chat template of {directory}"
            self.template = ChatTemplate(template, origin, named, specials)
        digest = hashlib.sha256((directory / "tokenizer.json").read_bytes())
        digest.update(b"\0" + (template or "").encode())
        self.hash = digest.hexdigest()

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Read a directory. GristmillError names the file that is missing, corrupt or of an unsupported kind."""
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.exists():
            raise GristmillError(f"{directory} holds no tokenizer.json; give a tokenizer or model directory")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise GristmillError(f"{path} is not a tokenizer that the tokenizers library reads: {error}") from None
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise GristmillError(
                f"{path} is not a byte-level tokenizer (GPT-2, Llama 3, Qwen, SmolLM), the only kind read"
            )
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # a special token's letters in a text are letters
        backend.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing, keeps offsets whole
        config = _read_json(directory / "tokenizer_config.json")
        named = _named_tokens({**_read_json(directory / "special_tokens_map.json"), **config})
        return cls(directory, backend, named, _read_template(directory, config))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos or eos. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
        return self.backend.encode(_well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of many texts on all cores."""
        encodings = self.backend.encode_batch_fast([_well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        table = self._table(skip_special_tokens)
        return b"".join(bytes_of(table, token_id) for token_id in ids).decode("utf-8", "replace")

    def stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for ids that come one by one: `.push(id)` and, at the end, `.finish()` give text."""
        return TokenStream(self._table(skip_special_tokens))

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 `[vocab_size]`: the UTF-8 bytes of text that each id stands for, 0 for special tokens."""
        return np.array([len(text) for text in self._text_bytes], dtype=np.int64)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The chat as the template writes it; `add_generation_prompt` opens the assistant's turn at the end."""
        return self._render(messages, add_generation_prompt).text

    def chat_ids(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """The ids of a chat. Special tokens come from the template alone, never from a message's text."""
        ids: list[int] = []
        for piece in self._render(messages, add_generation_prompt).pieces:
            if piece.special is None:
                ids += self.encode(piece.text)
            else:
                ids.append(self._special_to_id[piece.special])
        return ids

    def chat_ids_with_mask(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """The ids of a chat and, for each, 1 where the assistant wrote it (the closing `<|im_end|>` included), else 0.

        A token is the assistant's when any of its characters lies in a `{% generation %}` span of the template.
        """
        rendering = self._render(messages, add_generation_prompt=False)
        assert self.template is not None
        if not self.template.has_generation:
            raise GristmillError(
                f"{self.template.origin} has no {{% generation %}} ... {{% endgeneration %}} around what the assistant "
                f"writes, so its tokens cannot be told from the rest; add it to the template"
            )
        ids: list[int] = []
        mask: list[int] = []
        position = 0  # in characters of the rendered text
        for piece in rendering.pieces:
            if piece.special is None:
                encoding = self.backend.encode(_well_formed(piece.text), add_special_tokens=False)
                ids += encoding.ids
                offsets = encoding.offsets
            else:
                ids.append(self._special_to_id[piece.special])
                offsets = [(0, len(piece.text))]
            for start, end in offsets:
                mask.append(int(any(position + start < b and a < position + end for a, b in rendering.generated)))
            position += len(piece.text)
        return ids, mask

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> Rendering:
        if self.template is None:
            raise GristmillError(
                f"{self.directory} has no chat template (chat_template.jinja, or chat_template in "
                f"tokenizer_config.json); add one or use a model that was trained to chat"
            )
        return self.template.render(messages, add_generation_prompt)

    @cached_property
    def _text_bytes(self) -> list[bytes]:
        return [b"" if id in self.special_ids else text for id, text in enumerate(self._id_to_bytes)]

    def _table(self, skip_special_tokens: bool) -> list[bytes]:
        return self._text_bytes if skip_special_tokens else self._id_to_bytes


def _well_formed(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _byte_table(backend: tokenizers.Tokenizer, added: dict[int, AddedToken]) -> list[bytes]:
    """The bytes of each id; those of an added token are its content's."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise GristmillError("tokenizer.json holds an empty vocabulary")
    character_to_byte = _character_to_byte()
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, id in vocabulary.items():
        if id not in added and all(character in character_to_byte for character in token):
            table[id] = bytes(character_to_byte[character] for character in token)
        else:
            table[id] = token.encode()
    return table


def _character_to_byte() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the others, in order, for
    the characters from U+0100 on (Radford et al. 2019, encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file does not exist."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise GristmillError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GristmillError(f"{path} must hold a JSON object")
    return value


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which stand as strings or as objects with their `content`."""
    named = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            named[name] = content
    return named


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The template in its own file or, where that is missing, the (default) one in tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None
