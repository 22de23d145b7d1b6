"""The tokenizer that every later stage uses: text and chats to ids, and ids to text.

It reads a Hugging Face directory: those that the tokenizer stage writes, and others' of the same four kinds:
byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece-style BPE (Llama 2, Mistral, Gemma), unigram (T5) and WordPiece
(BERT). It adds no special token by itself and finds none in text: they come in by `chat_ids` or by the caller's hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import ArrayLike, NDArray
from tokenizers import AddedToken, processors

from ..errors import GristmillError
from .chat import ChatTemplate, Message, Rendering, Tool
from .encoder import Encoder
from .kinds import adds_prefix, hide_from_text, is_lossless, kind_of, without_first
from .special import FOREIGN_STOPS, IM_END, IM_START
from .stream import TokenStream
from .tables import ByteTable, byte_table

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A tokenizer with its chat template; made by `Tokenizer.load`.

    `kind`: bpe (byte-level), sentencepiece (BPE of characters), unigram or wordpiece. `lossless`: whether every text
    decodes to itself; in the last three a "▁" of the text becomes a space all the same. `dummy_prefix`: whether a
    space is put before every text; `token_bytes` then counts one byte more than the text has.
    `vocab_size`: one more than the largest id. `bos_id`, `eos_id`, `pad_id`: a tokenizer from elsewhere that names no
    bos or pad token uses its eos token there. `im_start_id`, `im_end_id`: None where the vocabulary lacks them.
    `stop_ids`: the ids that end a text or a turn. `hash`: sha256 over `tokenizer.json`, the chat template and the
    named tokens, by which stages check that they mean the same. `files`: the directory's tokenizer files, to be copied
    beside a model.
    """

    def __init__(self, directory: Path, backend: tokenizers.Tokenizer, named: dict[str, str], template: str | None):
        self.directory = directory
        self.backend = backend
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        specials = [token for token in added.values() if token.special]
        self._special_to_id = {token.content: id for id, token in added.items() if token.special}
        self.special_ids = frozenset(self._special_to_id.values())
        path = directory / "tokenizer.json"
        try:
            self.kind = kind_of(backend)
            self._all_bytes = byte_table(backend, added)
        except GristmillError as error:
            raise GristmillError(f"{path} cannot be used: {error}") from None
        self._id_to_bytes = self._all_bytes.later
        self.vocab_size = len(self._id_to_bytes)
        self.lossless = is_lossless(backend)
        self.dummy_prefix = adds_prefix(backend)
        hide_from_text(backend, self.special_ids)

        if "eos_token" not in named:
            raise GristmillError(f"{directory / 'tokenizer_config.json'} names no eos_token; add one")
        for name, content in named.items():
            if content not in self._special_to_id:
                raise GristmillError(f"{directory}: {name} is {content!r}, which is no special token of tokenizer.json")
        ids = {name: self._special_to_id[content] for name, content in named.items()}
        self.eos_id: int = ids["eos_token"]
        self.bos_id: int = ids.get("bos_token", self.eos_id)
        self.pad_id: int = ids.get("pad_token", self.eos_id)
        self.mask_id = ids.get("mask_token")
        self.im_start_id = self._special_to_id.get(IM_START)
        self.im_end_id = self._special_to_id.get(IM_END)
        self.files = [directory / name for name in TOKENIZER_FILES if (directory / name).exists()]
        self.template = None
        if template is not None:
            origin = f"the chat template of {directory}"
            self.template = ChatTemplate(template, origin, named, specials)
        turn_ends = self.template.turn_ends if self.template else ()
        ends = [token for token in (IM_END, *FOREIGN_STOPS, *turn_ends) if token in self._special_to_id]
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.eos_id, *(self._special_to_id[token] for token in ends)}))

        digest = hashlib.sha256(path.read_bytes())
        digest.update(b"\0" + (template or "").encode() + b"\0" + json.dumps(named, sort_keys=True).encode())
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
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # a special token's letters in a text are letters
        backend.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing, keeps offsets whole
        config = read_json(directory / "tokenizer_config.json")
        named = named_tokens({**read_json(directory / "special_tokens_map.json"), **config})
        return cls(directory, backend, named, read_template(directory, config))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos or eos. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
        return self.backend.encode(_well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of many texts on all cores."""
        encodings = self.backend.encode_batch_fast([_well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_array(self, texts: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """`encode` of an array of strings (a null is an empty text): all ids in a row, and where the ids of each text
        start, int64 `[texts + 1]`."""
        encoder, lock = self._encoder
        if encoder is not None:
            with lock:  # it remembers what it has seen
                return encoder.encode(texts)
        encoded = self.encode_batch(text or "" for text in texts.to_pylist())
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        return np.fromiter(chain.from_iterable(encoded), dtype=np.uint32, count=int(offsets[-1])), offsets

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True, continues: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing.

        `continues`: the ids go on with a text, they do not begin one. It matters to the kinds other than bpe, whose
        first token loses the space that encoding has put before the text.
        """
        return self._table(skip_special_tokens).join(ids, begins=not continues).decode("utf-8", "replace")

    def stream(self, skip_special_tokens: bool = True, continues: bool = False) -> TokenStream:
        """`decode` for ids that come one by one: `.push(id)` and, at the end, `.finish()` give text."""
        return TokenStream(self._table(skip_special_tokens), begins=not continues)

    def check_ids(self, ids: ArrayLike, what: str) -> None:
        """GristmillError where `ids` (integers of any shape) holds one that the vocabulary lacks; `what` names them."""
        array = np.asarray(ids)
        wrong = array[(array < 0) | (array >= self.vocab_size)]
        if wrong.size:
            raise GristmillError(
                f"{what} holds the token id {wrong.flat[0]}; the ids of {self.directory} go from 0 to "
                f"{self.vocab_size - 1}"
            )

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 `[vocab_size]`: the UTF-8 bytes of text that each id stands for, 0 for special tokens."""
        return np.array([len(text) for text in self._text_bytes.later], dtype=np.int64)

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The chat as the template writes it; `ChatTemplate.render` tells what the arguments mean."""
        return self._render(messages, add_generation_prompt, tools, continue_final_message).text

    def chat_ids(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The ids of a chat. Special tokens come from the template alone, never from a message's text."""
        rendering = self._render(messages, add_generation_prompt, tools, continue_final_message)
        ids: list[int] = []
        for number, piece in enumerate(rendering.pieces):
            if piece.special is None:
                ids += self._encode_piece(piece.text, number).ids
            else:
                ids.append(self._special_to_id[piece.special])
        return ids

    def chat_ids_with_mask(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        """The ids of a chat and, for each, 1 where the assistant wrote it (the closing `<|im_end|>` included), else 0.

        A token is the assistant's when any of its characters lies in a `{% generation %}` span of the template.
        """
        rendering = self._render(messages, False, tools, False)
        assert self.template is not None
        if not self.template.has_generation:
            raise GristmillError(
                f"{self.template.origin} has no {{% generation %}} ... {{% endgeneration %}} around what the assistant "
                f"writes, so its tokens cannot be told from the rest; add it to the template"
            )
        ids: list[int] = []
        mask: list[int] = []
        position = 0  # in characters of the rendered text
        for number, piece in enumerate(rendering.pieces):
            if piece.special is None:
                encoding = self._encode_piece(piece.text, number)
                ids += encoding.ids
                offsets = encoding.offsets
            else:
                ids.append(self._special_to_id[piece.special])
                offsets = [(0, len(piece.text))]
            for start, end in offsets:
                mask.append(int(any(position + start < b and a < position + end for a, b in rendering.generated)))
            position += len(piece.text)
        return ids, mask

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Tool] | None,
        continue_final_message: bool,
    ) -> Rendering:
        if self.template is None:
            raise GristmillError(
                f"{self.directory} has no chat template (chat_template.jinja, or chat_template in "
                f"tokenizer_config.json); add one or use a model that was trained to chat"
            )
        return self.template.render(messages, add_generation_prompt, tools, continue_final_message)

    def _encode_piece(self, text: str, number: int) -> tokenizers.Encoding:
        """A piece of a chat, the `number`-th. Some tokenizers put a space before the first piece alone."""
        backend = self._later_backend if number else self.backend
        return backend.encode(_well_formed(text), add_special_tokens=False)

    @cached_property
    def _encoder(self) -> tuple[Encoder | None, Lock]:
        return Encoder.of(self.backend), Lock()

    @cached_property
    def _later_backend(self) -> tokenizers.Tokenizer:
        return without_first(self.backend)

    @cached_property
    def _text_bytes(self) -> ByteTable:
        return self._all_bytes.without(self.special_ids)

    def _table(self, skip_special_tokens: bool) -> ByteTable:
        return self._text_bytes if skip_special_tokens else self._all_bytes


def check_same(tokenizer: Tokenizer, found: str, what: str) -> None:
    """GristmillError where `what` was made with another tokenizer: `found` is the `hash` that it keeps."""
    if found != tokenizer.hash:
        raise GristmillError(
            f"{what} was made with another tokenizer or chat template (hash {found[:12]}) than {tokenizer.directory} "
            f"(hash {tokenizer.hash[:12]}); make both with the same one: run the older stage again"
        )


def _well_formed(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file does not exist."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise GristmillError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GristmillError(f"{path} must hold a JSON object")
    return value


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which stand as strings or as objects with their `content`. Vocabularies of
    encoders (BERT) put `cls_token` before a text and `sep_token` behind it: these are their bos and eos."""

    def read(name: str) -> str | None:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else None

    named = {
        "bos_token": read("bos_token") or read("cls_token"),
        "eos_token": read("eos_token") or read("sep_token"),
        "pad_token": read("pad_token"),
        "unk_token": read("unk_token"),
        "mask_token": read("mask_token"),
    }
    return {name: content for name, content in named.items() if content}


def read_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The template in its own file or, where that is missing, the (default) one in tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise GristmillError(f"{path} is not UTF-8: {error}") from None
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None
